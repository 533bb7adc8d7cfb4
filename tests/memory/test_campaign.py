"""The benchmark of limits, on the demo model in the place of a full-size one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sdengine.api import DEMO_MODEL

BENCH = Path(__file__).resolve().parents[2] / "bench"
RESULT: dict[str, Any] = {
    **{"model": "sd15", "size": 512, "limit": "1GB", "limit_bytes": 10**9, "steps": 1},
    **{"threads": 1, "device": "cpu", "placement": "unet disk, 60 % stay", "refused": ""},
    **{"planned": 950_000_000, "peak": 910_000_000, "peak_own": 250_000_000},
    **{"step": 6.5, "image": 140.0},
}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    module = __import__("memory")
    for name in ("memory", "measuring", "shapes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return module


def run(memory: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["memory.py", *options])
    memory.main()


def test_a_campaign_is_measured_once(
    memory: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SDENGINE_BENCH_CACHE", str(tmp_path))
    (tmp_path / "sd15-q8_0.gguf").symlink_to(DEMO_MODEL)
    document = tmp_path / "memory.md"
    document.write_text(f"before\n{memory.BEGIN}\nold\n{memory.END}\nafter\n")
    options = ["--models", "sd15", "--size", "64", "--limits", "2MB,2GB", "--threads", "1"]
    options += ["--json", str(tmp_path / "found.json"), "--docs", str(document)]
    run(memory, monkeypatch, *options, "--plot", str(tmp_path / "plot.svg"))
    refused, made = json.loads((tmp_path / "found.json").read_text())["results"]
    assert "is the smallest that works" in refused["refused"]
    assert 0 < made["peak_own"] < made["peak"] < made["limit_bytes"] == 2 * 10**9
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| sd15 | 64 | 2GB |" in text

    monkeypatch.setattr(memory, "measure", lambda case: pytest.fail("measured again"))
    capsys.readouterr()
    run(memory, monkeypatch, *options)
    assert "| sd15 | 64 | 2MB | refused: " in capsys.readouterr().out


def test_it_fails_where_a_limit_is_exceeded(
    memory: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"results": [RESULT]}))
    options = ["--draw-only", "--json", str(path)]
    run(memory, monkeypatch, *options)
    path.write_text(json.dumps({"results": [{**RESULT, "peak": 10**9 + 1}]}))
    with pytest.raises(SystemExit, match=r"above their limits: sd15 512: 1.00 GB within 1GB"):
        run(memory, monkeypatch, *options)


def test_the_plot_is_the_same_for_the_same_figures(memory: ModuleType, tmp_path: Path) -> None:
    other = {**RESULT, "limit": "2GB", "limit_bytes": 2 * 10**9, "step": 6.0}
    for name in ("a.svg", "b.svg"):
        memory.plot([RESULT, other], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_unknown_models(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no cases of sd99; known are sd15, sdxl"):
        run(memory, monkeypatch, "--models", "sd99")
