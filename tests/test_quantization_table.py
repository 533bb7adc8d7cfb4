"""The table of converted files in docs/formats.md is what bench/quantization.py computes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "quantization", ROOT / "bench" / "quantization.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_documented_sizes(script: ModuleType) -> None:
    documented = (ROOT / "docs" / "formats.md").read_text("utf-8")
    assert script.table(script.size_rows()) in documented
    assert script.table(script.kept_rows()) in documented


def test_every_byte_has_a_reason_or_the_type_of_the_file(script: ModuleType) -> None:
    member = "SD 1.4, 1.5"
    larger = script.kept(member, "q4_k")
    # Rows of 320 and 640 values take the next type for blocks of 32.
    assert larger[script.ROWS_DO_NOT_FIT, "q5_0"] > 0
    assert sum(larger.values()) < script.size(member, "q4_k") < script.size(member, "q8_0")


def test_errors_grow_as_types_shrink(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "WIDER", 1)
    found = script.errors("sd1", tmp_path, ("q8_0", "q4_0"))
    assert 1e-3 < found["q8_0"] < found["q4_0"] < 0.2


SMALL = ("mmdit", "flux", "qwen_image", "lumina2", "pixart", "t5_text", "gemma2", "qwen2")


def test_every_family_is_measured(script: ModuleType) -> None:
    assert tuple(script.TRANSFORMERS.values()) == SMALL


@pytest.mark.parametrize("name", SMALL)
def test_products_lose_nothing_that_the_type_did_not(
    script: ModuleType, name: str, tmp_path: Path
) -> None:
    found = script.transformer_losses(name, tmp_path, ("q8_0", "q4_k", "q4_0"))
    assert 5e-4 < found["q8_0"].weights < found["q4_k"].weights < found["q4_0"].weights < 0.5
    assert all(loss.products <= 1e-6 for loss in found.values())
