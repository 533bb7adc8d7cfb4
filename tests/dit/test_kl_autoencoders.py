"""The 16-channel autoencoders of SD3 and FLUX.1, with a shift and no quant convolutions, against diffusers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sdengine
from tests.parity.conftest import relative_error
from tests.renaming import vae_to_ldm

from .conftest import Folders

LIMIT = 1e-4
FIGURES = {"sd3": (1.5305, 0.0609), "flux": (0.3611, 0.1159)}


@pytest.fixture(scope="module")
def folders(sd3_folder: Path, flux_folder: Folders) -> dict[str, Path]:
    return {"sd3": sd3_folder, "flux": flux_folder("FluxPipeline")}


@pytest.mark.parametrize("layout", ["folder", "single file"])
@pytest.mark.parametrize("family", FIGURES)
def test_parity(family: str, layout: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folders[family] / "vae").eval()
    scale, shift = FIGURES[family]
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (scale, shift)
    assert (vae.quant_conv, vae.post_quant_conv) == (None, None)
    given = None
    if layout == "single file":
        given = tmp_path / "ae.safetensors"
        save_file({n: t.contiguous() for n, t in vae_to_ldm(vae.state_dict()).items()}, given)
    pipe = sdengine.load(folders[family], vae=given)

    rng = np.random.default_rng(2)
    latents = rng.standard_normal((2, 16, 6, 10), np.float32)
    with torch.no_grad():
        expected = vae.decode(torch.tensor(latents) / scale + shift).sample.numpy()
    assert relative_error(pipe.decode_latents(latents, output_type="numpy"), expected) <= LIMIT

    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    pixels = rng.integers(0, 256, (6 * factor, 10 * factor, 3), np.uint8)
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    with torch.no_grad():
        expected = ((vae.encode(image).latent_dist.mode() - shift) * scale).numpy()
    assert relative_error(pipe.encode_image(Image.fromarray(pixels)), expected) <= LIMIT
