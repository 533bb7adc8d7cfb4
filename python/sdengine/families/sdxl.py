"""Stable Diffusion XL: base, its distilled, pruned, inpainting and editing relatives, Playground 2.5.

Figures: Podell et al. 2023 (arXiv 2307.01952), sd_xl_base.yaml of Stability-AI/generative-models, and
the configs of the published diffusers folders.
"""

from __future__ import annotations

from sdengine.families.family import (
    Component,
    Family,
    Shape,
    SizeConditioning,
    TextUse,
    Variant,
)
from sdengine.families.sd1 import AUTOENCODER
from sdengine.families.sd2 import LINEAR_DENOISER
from sdengine.families.settings import Betas, Defaults, LatentFormat
from sdengine.keys import clip_text

TEXT_ENCODER = Component(
    name="text_encoder",
    title="a CLIP ViT-L text encoder",
    kind="clip_text",
    prefixes=(
        "conditioner.embedders.0.transformer.",
        "text_encoder/",
        "cond_stage_model.transformer.",
        "text_encoders.clip_l.transformer.",
        "text_encoders.clip_l.",
        "cond_stage_model.clip_l.transformer.",
        "clip_l.transformer.",
        "clip_l.",
        "te1.",
        "te.",
        "",
    ),
    tables=(clip_text.TRANSFORMERS, clip_text.TRANSFORMERS_BARE, clip_text.OPEN_CLIP),
    argument="text_encoders",
    written=("cond_stage_model.transformer.", clip_text.TRANSFORMERS.name),
)
TEXT_ENCODER_2 = Component(
    name="text_encoder_2",
    title="an OpenCLIP ViT-bigG text encoder",
    kind="clip_text",
    prefixes=(
        "conditioner.embedders.1.model.",
        "text_encoder_2/",
        "cond_stage_model.1.transformer.",
        "conditioner.embedders.1.transformer.",
        "text_encoders.clip_g.transformer.",
        "text_encoders.clip_g.",
        "cond_stage_model.1.model.",
        "cond_stage_model.clip_g.transformer.",
        "clip_g.transformer.",
        "clip_g.",
        "te2.",
        "",
    ),
    tables=(
        clip_text.OPEN_CLIP,
        clip_text.SD_CPP_FUSED,
        clip_text.SD_CPP,
        clip_text.TRANSFORMERS,
        clip_text.TRANSFORMERS_BARE,
    ),
    argument="text_encoders",
    written=("cond_stage_model.1.transformer.", clip_text.TRANSFORMERS.name),
    known={"activation": "gelu"},
    required=("text_projection.weight",),
)
LATENTS = LatentFormat(channels=4, scale=0.13025, shift=0.0, factor=8)
BETAS = Betas("scaled_linear", 0.00085, 0.012)
SIZES = SizeConditioning(
    (
        "original_height",
        "original_width",
        "crop_top",
        "crop_left",
        "target_height",
        "target_width",
    )
)

_TALL = (
    *((512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664)),
    *((640, 1600), (640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280)),
    *((832, 1216), (832, 1152), (896, 1152), (896, 1088), (960, 1088), (960, 1024)),
)
RESOLUTIONS = (*_TALL, (1024, 1024), *((height, width) for width, height in reversed(_TALL)))
"""Of training in several aspect ratios: Podell et al. 2023, appendix I."""

# Mean, deviation and scale of the latents that Playground 2.5 was trained on: its published
# vae/config.json (Li et al. 2024, arXiv 2402.17245).
PLAYGROUND_LATENTS = LatentFormat(
    channels=4,
    scale=0.5,
    shift=0.0,
    factor=8,
    mean=(-1.6574, 1.886, -1.383, 2.5155),
    deviation=(8.4927, 5.9022, 6.5498, 5.2299),
)

SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    denoiser="unet",
    # Any widths: what makes the family is the pooled text with six numbers behind it. Relatives
    # that are conditioned otherwise (Kolors, the refiner) are asked before it.
    shape=Shape(
        {
            "in_channels": (4, 8, 9),
            "out_channels": (4,),
            "class_embed_dim": range(len(SIZES.names) * SIZES.width + 1, 1 << 16),
            "encoder_hid_dim": (0,),
        }
    ),
    components=(LINEAR_DENOISER, TEXT_ENCODER, TEXT_ENCODER_2, AUTOENCODER),
    tokenizers={"text_encoder": "clip", "text_encoder_2": "clip"},
    latents=LATENTS,
    betas=BETAS,
    prediction="epsilon",
    defaults=Defaults(1024, 1024, steps=30, guidance=5.0, sampler="euler", schedule="discrete"),
    text=(
        TextUse("text_encoder", skip=1, final_norm=False),
        TextUse("text_encoder_2", skip=1, final_norm=False, pooled=True, pad=0),
    ),
    size_conditioning=SIZES,
    empty_negative_is_zeros=True,
    resolutions=RESOLUTIONS,
    variants=(
        Variant("Stable Diffusion XL inpainting", Shape({"in_channels": (9,)}), task="inpaint"),
        Variant("InstructPix2Pix (SDXL)", Shape({"in_channels": (8,)}), task="edit"),
        Variant(
            "Stable Diffusion XL, latent consistency",
            Shape({"time_cond_proj_dim": (256, 512)}),
            defaults={"steps": 4, "guidance": 8.0, "sampler": "lcm", "schedule": "lcm"},
        ),
        Variant(
            "Playground 2.5 (SDXL)",
            Shape({}),
            markers=("edm_mean", "edm_std"),
            latents=PLAYGROUND_LATENTS,
            prediction="edm",
            # The published model's example.
            defaults={"steps": 50, "guidance": 3.0, "sampler": "dpm++2m", "schedule": "karras"},
        ),
        Variant(
            "Stable Diffusion XL, continuous noise (CosXL)",
            Shape({}),
            markers=("edm_vpred.sigma_max",),
            prediction="edm_v_prediction",
        ),
        Variant(
            "SSD-1B (SDXL, pruned)",
            Shape(
                {
                    "mid_block": ("resnet",),
                    "up_transformer_layers": ([[4, 4, 10], [2, 1, 1], [0, 0, 0]],),
                }
            ),
            # The published model's example.
            defaults={"steps": 25, "guidance": 9.0},
        ),
        Variant(
            "Segmind-Vega (SDXL, pruned)",
            Shape({"mid_block": ("resnet",)}),
            defaults={"steps": 25, "guidance": 9.0},
        ),
    ),
)
