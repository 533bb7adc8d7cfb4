"""Qwen-Image's autoencoder of one picture against diffusers' autoencoder of videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file

import sdengine
from sdengine.autoencoder import Autoencoder
from tests.models import randomise
from tests.qwen_models import VAE_CONFIG, tiny_qwen_folder
from tests.renaming_qwen import vae_to_wan

from .conftest import relative_error
from .reference_autoencoders import open_autoencoder

LIMIT = 1e-4
FILE = "vae/diffusion_pytorch_model.safetensors"
MEAN, DEVIATION = (
    torch.tensor(AutoencoderKLQwenImage(**VAE_CONFIG).config[key]).view(1, -1, 1, 1)
    for key in ("latents_mean", "latents_std")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_folder(tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="module", params=["diffusers", "Wan", "two-resnets"])
def pair(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Autoencoder, AutoencoderKLQwenImage]:
    """The engine's autoencoder and diffusers', over the same values."""
    if request.param == "diffusers":
        return open_autoencoder(folder), AutoencoderKLQwenImage.from_pretrained(folder / "vae")
    torch.manual_seed(3)
    more = {"num_res_blocks": 2} if request.param == "two-resnets" else {}
    module = AutoencoderKLQwenImage(**{**VAE_CONFIG, **more}).eval()
    randomise(module, 3)
    path = tmp_path_factory.mktemp("vae") / "qwen_image_vae.safetensors"
    save_file({n: t.contiguous() for n, t in vae_to_wan(module.state_dict()).items()}, path)
    return open_autoencoder(folder, path), module


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def decoded(module: AutoencoderKLQwenImage, latents: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        plain = torch.tensor(latents) * DEVIATION + MEAN
        return module._decode(plain.unsqueeze(2), return_dict=False)[0][:, :, 0].numpy()


def test_decoder(pair: tuple[Autoencoder, AutoencoderKLQwenImage]) -> None:
    latents = noise(2, 16, 6, 10)
    found, expected = pair[0].decode(latents), decoded(pair[1], latents)
    inside = np.abs(expected) < 1  # diffusers clips
    assert inside.mean() > 0.5
    assert relative_error(np.clip(found, -1, 1), expected) <= LIMIT


def test_encoder(pair: tuple[Autoencoder, AutoencoderKLQwenImage]) -> None:
    picture = np.clip(noise(2, 3, 48, 80, seed=1), -1, 1)
    with torch.no_grad():
        posterior = pair[1].encode(torch.tensor(picture).unsqueeze(2)).latent_dist
    mean, deviation = pair[0].posterior(picture)
    expected = (posterior.mean[:, :, 0] - MEAN) / DEVIATION
    assert relative_error(mean, expected.numpy()) <= LIMIT
    assert relative_error(deviation, (posterior.std[:, :, 0] / DEVIATION).numpy()) <= LIMIT


def test_tiles(pair: tuple[Autoencoder, AutoencoderKLQwenImage]) -> None:
    """Tiles as large as the picture change nothing; smaller ones little."""
    latents = noise(1, 16, 24, 40)
    whole = pair[0].decode(latents, tile=0)
    tiled = pair[0].decode(latents, tile=16)
    assert tiled.shape == whole.shape
    assert np.isfinite(tiled).all()
    assert relative_error(tiled, whole) < 0.5
    picture = np.clip(noise(1, 3, 192, 320, seed=1), -1, 1)
    assert pair[0].encode(picture, tile=16).shape == (1, 16, 24, 40)


def test_only_the_last_slice_over_time_counts(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / FILE)
    latents = noise(1, 16, 4, 4)
    expected = open_autoencoder(folder).decode(latents)
    for name, tensor in state.items():
        if tensor.ndim == 5 and "time_conv" not in name:
            tensor[:, :, :-1] = 100.0
    save_file(state, tmp_path / "vae.safetensors")
    found = open_autoencoder(folder, tmp_path / "vae.safetensors").decode(latents)
    np.testing.assert_array_equal(found, expected)


def test_another_models_autoencoder_is_refused(folder: Path, sd1_folder: Path) -> None:
    with pytest.raises(sdengine.ParameterError, match="holds no vae of Qwen-Image"):
        sdengine.load(folder, vae=sd1_folder / "vae")
