"""PixArt-alpha and PixArt-sigma.

Figures: Chen et al. 2023 (arXiv 2310.00426) and 2024 (arXiv 2403.04692), PixArt-alpha/PixArt-alpha,
PixArt-alpha/PixArt-sigma and the configs of their published diffusers folders.

What the denoiser reads as context: T5's last states, of as many tokens as the text has. Padding is
seen neither by T5 nor by the denoiser.
"""

from __future__ import annotations

from dataclasses import replace

from sdengine.families.family import Component, Family, Shape, TextUse, Variant
from sdengine.families.sd1 import AUTOENCODER, SD1
from sdengine.families.sd3 import DENOISER as SD3_DENOISER
from sdengine.families.sd3 import TEXT_ENCODER_3
from sdengine.families.sdxl import LATENTS, RESOLUTIONS
from sdengine.families.settings import Betas, Defaults
from sdengine.keys import pixart

DENOISER = replace(
    SD3_DENOISER,
    title="a diffusion transformer (PixArt)",
    kind="pixart",
    tables=(pixart.ORIGINAL, pixart.DIFFUSERS),
    written=("model.diffusion_model.", pixart.ORIGINAL.name),
)
TEXT_ENCODER: Component = replace(
    TEXT_ENCODER_3,
    name="text_encoder",
    optional=False,
    prefixes=(
        "text_encoders.t5xxl.transformer.",
        "text_encoder/",
        "text_encoders.t5xxl.",
        "cond_stage_model.transformer.",
        "t5xxl.transformer.",
        "t5xxl.",
        "",
    ),
)
_SIDES = {"in_channels": (4,), "out_channels": (4, 8)}

PIXART_SIGMA = Family(
    name="pixart_sigma",
    title="PixArt-sigma",
    denoiser="transformer",
    # Files under diffusers' names do not tell the length of the texts.
    shape=Shape({"micro_conditions": (False,), "caption_tokens": (0, 300), **_SIDES}),
    components=(DENOISER, TEXT_ENCODER, AUTOENCODER),
    tokenizers={"text_encoder": "t5"},
    latents=LATENTS,
    betas=Betas("linear", 0.0001, 0.02),
    prediction="epsilon",
    defaults=Defaults(1024, 1024, steps=20, guidance=4.5, sampler="dpm++2m", schedule="linspace"),
    text=(TextUse("text_encoder", length=300, lower_case=True, trimmed=True),),
    patch=2,
    # The buckets of its training are SDXL's (diffusion/data/datasets/utils.py).
    resolutions=RESOLUTIONS,
    pipelines=("PixArtSigmaPipeline",),
)
PIXART_ALPHA = replace(
    PIXART_SIGMA,
    name="pixart_alpha",
    title="PixArt-alpha",
    shape=Shape(_SIDES),
    latents=SD1.latents,
    text=(TextUse("text_encoder", length=120, lower_case=True, trimmed=True),),
    pipelines=("PixArtAlphaPipeline",),
    variants=(
        Variant(
            "PixArt-alpha 512",
            Shape({"micro_conditions": (False,)}),
            defaults={"width": 512, "height": 512},
        ),
    ),
)
