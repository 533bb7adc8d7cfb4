"""The refiner of Stable Diffusion XL: the last fifth of the steps, on latents of the base model.

Figures: Podell et al. 2023 (arXiv 2307.01952), sd_xl_refiner.yaml of Stability-AI/generative-models.
"""

from __future__ import annotations

from dataclasses import replace

from sdengine.families.family import Family, Shape, SizeConditioning, TextUse
from sdengine.families.sd1 import AUTOENCODER
from sdengine.families.sd2 import LINEAR_DENOISER
from sdengine.families.sdxl import BETAS, LATENTS, RESOLUTIONS, TEXT_ENCODER_2
from sdengine.families.settings import Defaults

# The only text encoder, but in a diffusers folder still the second one.
TEXT_ENCODER = replace(
    TEXT_ENCODER_2,
    prefixes=(
        "conditioner.embedders.0.model.",
        "text_encoder_2/",
        "cond_stage_model.transformer.",
        *TEXT_ENCODER_2.prefixes,
    ),
    written=("cond_stage_model.transformer.", TEXT_ENCODER_2.written[1]),
)

SDXL_REFINER = Family(
    name="sdxl_refiner",
    title="Stable Diffusion XL refiner",
    denoiser="unet",
    shape=Shape(
        {
            "in_channels": (4,),
            "out_channels": (4,),
            "class_embed_dim": (2560,),
            "cross_attention_dim": (1280,),
            "encoder_hid_dim": (0,),
        }
    ),
    components=(LINEAR_DENOISER, TEXT_ENCODER, AUTOENCODER),
    tokenizers={"text_encoder_2": "clip"},
    latents=LATENTS,
    betas=BETAS,
    prediction="epsilon",
    defaults=Defaults(
        1024, 1024, steps=30, guidance=5.0, sampler="euler", schedule="discrete", strength=0.3
    ),
    starts_from_noise=False,
    text=(TextUse("text_encoder_2", skip=1, final_norm=False, pooled=True, pad=0),),
    size_conditioning=SizeConditioning(
        ("original_height", "original_width", "crop_top", "crop_left", "aesthetic_score")
    ),
    resolutions=RESOLUTIONS,
)
