"""Stable Diffusion 3 and 3.5: Medium, 3.5 Medium, 3.5 Large and Large Turbo.

Figures: Esser et al. 2024 (arXiv 2403.03206), Stability-AI/sd3.5 (sd3_infer.py) and the configs of the
published diffusers folders.

What the denoiser reads as context: the penultimate states of both CLIP encoders side by side (2048
wide), filled up with zeros to T5's 4096, and behind them along the tokens T5's last states. Pooled:
both CLIP encoders' projected vectors side by side.
"""

from __future__ import annotations

from sdengine.families.family import Component, Family, Shape, TextUse, Variant
from sdengine.families.sd1 import AUTOENCODER
from sdengine.families.sdxl import TEXT_ENCODER, TEXT_ENCODER_2
from sdengine.families.settings import Betas, Defaults, Flow, LatentFormat
from sdengine.keys import mmdit, t5_text

DENOISER = Component(
    name="transformer",
    title="a diffusion transformer (SD3)",
    kind="mmdit",
    prefixes=(
        "model.diffusion_model.",
        "transformer/",
        "model.model.",
        "diffusion_model.",
        "transformer.",
        "net.",
        "model.",
        "",
    ),
    tables=(mmdit.REFERENCE, mmdit.DIFFUSERS),
    argument="model",
    written=("model.diffusion_model.", mmdit.REFERENCE.name),
)
TEXT_ENCODER_3 = Component(
    name="text_encoder_3",
    title="a T5-XXL text encoder",
    kind="t5_text",
    prefixes=(
        "text_encoders.t5xxl.transformer.",
        "text_encoder_3/",
        "text_encoders.t5xxl.",
        "cond_stage_model.2.transformer.",
        "t5xxl.transformer.",
        "t5xxl.",
        "",
    ),
    tables=(t5_text.TRANSFORMERS, t5_text.TRANSFORMERS_UNSHARED, t5_text.LLAMA_CPP),
    argument="text_encoders",
    written=("text_encoders.t5xxl.transformer.", t5_text.TRANSFORMERS.name),
    optional=True,
    # mT5-XXL and UMT5-XXL, as wide, have eight times as many words, and UMT5 has positions in every layer.
    told_by={"vocab_size": range(1, 1 << 16), "bias_per_layer": (False,)},
)

SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3",
    denoiser="transformer",
    shape=Shape({"in_channels": (16,), "out_channels": (16,), "pooled_width": (2048,)}),
    components=(DENOISER, TEXT_ENCODER, TEXT_ENCODER_2, TEXT_ENCODER_3, AUTOENCODER),
    tokenizers={"text_encoder": "clip", "text_encoder_2": "clip", "text_encoder_3": "t5"},
    latents=LatentFormat(channels=16, scale=1.5305, shift=0.0609, factor=8),
    betas=Betas("linear", 0.0001, 0.02),
    prediction="flow",
    flow=Flow(shift=3.0),
    defaults=Defaults(1024, 1024, steps=28, guidance=4.5, sampler="euler", schedule="discrete"),
    text=(
        TextUse("text_encoder", skip=1, final_norm=False, pooled=True),
        TextUse("text_encoder_2", skip=1, final_norm=False, pooled=True, pad=0),
        TextUse("text_encoder_3", segment=1, length=256),
    ),
    patch=2,
    variants=(
        # Large Turbo has Large's shapes: a recipe knows it by its name.
        Variant("Stable Diffusion 3.5 Large", Shape({"layers": (38,), "qk_norm": (True,)})),
        Variant("Stable Diffusion 3.5 Medium", Shape({"layers": (24,), "qk_norm": (True,)})),
        Variant("Stable Diffusion 3 Medium", Shape({"layers": (24,), "qk_norm": (False,)})),
    ),
)
