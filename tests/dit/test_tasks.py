"""What every family does beside text to image, and three ways to give a prompt: the same picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from tests.qwen_models import tiny_qwen_folder

from .lumina_models import tiny_lumina_folder
from .pixart_models import ALPHA, SIGMA, tiny_pixart_folder

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
SIZE = {"width": 64, "height": 96}
RUN: dict[str, Any] = {"steps": 2, "seed": 5, **SIZE}
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "qwen_image": tiny_qwen_folder,
    "lumina2": tiny_lumina_folder,
    "pixart_sigma": lambda path: tiny_pixart_folder(path, SIGMA, "PixArtSigmaPipeline"),
    "pixart_alpha": lambda path: tiny_pixart_folder(path, ALPHA, "PixArtAlphaPipeline"),
}


@pytest.fixture(scope="module", params=[*FOLDERS, "sd3", "flux"])
def pipe(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> sdengine.Pipeline:
    if request.param == "sd3":
        return sdengine.load(request.getfixturevalue("sd3_folder"))
    if request.param == "flux":
        return sdengine.load(request.getfixturevalue("flux_folder")("FluxPipeline"))
    return sdengine.load(FOLDERS[request.param](tmp_path_factory.mktemp(request.param) / "model"))


def result(pipe: sdengine.Pipeline, *texts: Any, **options: Any) -> sdengine.Result:
    found = pipe.generate(*texts, **{**RUN, **options})
    assert np.isfinite(found.latents).all()
    return found


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels.astype(np.uint8))


def test_a_second_pass(pipe: sdengine.Pipeline) -> None:
    for upscaler in ("latent", "lanczos"):
        found = result(pipe, PROMPT, hires_scale=1.5, hires_upscaler=upscaler)
        assert found.image.size == (96, 144)
        assert found.latents.shape[-2:] == (18, 12)


def test_image_to_image(pipe: sdengine.Pipeline) -> None:
    """Less strength stays nearer to the picture."""
    given = picture(64, 96)
    apart = []
    for strength in (0.25, 1.0):
        run = pipe.start(PROMPT, image=given, strength=strength, **{**RUN, "steps": 4})
        while not run.done:
            run.step()
        assert len(run.latents) == 1
        apart.append(run.latents)
    start = pipe.vae.encode(np.asarray(given, np.float32)[None].transpose(0, 3, 1, 2) / 127.5 - 1)
    near, far = (float(np.linalg.norm(latents - start)) for latents in apart)
    assert near < far


def test_inpainting_leaves_the_rest(pipe: sdengine.Pipeline) -> None:
    given, mask = picture(64, 96), Image.new("L", (64, 96))
    mask.paste(255, (16, 32, 48, 64))
    found = np.asarray(result(pipe, PROMPT, image=given, mask=mask, strength=0.9).image)
    kept = np.asarray(mask) == 0
    assert np.array_equal(found[kept], np.asarray(given)[kept])
    assert not np.array_equal(found, np.asarray(given))


def test_in_tiles(pipe: sdengine.Pipeline) -> None:
    found = result(pipe, PROMPT, width=128, tiled_diffusion=64)
    assert found.image.size == (128, 96)
    # One tile is the whole picture.
    whole = result(pipe, PROMPT, tiled_diffusion=128)
    np.testing.assert_array_equal(whole.latents, result(pipe, PROMPT).latents)


def test_a_batch_is_each_alone(pipe: sdengine.Pipeline) -> None:
    prompts, negatives = [PROMPT, "two"], ["x", NEGATIVE]
    together = result(pipe, prompts, negatives)
    for i in range(2):
        alone = result(pipe, prompts[i], negatives[i], seed=RUN["seed"] + i)
        np.testing.assert_array_equal(together.latents[i : i + 1], alone.latents)


def test_encoded_prompts(pipe: sdengine.Pipeline) -> None:
    """`conditioning=` is the prompt, and `predict` what a run asks the denoiser."""
    plain = result(pipe, PROMPT, NEGATIVE, guidance_scale=1.0, steps=1)
    cond = pipe.encode_prompt(PROMPT, NEGATIVE)
    again = result(pipe, conditioning=cond, guidance_scale=1.0, steps=1)
    np.testing.assert_array_equal(again.latents, plain.latents)
    guided = result(pipe, PROMPT, NEGATIVE)
    np.testing.assert_array_equal(result(pipe, conditioning=cond).latents, guided.latents)


def test_predictions_of_a_batch(pipe: sdengine.Pipeline) -> None:
    cond = pipe.encode_prompt([PROMPT, "two"])
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, pipe.model.latents.channels, 12, 8)).astype(np.float32)
    together = pipe.predict(latents, [900.0, 300.0], cond)
    for i, (prompt, t) in enumerate(((PROMPT, 900.0), ("two", 300.0))):
        alone = pipe.predict(latents[i : i + 1], t, pipe.encode_prompt(prompt))
        np.testing.assert_array_equal(together[i : i + 1], alone)
