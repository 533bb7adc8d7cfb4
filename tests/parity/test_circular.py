"""Pictures that tile: convolutions whose padding wraps around, in x, in y or in both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from sdengine import _core
from sdengine.devices import open_device
from sdengine.errors import ParameterError
from sdengine.loading import plan_model
from sdengine.stores import make_store

from .conftest import relative_error
from .reference_autoencoders import make_circular, open_autoencoder, tiny_reference

LIMIT = 1e-4
AXES = {"x": 1, "y": 2, "xy": 3}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference_vae(folder: Path, axes: str) -> AutoencoderKL:
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    return make_circular(vae, "x" in axes, "y" in axes)


@pytest.fixture(scope="module")
def unet(sd1_folder: Path) -> _core.Network:
    plan = plan_model(sd1_folder).components["unet"]
    return _core.Network(plan.kind, dict(plan.config), make_store(plan), open_device("cpu"))


def unet_inputs(height: int, width: int, batch: int = 1) -> dict[str, np.ndarray]:
    return {
        "latents": noise(batch, 4, height, width),
        "timesteps": np.full(batch, 421.0, np.float32),
        "context": noise(batch, 7, 128, seed=1),
    }


def reference_unet(unet: UNet2DConditionModel, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        context = torch.tensor(inputs["context"])
        return unet(torch.tensor(inputs["latents"]), 421.0, context).sample.numpy()


@pytest.mark.parametrize("axes", AXES)
def test_unet(sd1_folder: Path, unet: _core.Network, axes: str) -> None:
    module = UNet2DConditionModel.from_pretrained(sd1_folder / "unet").eval()
    inputs = unet_inputs(8, 12)
    plain = reference_unet(module, inputs)
    expected = reference_unet(make_circular(module, "x" in axes, "y" in axes), inputs)
    found = unet.run(inputs, {"circular": AXES[axes]})["prediction"]
    assert relative_error(found, expected) <= LIMIT
    assert relative_error(plain, expected) > 0.01


@pytest.mark.parametrize("axes", AXES)
def test_vae(sd1_folder: Path, axes: str) -> None:
    vae, module = open_autoencoder(sd1_folder), reference_vae(sd1_folder, axes)
    latents, image = noise(1, 4, 5, 7), noise(1, 3, 40, 24)
    with torch.no_grad():
        picture = module.decode(torch.tensor(latents) / vae.scale).sample.numpy()
        encoded = module.encode(torch.tensor(image)).latent_dist.mean.numpy() * vae.scale
    assert relative_error(vae.decode(latents, circular=AXES[axes]), picture) <= LIMIT
    assert relative_error(vae.encode(image, circular=AXES[axes]), encoded) <= LIMIT
    assert relative_error(vae.decode(latents), picture) > 0.01


@pytest.mark.parametrize("axes", AXES)
def test_tiny(sd1_folder: Path, tmp_path: Path, axes: str) -> None:
    module = tiny_reference(seed=2)
    module.save_pretrained(tmp_path)
    make_circular(module, "x" in axes, "y" in axes)
    latents = noise(1, 4, 3, 6)
    with torch.no_grad():
        expected = module.decode(torch.tensor(latents)).sample.numpy()
    found = open_autoencoder(sd1_folder, tmp_path).decode(latents, circular=AXES[axes])
    assert relative_error(found, expected) <= LIMIT


def test_a_shifted_input_gives_a_shifted_unet_output(unet: _core.Network) -> None:
    inputs = unet_inputs(8, 12)
    found = unet.run(inputs, {"circular": 3})["prediction"]
    shift = {"shift": (2, 4), "axis": (-2, -1)}  # multiples of the stride of this UNet, 2
    rolled = {**inputs, "latents": np.ascontiguousarray(np.roll(inputs["latents"], **shift))}
    again = unet.run(rolled, {"circular": 3})["prediction"]
    assert relative_error(again, np.roll(found, **shift)) <= 1e-5


@pytest.mark.parametrize("tile", [0, 12], ids=["whole", "tiles"])
def test_edges_of_a_decoded_picture_join(sd1_folder: Path, tile: int) -> None:
    vae = open_autoencoder(sd1_folder)
    y, x = np.meshgrid(np.arange(20) / 20, np.arange(28) / 28, indexing="ij")
    waves = [np.cos(2 * np.pi * t) for t in (x, x + 0.3, y, x + y)]  # smooth across the edges too
    latents = np.stack(waves)[None].astype(np.float32)
    for axis in (-1, -2):
        others = tuple(i for i in range(4) if i != axis % 4)
        across = {}
        for circular in (0, 3):
            picture = vae.decode(latents, tile, circular=circular)
            steps = np.abs(np.diff(picture, axis=axis)).mean(axis=others)
            across[circular] = np.abs(picture.take(0, axis) - picture.take(-1, axis)).mean()
            if circular:
                assert across[circular] <= steps.max()
        assert across[0] > 2 * across[3]


def test_shifted_latents_give_a_shifted_picture_and_back(sd1_folder: Path) -> None:
    vae = open_autoencoder(sd1_folder)
    latents = noise(1, 4, 6, 9)
    picture = vae.decode(latents, circular=3)
    moved = vae.decode(np.roll(latents, (1, 2), (-2, -1)), circular=3)
    assert relative_error(moved, np.roll(picture, (8, 16), (-2, -1))) <= 1e-5
    image = np.ascontiguousarray(np.roll(picture, (8, 16), (-2, -1)))
    back = np.roll(vae.encode(picture, circular=3), (1, 2), (-2, -1))
    assert relative_error(vae.encode(image, circular=3), back) <= 1e-5


def test_tiles_of_a_ring_equal_the_whole(sd1_folder: Path, tmp_path: Path) -> None:
    tiny_reference(seed=3).save_pretrained(tmp_path)
    vae = open_autoencoder(sd1_folder, tmp_path)
    latents = noise(1, 4, 9, 95)
    whole = vae.decode(latents, 0, circular=3)
    found = _core.decode_latents(vae.decoder, latents, 8, 60, 30, 3)
    assert relative_error(found, whole) <= 1e-3


@pytest.mark.parametrize("circular", [-1, 4])
def test_bad_axes(sd1_folder: Path, circular: int) -> None:
    with pytest.raises(ParameterError, match="circular is 0"):
        open_autoencoder(sd1_folder).decode(noise(1, 4, 4, 4), circular=circular)


# -------------------------------------------------------------------------------------- aspects
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 17), (17, 9), (1, 6)])
def test_any_multiple_of_eight(
    sd1_folder: Path, unet: _core.Network, size: tuple[int, int]
) -> None:
    module = UNet2DConditionModel.from_pretrained(sd1_folder / "unet").eval()
    inputs = unet_inputs(*size, batch=2)  # torch has no group norm of one pixel alone
    found = unet.run(inputs)["prediction"]
    assert relative_error(found, reference_unet(module, inputs)) <= LIMIT
