"""Memory of full-size networks grows with the picture's area, not with its square."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine import _core
from sdengine.formats import DTYPES
from tests import unet_inventories
from tests.models import tiny_sd1_folder

SIDES = (512, 1024, 1536, 2048)
SDXL = "SDXL, Turbo, ..."


def network(
    path: Path, kind: str, config: Mapping[str, Any], portable: bool = False
) -> _core.Network:
    """A network whose parameters lie in a file without contents: it takes no disk, and planning reads none."""
    places, end = [], 0
    for name, shape in _core.parameters(kind, config):
        dtype = "f32" if len(shape) == 1 else "f16"
        nbytes = DTYPES[dtype].nbytes(math.prod(shape))
        places.append((name, dtype, list(shape), path, end, nbytes))
        end += nbytes
    with path.open("wb") as file:
        file.truncate(end)
    store = _core.WeightStore()
    for place in places:
        store.add(*place)
    return _core.Network(kind, dict(config), store, _core.Device.cpu(1, portable=portable))


def unet_shapes(config: Mapping[str, Any], side: int) -> dict[str, list[int]]:
    """Inputs of a guided evaluation."""
    shapes = {
        "latents": [2, config["in_channels"], side // 8, side // 8],
        "timesteps": [2],
        "context": [2, 77, config["cross_attention_dim"]],
    }
    if config["class_embed_dim"]:
        shapes["class_embedding"] = [2, config["class_embed_dim"]]
    return shapes


def assert_linear(planned: Mapping[int, int]) -> None:
    """Bytes per pixel at every size are those of the largest, within 10 %."""
    per_pixel = {side: nbytes / side**2 for side, nbytes in planned.items()}
    for side, found in per_pixel.items():
        assert found == pytest.approx(per_pixel[SIDES[-1]], rel=0.1), (side, per_pixel)


@pytest.mark.parametrize(
    ("member", "most"), [("SD 1.4, 1.5", 0.096e9), (SDXL, 0.102e9)], ids=["sd1", "sdxl"]
)
def test_denoisers(tmp_path: Path, member: str, most: float) -> None:
    config = unet_inventories.detected(member, "diffusers").configs["unet"]
    unet = network(tmp_path / "weights", "unet", config)
    planned = {side: unet.planned_bytes(unet_shapes(config, side), {}) for side in SIDES}
    assert_linear(planned)
    assert planned[512] <= most


@pytest.mark.parametrize("half", ["decoder", "encoder"])
def test_autoencoders(tmp_path: Path, half: str) -> None:
    found = unet_inventories.detected(SDXL, "diffusers")
    assert found.family is not None
    config = unet_inventories.config_of(found.components["vae"], found.family)
    vae = network(tmp_path / "weights", f"autoencoder_kl_{half}", config)
    planned = {}
    for side in SIDES:
        shape = [1, 4, side // 8, side // 8] if half == "decoder" else [1, 3, side, side]
        name = "latents" if half == "decoder" else "image"
        planned[side] = vae.planned_bytes({name: shape}, {})
    assert_linear(planned)
    assert planned[1024] <= 2.15e9


def test_large_activations_leave_memory_between_runs(tmp_path: Path) -> None:
    pipe = sdengine.load(tiny_sd1_folder(tmp_path / "model", seed=1), threads=1)
    latents = np.random.default_rng(0).standard_normal((1, 4, 72, 72)).astype(np.float32)
    decoder = pipe.vae.decoder
    inputs = {"latents": latents}
    first = decoder.run(inputs, {})
    planned = decoder.planned_bytes({"latents": [1, 4, 72, 72]}, {})
    assert decoder.activation_bytes == planned > 64 << 20  # smaller ones stay
    held = resident_bytes()
    decoder.release_activations()
    if sys.platform == "linux":
        assert decoder.activation_bytes == 0
        assert held - resident_bytes() > 0.8 * planned
    second = decoder.run(inputs, {})
    assert decoder.activation_bytes == planned
    assert decoder.graphs_built == 1
    assert all(np.array_equal(second[name], first[name]) for name in first)
    pipe.decode_latents(latents, tile=0)
    assert sys.platform != "linux" or decoder.activation_bytes == 0


def resident_bytes() -> int:
    """Of this process now; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * mmap.PAGESIZE if status.is_file() else 0
