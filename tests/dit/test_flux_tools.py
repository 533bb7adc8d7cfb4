"""FLUX.1 Kontext, Fill, Canny and Depth against diffusers' pipelines: same folder, pictures, prompt and seed."""

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

from .conftest import Folders

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
WIDTH, HEIGHT = 96, 64
SEED = 7
CLOSE = 1e-4
"""Latents of the whole run. The given pictures must matter more than that, or the tests could not fail."""
USUAL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.5}


def expected(folder: Path, pipeline: str, **options: Any) -> np.ndarray:
    """Final latents of a diffusers pipeline."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, pipeline).from_pretrained(
            folder,
            **({"image_encoder": None, "feature_extractor": None} if "Kontext" in pipeline else {}),
        )
        pipe.set_progress_bar_config(disable=True)
        made = pipe(
            prompt=PROMPT,
            width=WIDTH,
            height=HEIGHT,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **{**USUAL, **options},
        ).images
    return pipe._unpack_latents(made, HEIGHT, WIDTH, pipe.vae_scale_factor).numpy()


def found(folder: Path, negative: str | None = None, **options: Any) -> np.ndarray:
    options = {
        "steps": 4,
        "guidance_scale": 3.5,
        "seed": SEED,
        "width": WIDTH,
        "height": HEIGHT,
    } | options
    return sdengine.load(folder).generate(PROMPT, negative, **options).latents


@pytest.mark.parametrize("true_cfg", [1.0, 2.0])
def test_kontext(flux_folder: Folders, photo: Image.Image, true_cfg: float) -> None:
    folder = flux_folder("FluxKontextPipeline")
    given = {"resize_references": False, "true_cfg_scale": true_cfg, "image": photo}
    wanted = expected(
        folder,
        "FluxKontextPipeline",
        image=photo,
        max_area=WIDTH * HEIGHT,
        _auto_resize=False,
        negative_prompt=NEGATIVE,
        true_cfg_scale=true_cfg,
    )
    result = found(folder, NEGATIVE, **given)
    assert relative_error(result, wanted) <= CLOSE
    other = found(folder, NEGATIVE, **{**given, "image": photo.rotate(180)})
    assert relative_error(other, wanted) > 10 * CLOSE


@pytest.mark.parametrize(("strength", "refers"), [(1.0, False), (0.5, True)])
def test_kontext_beside_a_mask(
    flux_folder: Folders, photo: Image.Image, strength: float, refers: bool
) -> None:
    folder = flux_folder("FluxKontextPipeline")
    picture = photo.resize((WIDTH, HEIGHT))
    mask = Image.new("L", picture.size)
    mask.paste(255, (16, 8, 64, 48))
    other = photo.rotate(180) if refers else None
    wanted = expected(
        folder,
        "FluxKontextInpaintPipeline",
        image=picture,
        mask_image=mask,
        image_reference=other,
        strength=strength,
        max_area=WIDTH * HEIGHT,
        _auto_resize=False,
    )
    given = {"image": picture, "mask": mask, "strength": strength, "resize_references": False}
    result = found(folder, references=other, **given)
    assert relative_error(result, wanted) <= CLOSE


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_fill(flux_folder: Folders, photo: Image.Image, strength: float) -> None:
    folder = flux_folder("FluxFillPipeline")
    mask = Image.new("L", photo.size)
    mask.paste(255, (17, 9, 60, 50))
    picture = photo.resize((WIDTH, HEIGHT))
    mask = mask.resize(picture.size, Image.Resampling.NEAREST)
    wanted = expected(folder, "FluxFillPipeline", image=picture, mask_image=mask, strength=strength)
    given = {"image": picture, "mask": mask, "strength": strength}
    assert relative_error(found(folder, **given), wanted) <= CLOSE
    other = found(folder, **{**given, "mask": mask.rotate(180)})
    assert relative_error(other, wanted) > 10 * CLOSE


def test_control(flux_folder: Folders, photo: Image.Image) -> None:
    folder = flux_folder("FluxControlPipeline")
    picture = photo.resize((WIDTH, HEIGHT))
    wanted = expected(folder, "FluxControlPipeline", control_image=picture)
    assert relative_error(found(folder, control_images=picture), wanted) <= CLOSE
    other = found(folder, control_images=picture.rotate(180))
    assert relative_error(other, wanted) > 10 * CLOSE


def test_control_over_a_picture(flux_folder: Folders, photo: Image.Image) -> None:
    folder = flux_folder("FluxControlPipeline")
    picture = photo.resize((WIDTH, HEIGHT))
    start = picture.rotate(180)
    wanted = expected(
        folder, "FluxControlImg2ImgPipeline", image=start, control_image=picture, strength=0.5
    )
    result = found(folder, image=start, control_images=[picture], strength=0.5)
    assert relative_error(result, wanted) <= CLOSE
