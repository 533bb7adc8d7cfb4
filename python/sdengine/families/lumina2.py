"""Lumina-Image 2.0.

Figures: Qin et al. 2025 (arXiv 2503.21758), Alpha-VLLM/Lumina-Image-2.0 (models/model.py, sample.py),
its published diffusers folder and diffusers' Lumina2Pipeline.

What the denoiser reads as context: the states of Gemma 2 before its last layer, of as many tokens as
the text has. The prompt follows a system prompt; the negative one stands alone (diffusers).
"""

from __future__ import annotations

from dataclasses import replace

from sdengine.families.family import Component, Family, Shape, TextUse
from sdengine.families.sd1 import AUTOENCODER
from sdengine.families.sd3 import DENOISER as SD3_DENOISER
from sdengine.families.settings import Betas, Defaults, Flow, LatentFormat
from sdengine.keys import decoder_text, lumina2

DENOISER = replace(
    SD3_DENOISER,
    title="a diffusion transformer (Lumina-Image 2.0)",
    kind="lumina2",
    tables=(lumina2.ORIGINAL, lumina2.DIFFUSERS),
    written=("model.diffusion_model.", lumina2.ORIGINAL.name),
)
TEXT_ENCODER = Component(
    name="text_encoder",
    title="a Gemma 2 text encoder",
    kind="decoder_text",
    prefixes=(
        "text_encoders.gemma2_2b.transformer.",
        "text_encoder/",
        "text_encoders.gemma2_2b.",
        "gemma2_2b.transformer.",
        "gemma2_2b.",
        "",
    ),
    tables=(
        decoder_text.TRANSFORMERS,
        decoder_text.TRANSFORMERS_CAUSAL,
        decoder_text.LLAMA_CPP_GEMMA2,
    ),
    argument="text_encoders",
    written=("text_encoders.gemma2_2b.transformer.", decoder_text.TRANSFORMERS.name),
    # A tokenizer inside ComfyUI's files.
    ignored=("spiece_model",),
    told_by={"post_norms": (True,)},
)
SYSTEM_PROMPT = (
    "You are an assistant designed to generate superior images with the superior degree of"
    " image-text alignment based on textual prompts or user prompts."
)
"""What the publisher trained it with."""

LUMINA2 = Family(
    name="lumina2",
    title="Lumina-Image 2.0",
    denoiser="transformer",
    shape=Shape({"in_channels": (16,), "out_channels": (16,)}),
    components=(DENOISER, TEXT_ENCODER, AUTOENCODER),
    tokenizers={"text_encoder": "gemma"},
    latents=LatentFormat(channels=16, scale=0.3611, shift=0.1159, factor=8),
    betas=Betas("linear", 0.0001, 0.02),
    prediction="flow",
    flow=Flow(shift=6.0),
    defaults=Defaults(1024, 1024, steps=50, guidance=4.0, sampler="euler", schedule="trailing"),
    text=(TextUse("text_encoder", skip=1, final_norm=False, trimmed=True),),
    norms="row",
    prompt_prefix=f"{SYSTEM_PROMPT} <Prompt Start> ",
    patch=2,
)
