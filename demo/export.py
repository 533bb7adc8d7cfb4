"""Write the trained parts as diffusers folders."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from demo import text_encoder, tokenizer, vae, wide_vae


def export(folder: Path, denoiser: UNet2DConditionModel, scheduler: EulerDiscreteScheduler) -> Path:
    """Write ``folder/export`` anew, a Stable Diffusion pipeline around a denoiser."""
    pipeline = StableDiffusionPipeline(
        vae=vae.load_finished(folder, polished=True),
        text_encoder=text_encoder.load_text_encoder(folder),
        tokenizer=tokenizer.load_tokenizer(folder),
        unet=denoiser,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _write(pipeline, folder / "export")


def export_flow(
    folder: Path, denoiser: SD3Transformer2DModel, scheduler: FlowMatchEulerDiscreteScheduler
) -> Path:
    """Write ``folder/export-dit`` anew, a Stable Diffusion 3 pipeline without T5 around a denoiser."""
    parts = {}
    for build, place in zip(text_encoder.PAIR, ("", "_2"), strict=True):
        words = tokenizer.load_tokenizer(folder)
        words.model_max_length = build.length
        if build.filler is not None:
            words.pad_token = words.convert_ids_to_tokens(build.filler)
        parts[f"tokenizer{place}"] = words
        parts[f"text_encoder{place}"] = text_encoder.load_text_encoder(folder, build)
    pipeline = StableDiffusion3Pipeline(
        vae=wide_vae.load_finished(folder),
        transformer=denoiser,
        scheduler=scheduler,
        text_encoder_3=None,
        tokenizer_3=None,
        **parts,
    )
    return _write(pipeline, folder / "export-dit")


def _write(pipeline: DiffusionPipeline, target: Path) -> Path:
    """Write a pipeline; a reader sees the old folder or the new one, never a half."""
    draft, old = target.with_suffix(".draft"), target.with_suffix(".old")
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(draft)
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target
