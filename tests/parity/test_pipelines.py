"""Whole pipelines of the UNet families against diffusers': same folder, prompt, seed and steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdengine
from tests.unet_models import tiny_folder, tiny_kolors_folder

from .conftest import relative_error

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
SIZE = {"width": 64, "height": 64}
SEED = 7
Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("pipelines")

    @cache
    def get(name: str) -> Path:
        path = root / name
        if name == "kolors":
            return tiny_kolors_folder(path, seed=3)
        return tiny_folder(path, name, seed=3)

    return get


def reference(
    folder: Path, pipeline: str, scheduler: str = "EulerDiscreteScheduler", **options: Any
) -> np.ndarray:
    """Final latents of a diffusers pipeline; `scheduler_` options go to its scheduler."""
    import diffusers

    own = {k.removeprefix("scheduler_"): options.pop(k) for k in list(options) if "scheduler_" in k}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        absent: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
        if "XL" not in pipeline:
            absent |= {"safety_checker": None, "requires_safety_checker": False}
        if "Depth" in pipeline:
            absent = {"feature_extractor": None, "depth_estimator": None}
        if "LatentConsistency" in pipeline or "Pix2Pix" in pipeline:
            absent.pop("image_encoder")
        if pipeline == "LatentConsistencyModelPipeline":
            absent["image_encoder"] = None
        if pipeline == "StableDiffusionXLInstructPix2PixPipeline":
            absent = {}
        if folder.name == "refiner":
            absent["requires_aesthetics_score"] = True
        kind = getattr(diffusers, pipeline)
        pipe = kind.from_pretrained(folder, **absent)
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **own)
        pipe.set_progress_bar_config(disable=True)
        result = pipe(
            PROMPT,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **options,
        )
    return np.asarray(result.images)


def picture(seed: int = 0) -> Image.Image:
    """A picture with structure at every scale."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    fine = rng.integers(-40, 40, (64, 64, 3))
    pixels = np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BILINEAR), int)
    return Image.fromarray(np.clip(pixels + fine, 0, 255).astype(np.uint8))


def mask() -> Image.Image:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[16:48, 8:40] = 255
    return Image.fromarray(pixels)


def check(found: sdengine.Result, expected: np.ndarray) -> None:
    assert relative_error(found.latents, expected) <= 1e-3


# ------------------------------ text to image
def test_stable_diffusion_2_predicts_velocity(folder: Folders) -> None:
    path = folder("sd2")
    expected = reference(
        path,
        "StableDiffusionPipeline",
        scheduler_prediction_type="v_prediction",
        negative_prompt=NEGATIVE,
        num_inference_steps=8,
        **SIZE,
    )
    pipe = sdengine.load(path, prediction="v_prediction")
    check(pipe.generate(PROMPT, NEGATIVE, steps=8, guidance_scale=7.5, seed=SEED, **SIZE), expected)


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_sdxl(folder: Folders, negative: str | None) -> None:
    path = folder("sdxl")
    expected = reference(
        path,
        "StableDiffusionXLPipeline",
        negative_prompt=negative,
        num_inference_steps=8,
        original_size=(96, 80),
        crops_coords_top_left=(4, 2),
        **SIZE,
    )
    pipe = sdengine.load(path)
    sizes = {"original_height": 96, "original_width": 80, "crop_top": 4, "crop_left": 2}
    options = {"steps": 8, "guidance_scale": 5.0, "seed": SEED, "sampler": "euler", **SIZE}
    check(pipe.generate(PROMPT, negative, sizes=sizes, **options), expected)


def test_sdxl_with_a_second_prompt_and_other_negative_sizes(folder: Folders) -> None:
    path = folder("sdxl")
    expected = reference(
        path,
        "StableDiffusionXLPipeline",
        prompt_2="two green squares",
        negative_prompt=NEGATIVE,
        negative_prompt_2="night",
        negative_original_size=(32, 32),
        negative_target_size=(64, 64),
        num_inference_steps=4,
        **SIZE,
    )
    found = sdengine.load(path).generate(
        PROMPT,
        NEGATIVE,
        prompt_2="two green squares",
        negative_prompt_2="night",
        negative_sizes={"original_height": 32, "original_width": 32},
        steps=4,
        guidance_scale=5.0,
        sampler="euler",
        seed=SEED,
        **SIZE,
    )
    check(found, expected)


def test_latent_consistency(folder: Folders) -> None:
    path = folder("sd1-lcm")
    expected = reference(
        path,
        "LatentConsistencyModelPipeline",
        scheduler="LCMScheduler",
        num_inference_steps=4,
        guidance_scale=8.0,
        **SIZE,
    )
    pipe = sdengine.load(path)
    run = pipe.start(
        PROMPT, steps=4, guidance_scale=8.0, sampler="lcm", schedule="lcm", seed=SEED, **SIZE
    )
    while not run.done:
        run.step()
    assert run.evaluations == 4  # guidance is an input, not a second evaluation
    check(run.result(), expected)


# ------------------------------ pictures
def test_image_to_image(folder: Folders) -> None:
    path = folder("sd1")
    expected = reference(
        path,
        "StableDiffusionImg2ImgPipeline",
        image=picture(),
        strength=0.6,
        negative_prompt=NEGATIVE,
        num_inference_steps=10,
    )
    found = sdengine.load(path).generate(
        PROMPT,
        NEGATIVE,
        image=picture(),
        strength=0.6,
        steps=10,
        sampler="euler",
        guidance_scale=7.5,
        seed=SEED,
    )
    check(found, expected)
    assert found.image.size == (64, 64)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_repainting_with_an_ordinary_model(folder: Folders, strength: float) -> None:
    path = folder("sd1")
    expected = reference(
        path,
        "StableDiffusionInpaintPipeline",
        image=picture(),
        mask_image=mask(),
        strength=strength,
        negative_prompt=NEGATIVE,
        num_inference_steps=8,
        **SIZE,
    )
    found = sdengine.load(path).generate(
        PROMPT,
        NEGATIVE,
        image=picture(),
        mask=mask(),
        strength=strength,
        steps=8,
        sampler="euler",
        guidance_scale=7.5,
        seed=SEED,
    )
    check(found, expected)
    kept = np.asarray(mask()) == 0
    assert np.array_equal(np.asarray(found.image)[kept], np.asarray(picture())[kept])


@pytest.mark.parametrize(
    ("member", "pipeline", "strength", "guidance"),
    [
        ("sd1-inpaint", "StableDiffusionInpaintPipeline", 1.0, 7.5),
        ("sd1-inpaint", "StableDiffusionInpaintPipeline", 0.5, 7.5),
        ("sd2-inpaint", "StableDiffusionInpaintPipeline", 1.0, 7.5),
        ("sdxl-inpaint", "StableDiffusionXLInpaintPipeline", 0.9999, 7.5),
    ],
)
def test_inpainting_models(
    folder: Folders, member: str, pipeline: str, strength: float, guidance: float
) -> None:
    path = folder(member)
    expected = reference(
        path,
        pipeline,
        image=picture(),
        mask_image=mask(),
        strength=strength,
        guidance_scale=guidance,
        negative_prompt=NEGATIVE,
        num_inference_steps=8,
        **SIZE,
    )
    found = sdengine.load(path).generate(
        PROMPT,
        NEGATIVE,
        image=picture(),
        mask=mask(),
        strength=strength,
        steps=8,
        sampler="euler",
        guidance_scale=guidance,
        seed=SEED,
    )
    check(found, expected)


def test_instruct_pix2pix(folder: Folders) -> None:
    path = folder("sd1-pix2pix")
    expected = reference(
        path,
        "StableDiffusionInstructPix2PixPipeline",
        image=picture(),
        image_guidance_scale=1.5,
        guidance_scale=7.5,
        negative_prompt=NEGATIVE,
        num_inference_steps=8,
    )
    found = sdengine.load(path).generate(
        PROMPT,
        NEGATIVE,
        image=picture(),
        steps=8,
        sampler="euler",
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        seed=SEED,
    )
    check(found, expected)


# ------------------------------ refiner
def test_refiner_alone(folder: Folders) -> None:
    path = folder("refiner")
    expected = reference(
        path,
        "StableDiffusionXLImg2ImgPipeline",
        image=picture(),
        strength=0.5,
        negative_prompt=NEGATIVE,
        guidance_scale=5.0,
        num_inference_steps=10,
    )
    found = sdengine.load(path).generate(
        PROMPT,
        NEGATIVE,
        image=picture(),
        strength=0.5,
        steps=10,
        sampler="euler",
        guidance_scale=5.0,
        seed=SEED,
    )
    check(found, expected)


def test_base_and_refiner_as_one_call_and_as_two(folder: Folders) -> None:
    base_path, refiner_path = folder("sdxl"), folder("refiner")
    shared = {"negative_prompt": NEGATIVE, "num_inference_steps": 10, "guidance_scale": 5.0}
    half = reference(base_path, "StableDiffusionXLPipeline", denoising_end=0.6, **shared, **SIZE)
    expected = reference(
        refiner_path,
        "StableDiffusionXLImg2ImgPipeline",
        image=torch.from_numpy(half),
        denoising_start=0.6,
        **shared,
    )
    base, refiner = sdengine.load(base_path), sdengine.load(refiner_path)
    options = {"steps": 10, "sampler": "euler", "guidance_scale": 5.0, "seed": SEED, **SIZE}
    first = base.generate(PROMPT, NEGATIVE, denoising_end=0.6, **options)
    check(first, half)
    second = refiner.generate(
        PROMPT, NEGATIVE, latents=first.latents, denoising_start=0.6, **options
    )
    check(second, expected)
    one = base.generate(PROMPT, NEGATIVE, refiner=refiner, denoising_end=0.6, **options)
    assert relative_error(one.latents, second.latents) <= 1e-6


def test_a_refiner_needs_something_to_refine(folder: Folders) -> None:
    refiner = sdengine.load(folder("refiner"))
    with pytest.raises(
        sdengine.ParameterError, match=r"give image=, or latents= and denoising_start="
    ):
        refiner.generate(PROMPT, steps=2, **SIZE)
    with pytest.raises(sdengine.ParameterError, match=r"latents= or image="):
        sdengine.load(folder("sdxl")).generate(PROMPT, steps=2, denoising_start=0.5, **SIZE)


# ------------------------------ Kolors
def test_kolors(folder: Folders) -> None:
    path = folder("kolors")
    expected = reference(
        path,
        "KolorsPipeline",
        negative_prompt=NEGATIVE,
        num_inference_steps=8,
        guidance_scale=5.0,
        **SIZE,
    )
    options = {"steps": 8, "guidance_scale": 5.0, "seed": SEED, "sampler": "euler", **SIZE}
    check(sdengine.load(path).generate(PROMPT, NEGATIVE, **options), expected)
