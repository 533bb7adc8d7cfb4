"""``load(arithmetic=...)``: how much may be rounded to be faster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sdengine
from sdengine import _core
from sdengine.api import DEMO_MODEL
from sdengine.metadata import format_parameters, parse_parameters

UNITS = [unit for unit in _core.kernels.units() if not unit.endswith("plain")]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_the_method_of_convolutions_changes_only_the_last_digits() -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16), np.float32)
    standard, precise = (
        sdengine.load(DEMO_MODEL, arithmetic=arithmetic).decode_latents(
            latents, output_type="numpy"
        )
        for arithmetic in ("standard", "precise")
    )
    assert 0 < relative_error(standard, precise) <= 1e-5


@pytest.mark.parametrize("weight_type", ["f16", "q8_0", "q4_0"])
def test_fast_stays_near(weight_type: str) -> None:
    """What 8 bits and bfloat16 leave of a whole network, whose weights are the same in both."""
    latents = np.random.default_rng(0).standard_normal((2, 4, 16, 16), np.float32)
    predictions = []
    for arithmetic in ("standard", "fast"):
        pipe = sdengine.load(DEMO_MODEL, weight_type=weight_type, arithmetic=arithmetic)
        predictions.append(pipe.predict(latents, 500, pipe.encode_prompt("a red circle")))
    difference = relative_error(predictions[1], predictions[0])
    assert difference <= 2e-2
    assert (difference > 1e-5) == bool(UNITS)


def test_a_picture_says_that_it_was_fast() -> None:
    for arithmetic, said in (("standard", None), ("precise", None), ("fast", "fast")):
        pipe = sdengine.load(DEMO_MODEL, arithmetic=arithmetic)
        run = pipe.start("a red circle", steps=1, width=64, height=64)
        text = format_parameters(run.metadata()[0])
        assert parse_parameters(text).get("arithmetic") == said


def test_a_copy_calculates_alike() -> None:
    for arithmetic in ("precise", "fast"):
        pipe = sdengine.load(DEMO_MODEL, arithmetic=arithmetic)
        assert {device.arithmetic for device in pipe.source.open()._devices} == {arithmetic}
    assert {d.arithmetic for d in sdengine.load(DEMO_MODEL)._devices} == {"standard"}


def test_kept_prompts_are_not_shared(tmp_path: Path) -> None:
    """Text encoders round too."""
    found = [
        sdengine.load(DEMO_MODEL, arithmetic=arithmetic, prompt_cache=tmp_path)
        .encode_prompt("a red circle")
        .context
        for arithmetic in ("standard", "fast")
    ]
    assert np.array_equal(found[0], found[1]) == (not UNITS)


def test_other_words_are_refused() -> None:
    for value in ("quick", True, None):
        with pytest.raises(sdengine.ParameterError, match="arithmetic must be one of 'precise'"):
            sdengine.load(DEMO_MODEL, arithmetic=value)  # type: ignore[arg-type]
    with pytest.raises(sdengine.ParameterError, match="precise, standard or fast, not 'quick'"):
        _core.Device.cpu(1).set_arithmetic("quick")


@pytest.mark.parametrize("limit", ["plain", "avx2"])
def test_a_limit_of_the_instruction_set_holds_for_it(limit: str) -> None:
    if limit not in _core.kernels.isas() or "int8_avxvnni" in UNITS:
        limit = "plain"
    script = (
        "import sys, numpy, sdengine\n"
        "from sdengine.api import DEMO_MODEL\n"
        "x = numpy.random.default_rng(0).standard_normal((1, 4, 8, 8), numpy.float32)\n"
        "p = [sdengine.load(DEMO_MODEL, arithmetic=a) for a in ('standard', 'fast')]\n"
        "a, b = (q.predict(x, 500, q.encode_prompt('a')) for q in p)\n"
        "sys.exit(not numpy.array_equal(a, b))\n"
    )
    environment = {**os.environ, "SDENGINE_CPU": limit}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
