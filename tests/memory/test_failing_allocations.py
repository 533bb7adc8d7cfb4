"""Every allocation of a whole generation may fail: a typed error or the picture, and the next one is right.

``nox -s sanitize`` runs this with the leak checker (docs/memory.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine import _core
from sdengine.api import DEMO_MODEL
from sdengine.device_checks import relative_error
from sdengine.errors import OutOfMemoryError

from .conftest import PROMPT
from .leaks import assert_no_leaks

OPTIONS: dict[str, Any] = {"steps": 1, "seed": 5, "width": 64, "height": 64, "guidance_scale": 4.0}
CASES: dict[str, dict[str, Any]] = {
    "text": {},
    "picture": {"image": Image.new("RGB", (64, 64), "red"), "strength": 1.0},
    "hires": {"hires_scale": 1.5, "hires_upscaler": "lanczos", "hires_strength": 1.0},
}
DEVICES = ("cpu", "cpu:portable")
Generate = Callable[[], np.ndarray]


@pytest.fixture(autouse=True)
def failures_end() -> Iterator[None]:
    yield
    _core.fail_allocation(0)


@pytest.fixture(scope="module", params=DEVICES)
def pipe(request: pytest.FixtureRequest, plain_model: Path) -> sdengine.Pipeline:
    """With a limit, so that generations are planned and placed."""
    return sdengine.load(
        plain_model, device=request.param, threads=1, prompt_cache=False, memory_limit="8GB"
    )


def bare(pipe: sdengine.Pipeline) -> None:
    """Give everything back that can be."""
    for network in pipe.networks.values():
        network.set_residency("disk")  # what is resident leaves
        network.set_residency("offload")
        network.release()


def allocated(pipe: sdengine.Pipeline) -> int:
    return sum(device.allocated_bytes for device in set(pipe.devices))


def failing(pipe: sdengine.Pipeline, generate: Generate, n: int) -> np.ndarray | None:
    """What comes of a generation whose n-th allocation fails; None for an error of memory."""
    bare(pipe)
    _core.fail_allocation(n)
    try:
        return generate()
    except OutOfMemoryError:
        return None
    finally:
        _core.fail_allocation(0)


def allocations(pipe: sdengine.Pipeline, generate: Generate) -> int:
    """How many a generation makes, from nothing."""
    bare(pipe)
    many = 10**6
    _core.fail_allocation(many)
    generate()
    return many - _core.allocations_until_failure()


@pytest.mark.parametrize("case", CASES)
def test_each_alone(pipe: sdengine.Pipeline, case: str) -> None:
    """One fails: most are made again in less memory."""

    def generate() -> np.ndarray:
        return pipe.generate(PROMPT, **OPTIONS, **CASES[case]).latents

    expected = generate()
    count = allocations(pipe, generate)
    assert count >= 8
    made = 0
    for n in range(1, count + 1):
        found = failing(pipe, generate, n)
        made += found is not None
        assert found is None or relative_error(found, expected) <= 1e-5  # batches may be cut
        bare(pipe)
        assert allocated(pipe) == 0
    assert made >= count // 4
    assert relative_error(generate(), expected) <= 1e-5
    assert_no_leaks()


def test_all_from_one_on(pipe: sdengine.Pipeline) -> None:
    """Memory has run out for good: always an error; then there is memory again."""

    def generate() -> np.ndarray:
        return pipe.generate(PROMPT, **OPTIONS).latents

    expected = generate()
    for n in range(1, allocations(pipe, generate) + 1):
        assert failing(pipe, generate, -n) is None, n
        bare(pipe)
        assert allocated(pipe) == 0
    np.testing.assert_array_equal(generate(), expected)
    assert_no_leaks()


def test_loading() -> None:
    """What is converted when a model is loaded."""
    load = {"device": "cpu", "threads": 1, "prompt_cache": False, "weight_type": "f16"}
    _core.fail_allocation(10**6)
    pipe = sdengine.load(DEMO_MODEL, **load)
    count = 10**6 - _core.allocations_until_failure()
    assert count > 3
    expected = pipe.generate(PROMPT, **OPTIONS).latents
    for n in {1, 2, count // 2, count}:
        _core.fail_allocation(n)
        with pytest.raises(OutOfMemoryError, match="a converted parameter"):
            sdengine.load(DEMO_MODEL, **load)
        _core.fail_allocation(0)
    again = sdengine.load(DEMO_MODEL, **load).generate(PROMPT, **OPTIONS).latents
    np.testing.assert_array_equal(again, expected)
    assert_no_leaks()
