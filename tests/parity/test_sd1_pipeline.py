"""The whole pipeline against diffusers: same folder, prompt and seed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import sdengine

from .conftest import relative_error

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"


def diffusers_run(
    folder: Path, scheduler: str, seeds: list[int], **scheduler_options: object
) -> tuple[np.ndarray, np.ndarray]:
    """Final latents [N, 4, 8, 8] and pictures [N, 64, 64, 3] in 0..1 of StableDiffusionPipeline."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        config = {**pipe.scheduler.config, "skip_prk_steps": None}
        pipe.scheduler = getattr(diffusers, scheduler).from_config(config)
        pipe.set_progress_bar_config(disable=True)
        options = {
            "num_inference_steps": 8,
            "guidance_scale": 7.5,
            "height": 64,
            "width": 64,
            "negative_prompt": [NEGATIVE] * len(seeds),
        }
        outputs = []
        for kind in ("latent", "np"):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            result = pipe([PROMPT] * len(seeds), generator=generators, output_type=kind, **options)
            outputs.append(np.asarray(result.images))
    return outputs[0], outputs[1]


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(1.0 / np.mean((found - expected) ** 2)))


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [("EulerDiscreteScheduler", "euler"), ("EulerAncestralDiscreteScheduler", "euler_a")],
)
def test_latents_and_picture(sd1_folder: Path, scheduler: str, sampler: str) -> None:
    latents, pictures = diffusers_run(sd1_folder, scheduler, [11])
    result = sdengine.load(sd1_folder).generate(
        PROMPT, NEGATIVE, width=64, height=64, steps=8, guidance_scale=7.5, sampler=sampler, seed=11
    )
    assert relative_error(result.latents, latents) <= 1e-3
    assert psnr(np.asarray(result.image) / 255.0, pictures[0]) >= 45.0


def test_batch_of_three_equals_three_single_runs(sd1_folder: Path) -> None:
    pipe = sdengine.load(sd1_folder)
    options = {"width": 64, "height": 64, "steps": 4, "sampler": "euler_a"}
    batch = pipe.generate(PROMPT, seed=40, batch_size=3, **options)
    assert batch.seeds == [40, 41, 42]
    for index, seed in enumerate(batch.seeds):
        single = pipe.generate(PROMPT, seed=seed, **options)
        assert relative_error(batch.latents[index : index + 1], single.latents) <= 1e-5
        difference = np.asarray(batch.images[index], np.int16) - np.asarray(single.image, np.int16)
        assert np.abs(difference).max() <= 1
