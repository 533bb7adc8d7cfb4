"""Each network of Stable Diffusion 1 against diffusers and transformers, float32: relative L2 error <= 1e-4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

import sdengine
from tests.models import (
    write_allinone_gguf,
    write_city96_gguf,
    write_ldm_ckpt,
    write_ldm_safetensors,
)

from .conftest import relative_error

LIMIT = 1e-4
PROMPT = "an oil painting of a quick brown fox at night"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference_unet(
    folder: Path, latents: np.ndarray, timestep: float, context: np.ndarray
) -> np.ndarray:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    with torch.no_grad():
        return unet(torch.tensor(latents), timestep, torch.tensor(context)).sample.numpy()


@pytest.mark.parametrize(
    "size", [(1, 16, 16), (2, 16, 24), (1, 9, 13)], ids=["square", "batch", "odd"]
)
def test_unet(sd1_variant: Path, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    pipe = sdengine.load(sd1_variant)
    channels = pipe.config["unet"]["in_channels"]
    cond = pipe.encode_prompt([PROMPT] * batch)
    latents = noise(batch, channels, height, width)
    found = pipe.predict(latents, 421.0, cond)
    assert relative_error(found, reference_unet(sd1_variant, latents, 421.0, cond.context)) <= LIMIT


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_clip_with_every_clip_skip(sd1_folder: Path, skip: int) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(sd1_folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(sd1_folder / "text_encoder").eval()
    ids = tokenizer(
        PROMPT, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        states = encoder(ids.input_ids, output_hidden_states=True)
        model = getattr(encoder, "text_model", encoder)
        expected = model.final_layer_norm(states.hidden_states[-skip]).numpy()
    # clip_skip counts as A1111 does: 1 is the last layer.
    found = sdengine.load(sd1_folder).encode_prompt(PROMPT, clip_skip=skip).context
    assert relative_error(found, expected) <= LIMIT


def test_vae_decode(sd1_folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(sd1_folder / "vae").eval()
    latents = noise(2, 4, 6, 10)
    with torch.no_grad():
        expected = vae.decode(torch.tensor(latents) / vae.config.scaling_factor).sample.numpy()
    found = sdengine.load(sd1_folder).decode_latents(latents, output_type="numpy")
    assert relative_error(found, expected) <= LIMIT


def test_vae_encode(sd1_folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(sd1_folder / "vae").eval()
    pixels = np.random.default_rng(3).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    with torch.no_grad():
        expected = vae.encode(image).latent_dist.mode().numpy() * vae.config.scaling_factor
    found = sdengine.load(sd1_folder).encode_image(Image.fromarray(pixels))
    assert relative_error(found, expected) <= LIMIT


def test_tiled_decode_is_seamless(sd1_folder: Path) -> None:
    pipe = sdengine.load(sd1_folder)
    latents = noise(1, 4, 20, 28)
    whole = pipe.decode_latents(latents, output_type="numpy")
    tiled = pipe.decode_latents(latents, output_type="numpy", tile=12)
    assert tiled.shape == whole.shape
    # Group norms see one tile only, so tiles differ a little from the whole; a seam or a shift would differ a lot.
    assert relative_error(tiled, whole) < 0.25
    steps = np.abs(np.diff(tiled, axis=-1)).mean(axis=(0, 1, 2))
    assert steps.max() < 3 * np.median(steps)


def layouts(folder: Path, out: Path) -> dict[str, sdengine.Pipeline]:
    """The same float32 weights in every layout that holds a whole model."""
    return {
        "ldm": sdengine.load(
            write_ldm_safetensors(folder, out / "ldm.safetensors"), tokenizer=folder / "tokenizer"
        ),
        "ckpt": sdengine.load(
            write_ldm_ckpt(folder, out / "ldm.ckpt"), tokenizer=folder / "tokenizer"
        ),
        "gguf": sdengine.load(
            write_allinone_gguf(folder, out / "all.gguf", "f32"), tokenizer=folder / "tokenizer"
        ),
        "city96": sdengine.load(
            write_city96_gguf(folder, out / "unet.gguf", "f32"),
            vae=folder / "vae",
            text_encoders=folder / "text_encoder",
            tokenizer=folder / "tokenizer",
        ),
    }


def test_every_layout_gives_identical_results(sd1_folder: Path, tmp_path: Path) -> None:
    reference = sdengine.load(sd1_folder)
    latents = noise(1, 4, 8, 8)
    expected = reference.predict(latents, 7.0, reference.encode_prompt(PROMPT))
    picture = reference.decode_latents(latents, output_type="numpy")
    for name, pipe in layouts(sd1_folder, tmp_path).items():
        found = pipe.predict(latents, 7.0, pipe.encode_prompt(PROMPT))
        assert np.array_equal(found, expected), name
        assert np.array_equal(pipe.decode_latents(latents, output_type="numpy"), picture), name


def test_graphs_are_built_once(sd1_folder: Path) -> None:
    pipe = sdengine.load(sd1_folder)
    cond = pipe.encode_prompt(PROMPT)
    for step in range(4):
        pipe.predict(noise(1, 4, 8, 8, seed=step), 10.0 * step, cond)
    assert pipe.graphs_built["unet"] == 1
