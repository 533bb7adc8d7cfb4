"""Stable Diffusion 1.x: 1.4, 1.5, their fine-tunes, inpainting and editing models, pruned ones.

Figures: the configs of CompVis/stable-diffusion (v1-inference.yaml) and of the published diffusers
folders; see also docs/adding-a-model.md.
"""

from __future__ import annotations

from sdengine.families.family import Component, Family, Shape, Variant
from sdengine.families.settings import Betas, Defaults, LatentFormat
from sdengine.keys import autoencoder_kl, autoencoder_tiny, clip_text, unet

# Single files (LDM, A1111, stable-diffusion.cpp) first, then diffusers folders, other tools'
# prefixes, and none for files that hold one component.
DENOISER = Component(
    name="unet",
    title="a UNet",
    kind="unet",
    prefixes=(
        "model.diffusion_model.",
        "unet/",
        "model.model.",
        "diffusion_model.",
        "unet.",
        "net.",
        "model.",
        "",
    ),
    tables=(unet.LDM, unet.DIFFUSERS),
    argument="model",
    written=("model.diffusion_model.", unet.LDM.name),
)
TEXT_ENCODER = Component(
    name="text_encoder",
    title="a CLIP text encoder",
    kind="clip_text",
    prefixes=(
        "cond_stage_model.transformer.",
        "text_encoder/",
        "text_encoders.clip_l.transformer.",
        "text_encoders.clip_l.",
        "conditioner.embedders.0.transformer.",
        "cond_stage_model.clip_l.transformer.",
        "cond_stage_model.model.",
        "cond_stage_model.",
        "clip_l.transformer.",
        "clip_l.",
        "text_encoder.",
        "te.",
        "",
    ),
    tables=(clip_text.TRANSFORMERS, clip_text.TRANSFORMERS_BARE, clip_text.OPEN_CLIP),
    argument="text_encoders",
    written=("cond_stage_model.transformer.", clip_text.TRANSFORMERS.name),
)
TINY_AUTOENCODER = Component(
    name="vae",
    title="a tiny autoencoder (TAESD)",
    kind="autoencoder_tiny",
    prefixes=("first_stage_model.", "vae/", "vae.", "tae.", "taesd.", ""),
    tables=(
        autoencoder_tiny.DIFFUSERS,
        autoencoder_tiny.ORIGINAL_PAIR,
        autoencoder_tiny.ORIGINAL,
        autoencoder_tiny.ORIGINAL_DECODER,
    ),
    argument="vae",
    written=("first_stage_model.", autoencoder_tiny.DIFFUSERS.name),
)
AUTOENCODER = Component(
    name="vae",
    title="a KL autoencoder (VAE)",
    kind="autoencoder_kl",
    prefixes=("first_stage_model.", "vae/", "vae.", ""),
    tables=(autoencoder_kl.LDM, autoencoder_kl.DIFFUSERS_OLD, autoencoder_kl.DIFFUSERS),
    argument="vae",
    written=("first_stage_model.", autoencoder_kl.LDM.name),
    alternatives=(TINY_AUTOENCODER,),
)

SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    denoiser="unet",
    # Any widths: what makes the family is plain text conditioning over four latent channels.
    # A relative of the same structure (SD2, by its context of 1024) is asked before it.
    shape=Shape(
        {
            "in_channels": (4, 8, 9),
            "out_channels": (4,),
            "class_embed_dim": (0,),
            "encoder_hid_dim": (0,),
        }
    ),
    components=(DENOISER, TEXT_ENCODER, AUTOENCODER),
    tokenizers={"text_encoder": "clip"},
    latents=LatentFormat(channels=4, scale=0.18215, shift=0.0, factor=8),
    betas=Betas("scaled_linear", 0.00085, 0.012),
    prediction="epsilon",
    defaults=Defaults(512, 512, steps=20, guidance=7.5, sampler="euler_a", schedule="discrete"),
    attention_heads=8,
    variants=(
        Variant("Stable Diffusion 1.x inpainting", Shape({"in_channels": (9,)}), task="inpaint"),
        Variant("InstructPix2Pix (SD 1.x)", Shape({"in_channels": (8,)}), task="edit"),
        Variant(
            "SDXS-512 (SD 1.x, one step)",
            Shape({"mid_block": ("none",), "down_transformer_layers": ([[0], [1], [1]],)}),
            # Distilled to one evaluation at the last training timestep, without guidance
            # (the model's published example).
            defaults={"steps": 1, "guidance": 1.0, "sampler": "euler", "schedule": "sgm_uniform"},
        ),
        Variant(
            "Stable Diffusion 1.x, latent consistency",
            Shape({"time_cond_proj_dim": (256, 512)}),
            defaults={"steps": 4, "guidance": 8.0, "sampler": "lcm", "schedule": "trailing"},
        ),
        Variant(
            "Stable Diffusion 1.x tiny (pruned)",
            Shape({"mid_block": ("none",), "layers_per_block": ([1, 1, 1],)}),
            defaults={"steps": 25},
        ),
        Variant(
            "Stable Diffusion 1.x small (pruned)",
            Shape({"layers_per_block": ([1, 1, 1, 1],)}),
            defaults={"steps": 25},
        ),
    ),
)
