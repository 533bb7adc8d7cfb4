"""Kolors: the UNet of SDXL that reads ChatGLM3.

Figures: Kwai-Kolors/Kolors-diffusers (unet, scheduler and text encoder configs).
"""

from __future__ import annotations

from sdengine.families.family import Component, Family, Shape, TextUse
from sdengine.families.sd1 import AUTOENCODER
from sdengine.families.sd2 import LINEAR_DENOISER
from sdengine.families.sdxl import LATENTS, RESOLUTIONS, SIZES
from sdengine.families.settings import Betas, Defaults
from sdengine.keys import decoder_text

TEXT_ENCODER = Component(
    name="text_encoder",
    title="a ChatGLM3 text encoder",
    kind="decoder_text",
    prefixes=(
        "text_encoder/",
        "text_encoders.chatglm3.transformer.",
        "text_encoders.chatglm3.",
        "cond_stage_model.",
        "transformer.",
        "",
    ),
    tables=(decoder_text.CHATGLM, decoder_text.TRANSFORMERS),
    argument="text_encoders",
    # Not under ChatGLM's own names, which fuse what `convert` writes one by one.
    written=("text_encoders.chatglm3.", decoder_text.TRANSFORMERS.name),
    known={"eps": 1e-5, "rope_theta": 1e4},
)

KOLORS = Family(
    name="kolors",
    title="Kolors",
    denoiser="unet",
    # The text, 4096 wide, is projected to the 2048 of the attentions; its pooled vector is not.
    shape=Shape(
        {
            "in_channels": (4, 9),
            "out_channels": (4,),
            "class_embed_dim": range(len(SIZES.names) * SIZES.width + 1, 1 << 16),
            "encoder_hid_dim": range(1, 1 << 16),
        }
    ),
    components=(LINEAR_DENOISER, TEXT_ENCODER, AUTOENCODER),
    tokenizers={"text_encoder": "chatglm"},
    latents=LATENTS,
    betas=Betas("scaled_linear", 0.00085, 0.014, count=1100),
    prediction="epsilon",
    defaults=Defaults(1024, 1024, steps=50, guidance=5.0, sampler="euler", schedule="leading"),
    text=(TextUse("text_encoder", skip=1, final_norm=False, pooled=True),),
    size_conditioning=SIZES,
    resolutions=RESOLUTIONS,
)
