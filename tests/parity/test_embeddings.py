"""Textual inversion against diffusers: text states of prompts with learned words, relative L2 error <= 1e-4."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdengine
from tests.unet_models import tiny_folder

from .conftest import relative_error

LIMIT = 1e-4
POSITIVE = "a red <thing>, in a city at night"
NEGATIVE = "blurry, <thing>"


def vectors(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(
        np.random.default_rng(seed).standard_normal((count, width)), dtype=torch.float32
    )


def reference(folder: Path, kind: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        absent = {"safety_checker": None} if kind is diffusers.StableDiffusionPipeline else {}
        return kind.from_pretrained(folder, **absent)


@pytest.fixture(scope="module")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("sdxl") / "model", "sdxl")


@pytest.mark.parametrize("count", [1, 3])
def test_sd1(sd1_folder: Path, tmp_path: Path, count: int) -> None:
    torch.save({"<thing>": vectors(count, 128).squeeze(0)}, tmp_path / "learned_embeds.bin")
    theirs = reference(sd1_folder, diffusers.StableDiffusionPipeline)
    theirs.load_textual_inversion(str(tmp_path / "learned_embeds.bin"))
    with torch.no_grad():
        positive, negative = theirs.encode_prompt(POSITIVE, "cpu", 1, True, NEGATIVE)
    pipe = sdengine.load(sd1_folder, embeddings=[tmp_path / "learned_embeds.bin"])
    found = pipe.encode_prompt(POSITIVE, NEGATIVE)
    assert relative_error(found.context, positive.numpy()) <= LIMIT
    assert relative_error(found.negative_context, negative.numpy()) <= LIMIT
    plain = sdengine.load(sd1_folder)
    assert relative_error(found.context, plain.encode_prompt(POSITIVE, NEGATIVE).context) > 0.01
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        POSITIVE,
        negative_prompt=NEGATIVE,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
        height=64,
        width=64,
    ).images.numpy()
    options: dict[str, Any] = {"steps": 4, "seed": 7, "sampler": "euler", "guidance_scale": 7.5}
    ours, without = (
        each.generate(POSITIVE, NEGATIVE, width=64, height=64, **options).latents
        for each in (pipe, plain)
    )
    assert relative_error(ours, expected) <= 1e-3
    assert relative_error(without, expected) > 1e-2


@pytest.mark.parametrize("count", [1, 4])
def test_sdxl(sdxl_folder: Path, tmp_path: Path, count: int) -> None:
    parts = {"clip_l": vectors(count, 64, 1), "clip_g": vectors(count, 128, 2)}
    save_file(parts, tmp_path / "thing.safetensors")
    theirs = reference(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    for part, end in (("clip_l", ""), ("clip_g", "_2")):
        theirs.load_textual_inversion(
            {"<thing>": parts[part]},
            token="<thing>",
            text_encoder=getattr(theirs, f"text_encoder{end}"),
            tokenizer=getattr(theirs, f"tokenizer{end}"),
        )
    with torch.no_grad():
        expected = theirs.encode_prompt(POSITIVE, device="cpu", negative_prompt=NEGATIVE)
    pipe = sdengine.load(sdxl_folder, embeddings={"<thing>": tmp_path / "thing.safetensors"})
    found = pipe.encode_prompt(POSITIVE, NEGATIVE)
    mine = (found.context, found.negative_context, found.pooled, found.negative_pooled)
    for ours, other in zip(mine, expected, strict=True):
        assert ours is not None
        assert relative_error(ours, other.numpy()) <= LIMIT
