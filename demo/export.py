"""Write the trained parts as one diffusers folder of a Stable Diffusion pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel

from demo import text_encoder, tokenizer, vae


def export(folder: Path, denoiser: UNet2DConditionModel, scheduler: EulerDiscreteScheduler) -> Path:
    """Write ``folder/export`` anew; a reader sees the old folder or the new one, never a half."""
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
    draft, target, old = (folder / name for name in ("export.draft", "export", "export.old"))
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(draft)
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target
