"""Tiny networks of several kinds, on the CPU and on a device with memory of its own.

That is the CPU seen as one, or what SDENGINE_TEST_DEVICE names (`nox -s vulkan`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdengine import _core
from sdengine.devices import PORTABLE, open_device
from sdengine.loading import ComponentPlan, plan_model
from sdengine.stores import make_store
from tests.dit_models import tiny_flux_folder
from tests.models import tiny_sd1_folder

Arrays = Mapping[str, np.ndarray]
NAME = os.environ.get("SDENGINE_TEST_DEVICE", PORTABLE)


@dataclass(frozen=True)
class Tiny:
    """A network with inputs that it can be given."""

    kind: str
    plan: ComponentPlan
    inputs: Arrays

    def on(self, *devices: _core.Device, **more: Any) -> _core.Network:
        device = devices[0] if len(devices) == 1 else devices
        return _core.Network(
            self.kind, dict(self.plan.config), make_store(self.plan), device, **more
        )

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: list(array.shape) for name, array in self.inputs.items()}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _unet(sd1: Path, flux: Path) -> Tiny:
    inputs = {
        "latents": noise(2, 4, 8, 8),
        "timesteps": np.full(2, 421.0, np.float32),
        "context": noise(2, 7, 128),
    }
    return Tiny("unet", plan_model(sd1).components["unet"], inputs)


def _text(sd1: Path, flux: Path) -> Tiny:
    ids = np.arange(8, dtype=np.int32).reshape(1, 8)
    return Tiny("clip_text", plan_model(sd1).components["text_encoder"], {"ids": ids})


def _decoder(sd1: Path, flux: Path) -> Tiny:
    plan = plan_model(sd1).components["vae"]
    return Tiny("autoencoder_kl_decoder", plan, {"latents": noise(1, 4, 8, 8)})


def _flux(sd1: Path, flux: Path) -> Tiny:
    inputs = {
        "latents": noise(1, 16, 8, 8),
        "timesteps": np.full(1, 0.4, np.float32),
        "context": noise(1, 6, 32),
        "pooled": noise(1, 768),
        "guidance": np.full(1, 3.5, np.float32),
    }
    return Tiny("flux", plan_model(flux).components["transformer"], inputs)


def _t5(sd1: Path, flux: Path) -> Tiny:
    ids = np.arange(8, dtype=np.int32).reshape(1, 8)
    return Tiny("t5_text", plan_model(flux).components["text_encoder_2"], {"ids": ids})


KINDS: dict[str, Callable[[Path, Path], Tiny]] = {
    "unet": _unet,
    "clip_text": _text,
    "autoencoder_kl_decoder": _decoder,
    "flux": _flux,
    "t5_text": _t5,
}


@pytest.fixture(scope="package")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    root = tmp_path_factory.mktemp("residency")
    sd1, flux = tiny_sd1_folder(root / "sd1"), tiny_flux_folder(root / "flux")
    return {name: make(sd1, flux) for name, make in KINDS.items()}


def new_device(threads: int = 1) -> _core.Device:
    """With counters of its own, also where it is the same card."""
    return open_device(NAME, threads)


@pytest.fixture
def device() -> _core.Device:
    return new_device()


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name


def on_device(planned: Mapping[str, int]) -> int:
    """Bytes of a footprint that a device holds; staging memory is the host's."""
    return planned["activations"] + planned["weights"]
