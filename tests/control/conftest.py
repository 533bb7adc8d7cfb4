"""Tiny models and control networks, each written once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sdengine import _core
from sdengine.loading import plan_model
from sdengine.loading.control import plan_control
from sdengine.stores import make_store
from tests import unet_models

from .dit_models import Made
from .models import controlnet_folder

Array = np.ndarray


def relative_error(found: Array, expected: Array) -> float:
    """Relative L2 error."""
    assert found.shape == expected.shape
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def picture(width: int, height: int, seed: int = 0) -> Array:
    """A smooth picture, uint8 ``[H, W, 3]``."""
    y, x = np.mgrid[0:height, 0:width] / 16.0
    waves = [np.sin(x * (1 + c) + seed) * np.cos(y * (2 - c / 2) - seed) for c in range(3)]
    return np.asarray(127.5 + 127.5 * np.stack(waves, axis=-1), np.uint8)


class Folders:
    """Tiny models, and ControlNets for them under ``<name>-control``, ``<name>-control-<seed>``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, name: str) -> Path:
        path = self.root / name
        if path.exists():
            return path
        model, _, control = name.partition("-control")
        if control or name != model:
            return controlnet_folder(path, model, int(control.lstrip("-") or 0))
        return unet_models.tiny_folder(path, name, seed=4)


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("control"))


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("dit-control"))


@cache
def device() -> _core.Device:
    return _core.Device.cpu(1)


def control_network(path: Path, model: Path) -> _core.Network:
    """A control network, loaded for a model as `sdengine.load` does."""
    plan = plan_control(path, plan_model(model))
    return _core.Network(plan.kind, dict(plan.config), make_store(plan), device())
