"""A device against the CPU: every kind of layer, every kind of network, and a picture.

Not part of the default run: `nox -s vulkan`, or `SDENGINE_TEST_DEVICE=cuda:0 pytest tests/device` where there is one.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine import _core
from sdengine.api import DEMO_MODEL
from sdengine.device_checks import CHECKS, Check, compare, relative_error
from sdengine.devices import open_device
from tests.portable.test_networks import INSTANCES, QUANTIZED, inputs_of, store_of

NAME = os.environ["SDENGINE_TEST_DEVICE"]


@cache
def devices() -> tuple[_core.Device, _core.Device]:
    return open_device(NAME), _core.Device.cpu(1)


def test_it_is_listed() -> None:
    found = {device.name: device for device in sdengine.devices()}
    assert NAME in found, (list(found), sdengine.unusable_backends())
    assert found[NAME].memory > 0
    assert found[NAME].description


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.title)
def test_a_layer(check: Check) -> None:
    result = compare(check, *devices())
    assert result.passed, result


def compared(instance: dict[str, Any], path: Path, held: str = "f32") -> float:
    """The largest relative error of an output."""
    kind, config = instance["kind"], instance["config"]
    found, expected = (
        _core.Network(kind, config, store_of(kind, config, path, held), device).run(
            inputs_of(instance), instance["options"]
        )
        for device in devices()
    )
    assert found.keys() == expected.keys()
    return max(relative_error(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda instance: instance["kind"])
def test_a_network(instance: dict[str, Any], tmp_path: Path) -> None:
    assert compared(instance, tmp_path / "weights") <= 1e-3


@pytest.mark.parametrize("held", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("kind", ["unet", "autoencoder_kl_decoder", "flux", "clip_text"])
def test_quantized(kind: str, held: str, tmp_path: Path) -> None:
    """`nox -s vulkan` switches 8-bit activations off; where a card takes them, that is an error of its own."""
    instance = next(instance for instance in INSTANCES if instance["kind"] == kind)
    exact = held == "f16" or "GGML_VK_DISABLE_INTEGER_DOT_PRODUCT" in os.environ
    assert compared(instance, tmp_path / "weights", held) <= (1e-3 if exact else QUANTIZED)


def test_a_picture() -> None:
    options: dict[str, Any] = {"seed": 1, "steps": 2, "width": 64, "height": 64}
    found, expected = (
        np.asarray(
            sdengine.load(DEMO_MODEL, device=name).generate("a red circle", **options).image,
            np.float32,
        )
        for name in (NAME, "cpu")
    )
    assert np.abs(found - expected).mean() <= 0.5  # of 255
