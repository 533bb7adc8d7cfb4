"""Stable Diffusion 2.x: 2.0, 2.1 (512 and 768), Turbo, inpainting, depth, pruned ones.

Figures: the configs of Stability-AI/stablediffusion (v2-inference.yaml, v2-inference-v.yaml,
v2-inpainting-inference.yaml, v2-midas-inference.yaml) and of the published diffusers folders.
"""

from __future__ import annotations

from dataclasses import replace

from sdengine.families.family import (
    Component,
    Family,
    PredictionTest,
    Shape,
    TextUse,
    Variant,
)
from sdengine.families.sd1 import AUTOENCODER, DENOISER
from sdengine.families.settings import Betas, Defaults, LatentFormat
from sdengine.keys import clip_text

_PLAIN = Shape({"in_channels": (4,), "mid_block": ("cross_attention",)})

# Converters may keep the projections around the attentions as 1x1 kernels (stable-diffusion.cpp).
LINEAR_DENOISER = replace(DENOISER, known={"linear_projection": True})
TEXT_ENCODER = Component(
    name="text_encoder",
    title="an OpenCLIP ViT-H text encoder",
    kind="clip_text",
    prefixes=(
        "cond_stage_model.model.",
        "text_encoder/",
        "conditioner.embedders.0.model.",
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_h.transformer.",
        "text_encoders.clip_h.",
        "text_encoders.clip_l.transformer.",
        "cond_stage_model.clip_h.transformer.",
        "clip_h.transformer.",
        "clip_h.",
        "text_encoder.",
        "te.",
        "",
    ),
    tables=(
        clip_text.OPEN_CLIP,
        clip_text.SD_CPP_FUSED,
        clip_text.TRANSFORMERS,
        clip_text.TRANSFORMERS_BARE,
    ),
    argument="text_encoders",
    written=("cond_stage_model.transformer.", clip_text.TRANSFORMERS.name),
    known={"activation": "gelu"},
    # The last of the 24 layers is not read: `FrozenOpenCLIPEmbedder` stops before it, and diffusers
    # folders do not have it. Without it, every layout holds the same network.
    ignored=(
        "transformer.resblocks.23.*",
        "text_model.encoder.layers.23.*",
        "encoder.layers.23.*",
    ),
)

SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    denoiser="unet",
    shape=Shape(
        {
            "in_channels": (4, 5, 9),
            "out_channels": (4,),
            "cross_attention_dim": (1024,),
            "class_embed_dim": (0,),
            "encoder_hid_dim": (0,),
        }
    ),
    components=(LINEAR_DENOISER, TEXT_ENCODER, AUTOENCODER),
    tokenizers={"text_encoder": "clip"},
    latents=LatentFormat(channels=4, scale=0.18215, shift=0.0, factor=8),
    betas=Betas("scaled_linear", 0.00085, 0.012),
    prediction="epsilon",
    defaults=Defaults(512, 512, steps=25, guidance=7.5, sampler="euler_a", schedule="discrete"),
    text=(TextUse("text_encoder", pad=0),),
    # The 768 model that predicts the velocity has the shapes of the 512 model, but other values:
    # ComfyUI's `model_detection.py` and `supported_models.py` (SD20.model_type) tell it by these.
    prediction_test=PredictionTest(
        parameter="up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias",
        deviation=0.09,
        prediction="v_prediction",
        shape=_PLAIN,
        defaults={"width": 768, "height": 768},
    ),
    variants=(
        Variant("Stable Diffusion 2.x inpainting", Shape({"in_channels": (9,)}), task="inpaint"),
        Variant("Stable Diffusion 2.x depth", Shape({"in_channels": (5,)}), task="depth"),
        Variant(
            "SDXS-512-0.9 (SD 2.x, one step)",
            Shape({"mid_block": ("none",), "only_cross_attention": ([True, False, False],)}),
            # As SDXS-512 of Stable Diffusion 1.x.
            defaults={"steps": 1, "guidance": 1.0, "sampler": "euler", "schedule": "sgm_uniform"},
        ),
        Variant("Stable Diffusion 2.x tiny (pruned)", Shape({"mid_block": ("none",)})),
        Variant(
            "Stable Diffusion 2.x small (pruned)",
            Shape({"layers_per_block": ([1, 1, 1, 1],)}),
        ),
    ),
)
