"""Whole runs against diffusers' pipelines for perturbed attention and for InstructPix2Pix."""

from __future__ import annotations

import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import sdengine
from sdengine import _core
from sdengine.guidance import Guidance, PerturbedAttention
from tests.models import tiny_sd1_folder

from .conftest import LEVELS, LIMIT, PREDICTION, finish, noise, relative_error

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
STEPS, SEED = 5, 17


def load(kind: str, folder: Path, **options: object):
    """A diffusers pipeline with the Euler scheduler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, kind).from_pretrained(folder, safety_checker=None, **options)
        config = {**pipe.scheduler.config, "skip_prk_steps": None}
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, **options: object) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **options,
        )
    return np.asarray(result.images)


def run(folder: Path, guidance: Guidance, extras: dict[str, np.ndarray] | None = None):
    """The same run here; `extras` are the extra channels of each role."""
    pipe = sdengine.load(folder)
    cond = pipe.encode_prompt(PROMPT, NEGATIVE)
    schedule = _core.Schedule("leading", STEPS, LEVELS, steps_offset=1)
    x = _core.NormalSource([SEED]).normal([1, 4, 8, 8]) * schedule.initial_scale
    texts = {
        "positive": cond.context,
        "negative": cond.negative_context,
        "image": cond.negative_context,
    }
    branches = [
        _core.Branch(role, {"context": texts[role]}, extra_channels=(extras or {}).get(role))
        for role in (extras or ("positive", "negative"))
    ]
    return finish(
        _core.DenoiseRun(
            pipe.denoiser,
            sampler="euler",
            x=x,
            schedule=schedule,
            levels=LEVELS,
            prediction=PREDICTION,
            seeds=[SEED],
            phases=[(STEPS, branches)],
            guidance=guidance.native(),
        )
    )


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_perturbed_attention(model, scale: float) -> None:
    pipe = load("StableDiffusionPAGPipeline", model.folder, pag_applied_layers=["mid"])
    expected = generate(pipe, guidance_scale=scale, pag_scale=3.0, height=64, width=64)
    guidance = Guidance(scale=scale, perturbed_attention=PerturbedAttention(scale=3.0))
    assert relative_error(run(model.folder, guidance), expected) <= LIMIT


def test_instruct_pix2pix(tmp_path: Path) -> None:
    folder = tiny_sd1_folder(tmp_path / "model", seed=6, in_channels=8)
    picture = noise(1, 4, 8, 8, seed=2)
    pipe = load("StableDiffusionInstructPix2PixPipeline", folder)
    expected = generate(
        pipe, image=torch.tensor(picture), guidance_scale=6.0, image_guidance_scale=1.7
    )
    extras = {"positive": picture, "image": picture, "negative": np.zeros_like(picture)}
    found = run(folder, Guidance(scale=6.0, image_scale=1.7), extras)
    assert relative_error(found, expected) <= LIMIT
