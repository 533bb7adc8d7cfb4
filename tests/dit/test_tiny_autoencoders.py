"""TAESD3 and TAEF1, the tiny autoencoders of 16 channels, in place of SD3's and FLUX.1's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from sdengine import WeightsError
from tests.parity.conftest import relative_error
from tests.parity.dit import noise
from tests.parity.reference_autoencoders import original_names, tiny_reference
from tests.unet_models import write_safetensors

from .conftest import Folders

KINDS = {"sd3": "taesd3", "flux": "taef1"}


@pytest.fixture(scope="module")
def models(sd3_folder: Path, flux_folder: Folders) -> dict[str, Path]:
    return {"sd3": sd3_folder, "flux": flux_folder("FluxPipeline")}


def given(layout: str, name: str, folder: Path) -> tuple[torch.nn.Module, Any]:
    """The reference, and what is given as vae=."""
    reference = tiny_reference(5, latent_channels=16)
    if layout == "diffusers":
        reference.save_pretrained(folder / name)
        return reference, folder / name
    halves = original_names(reference)
    parts = zip(halves, ("encoder", "decoder"), strict=True)
    return reference, [
        write_safetensors(half, folder / f"{name}_{part}.safetensors") for half, part in parts
    ]


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("family", KINDS)
def test_parity(family: str, layout: str, models: dict[str, Path], tmp_path: Path) -> None:
    reference, vae = given(layout, KINDS[family], tmp_path)
    pipe = sdengine.load(models[family], vae=vae)
    latents, pixels = noise(2, 16, 6, 4), np.tanh(noise(2, 3, 48, 32, seed=1))
    with torch.no_grad():
        decoded = reference.decode(torch.tensor(latents)).sample.numpy()
        encoded = reference.encode(torch.tensor(pixels)).latents.numpy()
    # The denoiser's latents are the tiny autoencoder's: no scale and no shift between them.
    assert relative_error(pipe.decode_latents(latents, output_type="numpy"), decoded) <= 1e-4
    assert relative_error(pipe.vae.encode(pixels), encoded) <= 1e-4
    made = pipe.generate("a red circle", width=32, height=48, steps=1, seed=1)
    with torch.no_grad():
        expected = reference.decode(torch.tensor(made.latents)).sample.numpy()
    levels = np.rint((np.clip(expected[0], -1, 1) * 0.5 + 0.5) * 255).transpose(1, 2, 0)
    assert np.abs(np.asarray(made.image, int) - levels).max() <= 1


def test_four_channels_are_another_model_s(models: dict[str, Path], tmp_path: Path) -> None:
    tiny_reference(5).save_pretrained(tmp_path / "taesd")
    for model in models.values():
        with pytest.raises(WeightsError, match="latents of 4 channels, .* takes 16"):
            sdengine.load(model, vae=tmp_path / "taesd")
