"""The demo model within limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sdengine
from sdengine import _core
from sdengine.api import DEMO_MODEL

PROMPT = "a red circle on a blue background"
Load = Callable[..., sdengine.Pipeline]


@pytest.fixture(scope="module")
def pipe() -> sdengine.Pipeline:
    """On the CPU, without limits."""
    return sdengine.load(DEMO_MODEL, prompt_cache=False)


@pytest.fixture
def portable() -> Iterator[Load]:
    """Loads the demo model on the CPU seen as a device with memory of its own."""

    def load(**options: Any) -> sdengine.Pipeline:
        return sdengine.load(DEMO_MODEL, device="cpu:portable", prompt_cache=False, **options)

    yield load
    _core.fail_allocation(0)
