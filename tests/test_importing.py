"""What importing the package brings along: little, so that a script or the command line starts at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sdengine

ON_IMPORT = {
    "sdengine",
    "sdengine._core",
    "sdengine._core.kernels",
    "sdengine.devices",
    "sdengine.errors",
}
SLOW = {"PIL", "gguf", "numpy", "sentencepiece", "tokenizers", "yaml"}
"""Packages of which each takes milliseconds; some of them bring others."""
USED_BY_A_PIPELINE = {"PIL", "numpy", "sentencepiece", "tokenizers"}
NEVER = {"diffusers", "huggingface_hub", "requests", "torch", "transformers"}


def modules_after(statement: str) -> set[str]:
    """Modules of a new interpreter that ran this."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_importing_brings_nothing_slow() -> None:
    found = modules_after("import sdengine")
    assert {name for name in found if name.partition(".")[0] == "sdengine"} == ON_IMPORT
    assert not found & (SLOW | NEVER)


def test_a_pipeline_brings_what_it_uses() -> None:
    found = modules_after("import sdengine; sdengine.load, sdengine.generate, sdengine.Pipeline")
    assert found & SLOW == USED_BY_A_PIPELINE
    assert not found & NEVER


def test_every_public_name_is_there() -> None:
    assert all(getattr(sdengine, name) is not None for name in sdengine.__all__)
    assert set(sdengine.__all__) <= set(dir(sdengine))
    assert callable(sdengine.devices)  # the function, not the module of that name


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pipelime'"):
        _ = sdengine.Pipelime
