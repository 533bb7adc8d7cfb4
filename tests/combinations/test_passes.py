"""Passes, tiles, control, adapters and masks in one generation: each keeps what it promises alone."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine

from .conftest import QUICK, Models, latents, picture

SMALL: dict[str, Any] = {"width": 64, "height": 64}
FIRST, SECOND = picture(1), picture(2)


def mask_of(*box: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def finished(run: sdengine.Run) -> sdengine.Run:
    while not run.done:
        run.step()
    return run


def both(run: sdengine.Run) -> np.ndarray:
    following = finished(run).next_pass()
    assert following is not None
    return finished(following).latents


def test_hires_with_a_scheduled_lora_control_and_a_batch(models: Models, files: Path) -> None:
    pipe = models("control")
    options: dict[str, Any] = {
        **SMALL,
        "hires_scale": 1.5,
        "hires_strength": 1.0,
        "loras": sdengine.Lora(files / "ink.safetensors", (0.2, 0.4, 0.6, 0.8)),
        "control_end": 0.75,
    }
    batch = latents(pipe, control_images=[[FIRST, SECOND]], batch_size=2, **options)
    for i, control in enumerate((FIRST, SECOND)):
        alone = latents(pipe, **{**options, "seed": 7 + i, "control_images": control})
        assert np.array_equal(batch[i : i + 1], alone)
    for left_out in ({"loras": []}, {"control_scales": 0}):
        assert not np.array_equal(
            latents(pipe, control_images=FIRST, **{**options, **left_out}), batch[:1]
        )


def test_a_second_pass_is_forked_and_pickled(models: Models, files: Path) -> None:
    pipe = models("control", "ip")
    options: dict[str, Any] = {
        **{**QUICK, **SMALL, "hires_scale": 2.0, "tiled_diffusion": 8},
        **{"control_images": FIRST, "ip_images": SECOND},
        **{"loras": [(files / "ink.safetensors", 0.7)]},
    }
    expected = pipe.generate("a cat", **options).latents
    first = pipe.start("a cat", **options)
    first.step()
    assert np.array_equal(both(pickle.loads(pickle.dumps(first))), expected)
    second = finished(first).next_pass()
    assert second is not None
    second.step()
    fork, copy = second.fork(), pickle.loads(pickle.dumps(second))
    for run in (fork, copy, second):
        assert run.is_hires
        assert np.array_equal(finished(run).latents, expected)
        assert run.metadata()[0]["hires_scale"] == 2.0


def test_only_masked_under_control_and_a_batch_of_masks(models: Models) -> None:
    pipe, large, control = models("control"), picture(3, (160, 120)), picture(4, (160, 120))
    masks = [mask_of(20, 20, 60, 60, size=(160, 120)), mask_of(90, 40, 140, 100, size=(160, 120))]
    options: dict[str, Any] = {**QUICK, **SMALL, "only_masked": True, "mask_padding": 8}
    batch = pipe.generate(
        "a cat", image=large, mask=masks, control_images=control, batch_size=2, **options
    )
    given = np.asarray(large)
    for i, mask in enumerate(masks):
        alone = pipe.generate(
            "a cat", image=large, mask=mask, control_images=control, **{**options, "seed": 7 + i}
        )
        assert alone.image.tobytes() == batch.images[i].tobytes()
        changed = (np.asarray(alone.image) != given).any(axis=2)
        assert not changed[np.asarray(mask) == 0].any()
        assert changed.any()
    other = pipe.generate(
        "a cat", image=large, mask=masks[0], control_images=control.rotate(180), **options
    )
    assert other.image.tobytes() != batch.images[0].tobytes()


def test_differential_with_a_batch_of_masks(models: Models) -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1)))
    masks = [ramp, ramp.rotate(90)]
    options: dict[str, Any] = {"image": FIRST, "differential": True, "strength": 0.8}
    batch = latents(models(), mask=masks, batch_size=2, **options)
    for i, mask in enumerate(masks):
        assert np.array_equal(
            latents(models(), mask=mask, **{**options, "seed": 7 + i}), batch[i : i + 1]
        )


def test_a_seamless_inpainting_in_tiles(models: Models) -> None:
    wide, mask = picture(5, (128, 64)), mask_of(112, 0, 128, 64, size=(128, 64))
    options: dict[str, Any] = {
        "tiled_diffusion": {"size": 8, "overlap": 0},
        "seamless": "x",
        **QUICK,
    }
    result = models().generate("a cat", image=wide, mask=mask, **options)
    changed = (np.asarray(result.image) != np.asarray(wide)).any(axis=2)
    assert not changed[:, :112].any()
    assert changed[:, 112:].mean() > 0.5
    # Everything turned by a whole tile is the same picture, turned: opposite edges do join.
    noise = np.random.default_rng(0).standard_normal((1, 4, 8, 16)).astype(np.float32)
    plain: dict[str, Any] = {**options, "width": 128, "height": 64, "sampler": "euler"}
    one = models().generate("a cat", latents=noise, **plain).latents
    turned = models().generate("a cat", latents=np.roll(noise, 8, axis=3), **plain).latents
    assert np.allclose(np.roll(one, 8, axis=3), turned, atol=1e-4)


@pytest.mark.parametrize("method", ["linear", "full"])
def test_previews_of_a_tiled_run(models: Models, method: str) -> None:
    frames = sdengine.Frames(2, method=method)
    options = {"width": 128, "height": 64, "tiled_diffusion": 8, "seamless": "x"}
    models().generate("a cat", callback=frames, **{**QUICK, **options})
    assert frames.steps == [2, 4]
    assert {image.size for image in frames.images} == {(128, 64)}


def test_a_grid_over_the_size_of_a_second_pass(models: Models) -> None:
    options: dict[str, Any] = {**QUICK, **SMALL, "steps": 2}
    sheet = sdengine.xy_grid(
        models(), "a cat", x=("hires_scale", [None, 1.5, 2.0]), gap=0, **options
    )
    assert sheet.width == 3 * 128
    alone = models().generate("a cat", hires_scale=2.0, **options).image
    cell = sheet.crop((256, sheet.height - 128, 384, sheet.height))
    assert cell.tobytes() == alone.tobytes()


def test_a_refiner_keeps_tiles(models: Models) -> None:
    """The refiner of a picture that is too large for the base model at once sees tiles too."""
    base, refiner = models(), models("uncached")
    options: dict[str, Any] = {
        "width": 128,
        "height": 64,
        "tiled_diffusion": 8,
        "denoising_end": 0.5,
    }
    whole = latents(base, refiner=refiner, **options)
    first = base.start("a cat", **QUICK, **options)
    finished(first)
    rest = {k: v for k, v in options.items() if k != "denoising_end"}
    by_hand = latents(
        refiner, latents=first.latents, denoising_start=0.5, guidance_scale=None, **rest
    )
    assert np.array_equal(whole, by_hand)
