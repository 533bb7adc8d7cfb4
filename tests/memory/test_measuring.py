"""Pictures within limits, measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdengine.cli import main
from sdengine.errors import ParameterError
from sdengine.memory.measuring import Measured, plot, synthetic_model, table

ROWS = [
    Measured("1GB", refused="memory_limit='1.22GB' is the smallest that works"),
    Measured("2GB", "unet stream", 1_900_000_000, 10**9, 1_850_000_000, 10**9, 3.5, 80.0),
    Measured("4GB", "unet resident", 3_000_000_000, 10**9, 2_950_000_000, 10**9, 2.0, 50.0),
]


def test_a_table() -> None:
    head, refused, streamed, _ = table(ROWS).splitlines()
    assert head.split() == "limit s/step s/image peak planned host peak planned placement".split()
    assert "refused: memory_limit='1.22GB' is the smallest that works" in refused
    assert "3.50" in streamed
    assert "1.85 GB  1.90 GB" in streamed


def test_a_plot(tmp_path: Path) -> None:
    plot(ROWS, "a model", tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_synthetic_models_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDENGINE_BENCH_CACHE", str(tmp_path))
    with pytest.raises(ParameterError, match="no synthetic model; those are sd15, sdxl"):
        synthetic_model("sd99")
    with pytest.raises(
        ParameterError, match=r"bench/synthetic.py --model flux-dev --weight-type q8_0"
    ):
        synthetic_model("flux-dev-q8_0")
    (tmp_path / "flux-dev").mkdir()
    for file in (tmp_path / "sd15-q8_0.gguf", tmp_path / "flux-dev" / "flux-dev-q4_0.gguf"):
        file.touch()
        assert synthetic_model(file.stem) == file
        assert synthetic_model(file.stem.rpartition("-")[0]) == file


def test_the_command() -> None:
    options = ["--width", "64", "--height", "64", "--steps", "1", "--json"]
    done = CliRunner().invoke(main, ["bench", "--memory-limit", "2MB,2GB", *options])
    assert done.exit_code == 0, done.output
    refused, made = json.loads(done.stdout)
    assert "is the smallest that works" in refused["refused"]
    assert 0 < made["peak"] <= 2 * 10**9
    assert made["planned"] == pytest.approx(made["peak"], rel=0.25)  # Python, for the most part
    done = CliRunner().invoke(main, ["bench", "--memory-limit", "much"])
    assert done.exit_code == 2
