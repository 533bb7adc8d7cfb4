"""Hunyuan-DiT 1.0, 1.1 and 1.2 (Li et al. 2024, arXiv 2405.08748).

Figures: Tencent/HunyuanDiT (hydit/constants.py, hydit/config.py, README.md), the configs of the published diffusers
folders, and diffusers' HunyuanDiTPipeline.

What the denoiser reads: the last states of a Chinese BERT, and those of mT5-XL as an input of their own, both padded,
each with a mask. Up to 1.1 it is told sizes too.
"""

from __future__ import annotations

from dataclasses import replace

from sdengine.families.family import Component, Family, Shape, SizeConditioning, TextUse, Variant
from sdengine.families.sd1 import AUTOENCODER
from sdengine.families.sd3 import DENOISER as SD3_DENOISER
from sdengine.families.sdxl import LATENTS
from sdengine.families.settings import Betas, Defaults
from sdengine.keys import bert_text, hunyuan_dit, t5_text

DENOISER = replace(
    SD3_DENOISER,
    title="a diffusion transformer (Hunyuan-DiT)",
    kind="hunyuan_dit",
    tables=(hunyuan_dit.ORIGINAL, hunyuan_dit.DIFFUSERS),
    written=("model.diffusion_model.", hunyuan_dit.ORIGINAL.name),
)
TEXT_ENCODER = Component(
    name="text_encoder",
    title="a BERT text encoder",
    kind="bert_text",
    prefixes=(
        "text_encoders.hydit_clip.transformer.bert.",
        "text_encoder/",
        "text_encoders.hydit_clip.transformer.",
        "text_encoders.hydit_clip.",
        "hydit_clip.transformer.bert.",
        "bert.",
        "",
    ),
    tables=(bert_text.TRANSFORMERS,),
    argument="text_encoders",
    written=("text_encoders.hydit_clip.transformer.bert.", bert_text.TRANSFORMERS.name),
)
TEXT_ENCODER_2 = Component(
    name="text_encoder_2",
    title="an mT5-XL text encoder",
    kind="t5_text",
    prefixes=(
        "text_encoders.mt5xl.transformer.",
        "text_encoder_2/",
        "text_encoders.mt5xl.",
        "mt5xl.transformer.",
        "",
    ),
    tables=t5_text.TABLES,
    argument="text_encoders",
    written=("text_encoders.mt5xl.transformer.", t5_text.TRANSFORMERS.name),
    ignored=("spiece_model",),  # its tokenizer, which is read as one
)

# Its tensors are those of the model that it was distilled from, to half of the steps.
_DISTILLED = Variant(
    "Hunyuan-DiT 1.2 Distilled", Shape({}), defaults={"steps": 25}, names=("distill(?:ed)?",)
)

HUNYUAN_DIT = Family(
    name="hunyuan_dit",
    title="Hunyuan-DiT 1.2",
    denoiser="transformer",
    shape=Shape({"in_channels": (4,), "out_channels": (4, 8), "styles": (0,)}),
    components=(DENOISER, TEXT_ENCODER, TEXT_ENCODER_2, AUTOENCODER),
    tokenizers={"text_encoder": "bert", "text_encoder_2": "mt5"},
    latents=LATENTS,
    betas=Betas("scaled_linear", 0.00085, 0.018, steps_offset=1),
    prediction="v_prediction",
    defaults=Defaults(1024, 1024, steps=50, guidance=5.0, sampler="ddpm", schedule="leading"),
    text=(
        TextUse("text_encoder", masked=True),
        TextUse("text_encoder_2", feeds="context_2", length=256, masked=True),
    ),
    patch=2,
    variants=(_DISTILLED,),
    resolutions=(
        *((768, 1280), (768, 1024), (864, 1152), (960, 1280), (1024, 1024), (1280, 1280)),
        *((1024, 768), (1152, 864), (1280, 960), (1280, 768)),
    ),
)
HUNYUAN_DIT_1_1 = replace(
    HUNYUAN_DIT,
    name="hunyuan_dit_1_1",
    title="Hunyuan-DiT 1.1",  # and 1.0, whose tensors and settings are the same
    shape=Shape({"in_channels": (4,), "out_channels": (4, 8), "styles": range(1, 1 << 16)}),
    betas=Betas("scaled_linear", 0.00085, 0.03, steps_offset=1),
    size_conditioning=SizeConditioning(
        names=(
            *("original_height", "original_width", "target_height", "target_width"),
            *("crop_top", "crop_left"),
        ),
        with_pooled=False,
        usual={"original_height": 1024.0, "original_width": 1024.0},
    ),
    variants=(replace(_DISTILLED, title="Hunyuan-DiT 1.1 Distilled"),),
)
