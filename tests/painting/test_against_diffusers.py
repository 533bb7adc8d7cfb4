"""Painting against diffusers' pipelines and schedulers: same folder, prompt and seed; final latents."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdengine
from tests.parity.conftest import relative_error

from .conftest import Folders, box_mask, picture

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
SEED, STEPS, LIMIT = 7, 6, 1e-3


def opened(folder: Path, pipeline: str) -> Any:
    import diffusers

    absent: dict[str, Any] = {}
    if pipeline.startswith("StableDiffusion") and "3" not in pipeline:
        absent = {"feature_extractor": None, "image_encoder": None}
        absent |= {"safety_checker": None, "requires_safety_checker": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, pipeline).from_pretrained(folder, **absent)
    if absent:
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reference(
    folder: Path, pipeline: str, size: tuple[int, int], **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Final latents ``[1, C, h, w]`` and the picture."""
    pipe, latents = opened(folder, pipeline), []

    def last(_: Any, __: int, ___: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        latents[:] = [state["latents"]]
        return state

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = pipe(
            PROMPT,
            generator=torch.Generator().manual_seed(SEED),
            num_inference_steps=STEPS,
            callback_on_step_end=last,
            **options,
        ).images[0]
    if latents[0].ndim == 3:  # FLUX's tokens
        width, height = size
        latents[0] = pipe._unpack_latents(latents[0], height, width, pipe.vae_scale_factor)
    return latents[0].numpy(), np.asarray(image)


# ------------------------------ only masked
# diffusers makes masks black or white after scaling; an ordinary model's stay soft here, so that its cases have mask
# edges on whole latents.
@pytest.mark.parametrize(
    ("member", "box", "padding"),
    [
        ("sd1", (40, 48, 72, 80), 16),
        ("sd1", (96, 96, 128, 128), 32),
        ("sd1", (40, 48, 72, 80), 0),
        ("sd1-inpaint", (40, 48, 72, 80), 16),
        ("sd1-inpaint", (4, 90, 36, 122), 16),
    ],
    ids=["inside", "at-the-border", "enlarged", "inside-9", "moved-inwards-and-enlarged-9"],
)
def test_only_masked(
    folders: Folders, member: str, box: tuple[int, int, int, int], padding: int
) -> None:
    path, image = folders(member), picture(128, 128)
    mask, size = box_mask(image.size, *box), (64, 64)
    expected, shown = reference(
        path,
        "StableDiffusionInpaintPipeline",
        size,
        image=image,
        mask_image=mask,
        padding_mask_crop=padding,
        strength=0.7,
        negative_prompt=NEGATIVE,
        width=64,
        height=64,
    )
    found = sdengine.load(path).generate(
        *(PROMPT, NEGATIVE),
        image=image,
        mask=mask,
        only_masked=True,
        mask_padding=padding,
        strength=0.7,
        width=64,
        height=64,
        steps=STEPS,
        sampler="euler",
        guidance_scale=7.5,
        seed=SEED,
    )
    assert relative_error(found.latents, expected) <= LIMIT
    difference = np.abs(np.asarray(found.image, np.int16) - shown)
    assert difference.mean() <= 0.25  # of 255; both round where they scale and lay over
    assert difference.max() <= 6


# ------------------------------ flow models
@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("masked", [True, False], ids=["inpainting", "image-to-image"])
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_flow_models(folders: Folders, name: str, masked: bool, strength: float) -> None:
    path, image = folders(name), picture(64, 96)
    mask = box_mask(image.size, 16, 16, 48, 64)
    family = {"sd3": "StableDiffusion3", "flux": "Flux"}[name]
    options = {"mask_image": mask} if masked else {}
    if name == "sd3":
        options |= {"negative_prompt": NEGATIVE, "guidance_scale": 4.5}
    expected, _ = reference(
        path,
        f"{family}{'Inpaint' if masked else 'Img2Img'}Pipeline",
        image.size,
        image=image,
        strength=strength,
        width=64,
        height=96,
        **{"guidance_scale": 3.5, **options},
    )
    found = sdengine.load(path).generate(
        PROMPT,
        NEGATIVE if name == "sd3" else None,
        image=image,
        mask=mask if masked else None,
        strength=strength,
        guidance_scale=4.5 if name == "sd3" else 3.5,
        steps=STEPS,
        seed=SEED,
    )
    assert relative_error(found.latents, expected) <= LIMIT
    if masked:
        kept = np.asarray(mask) == 0
        assert np.array_equal(np.asarray(found.image)[kept], np.asarray(image)[kept])


# ------------------------------ differential
def differential(
    pipe: Any, image: Image.Image, strengths: np.ndarray, strength: float
) -> np.ndarray:
    """The loop of Levin and Fried 2023 over diffusers' networks and scheduler; white changes."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (1, 4, strengths.shape[0], strengths.shape[1])
    pixels = pipe.image_processor.preprocess(image)
    original = pipe.vae.encode(pixels).latent_dist.sample(generator) * 0.18215
    noise = torch.randn(shape, generator=generator)
    pipe.scheduler.set_timesteps(STEPS)
    timesteps = pipe.scheduler.timesteps[STEPS - int(STEPS * strength) :]
    pipe.scheduler.set_begin_index(STEPS - len(timesteps))
    texts = pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    context = torch.cat([texts[1], texts[0]])
    amounts = torch.from_numpy(strengths)[None, None]
    latents = pipe.scheduler.add_noise(original, noise, timesteps[:1])
    for i, timestep in enumerate(timesteps):
        given = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        without, guided = pipe.unet(given, timestep, context).sample.chunk(2)
        output = without + 7.5 * (guided - without)
        latents = pipe.scheduler.step(output, timestep, latents).prev_sample
        kept = original
        if i + 1 < len(timesteps):
            kept = pipe.scheduler.add_noise(original, noise, timesteps[i + 1 : i + 2])
        steps = torch.floor(amounts * len(timesteps) + 1e-3)  # that change a latent
        latents = torch.where(i >= len(timesteps) - steps, latents, kept)
    return latents.numpy()


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_differential(folders: Folders, strength: float) -> None:
    path, image = folders("sd1"), picture(64, 64)
    levels = np.repeat(np.array([0, 30, 65, 100, 140, 180, 230, 255], np.uint8), 8)
    mask = Image.fromarray(np.broadcast_to(levels, (64, 64)).copy())
    with torch.no_grad():
        expected = differential(
            opened(path, "StableDiffusionImg2ImgPipeline"),
            image,
            np.broadcast_to(levels[::8].astype(np.float32) / 255, (8, 8)).copy(),
            strength,
        )
    found = sdengine.load(path).generate(
        *(PROMPT, NEGATIVE),
        image=image,
        mask=mask,
        differential=True,
        strength=strength,
        steps=STEPS,
        sampler="euler",
        guidance_scale=7.5,
        seed=SEED,
    )
    assert relative_error(found.latents, expected) <= LIMIT
