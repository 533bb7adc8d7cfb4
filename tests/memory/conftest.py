"""The demo model within limits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sdengine
from sdengine import _core
from sdengine.api import DEMO_MODEL
from sdengine.devices import PORTABLE

PROMPT = "a red circle on a blue background"
Load = Callable[..., sdengine.Pipeline]


@pytest.fixture(scope="module")
def pipe() -> sdengine.Pipeline:
    """On the CPU, without limits."""
    return sdengine.load(DEMO_MODEL, prompt_cache=False)


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with float32 weights: ggml's own products then round nothing."""
    path = tmp_path_factory.mktemp("plain") / "demo.gguf"
    sdengine.convert(DEMO_MODEL, path, weight_type="f32")
    return path


@pytest.fixture
def portable() -> Iterator[Load]:
    """Loads the demo model on the CPU seen as a device with memory of its own, or on SDENGINE_TEST_DEVICE."""
    device = os.environ.get("SDENGINE_TEST_DEVICE", PORTABLE)

    def load(model: Path = DEMO_MODEL, **options: Any) -> sdengine.Pipeline:
        return sdengine.load(model, device=device, prompt_cache=False, **options)

    yield load
    _core.fail_allocation(0)
