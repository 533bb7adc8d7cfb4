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
from tests.portable.test_networks import INSTANCES, inputs_of, store_of

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


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda instance: instance["kind"])
def test_a_network(instance: dict[str, Any], tmp_path: Path) -> None:
    kind, config = instance["kind"], instance["config"]
    found, expected = (
        _core.Network(kind, config, store_of(kind, config, tmp_path / "weights"), device).run(
            inputs_of(instance), instance["options"]
        )
        for device in devices()
    )
    assert found.keys() == expected.keys()
    for name in expected:
        assert relative_error(found[name], expected[name]) <= 1e-3


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
