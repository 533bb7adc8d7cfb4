"""Tiny random PixArt models, and their denoiser under the publisher's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.dit_models import _t5
from tests.models import VAE_CONFIG, randomise

State = dict[str, torch.Tensor]

CONTEXT = 32
SIGMA: dict[str, Any] = {
    "sample_size": 64,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "cross_attention_dim": 24,
    "caption_channels": CONTEXT,
    "use_additional_conditions": False,
}
ALPHA = SIGMA | {"sample_size": 128, "use_additional_conditions": True}
BETAS = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}


def tiny_pixart_folder(path: Path, config: Mapping[str, Any], pipeline: str) -> Path:
    """A diffusers folder; `pipeline` is ``PixArtAlphaPipeline`` or ``PixArtSigmaPipeline``."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel

    _t5(path, "text_encoder", CONTEXT, 1)
    torch.manual_seed(2)
    denoiser = PixArtTransformer2DModel(**config)
    randomise(denoiser, 2)
    denoiser.save_pretrained(path / "transformer")
    torch.manual_seed(3)
    scale = 0.18215 if "Alpha" in pipeline else 0.13025
    vae = AutoencoderKL(**{**VAE_CONFIG, "scaling_factor": scale})
    randomise(vae, 3)
    vae.save_pretrained(path / "vae")
    DPMSolverMultistepScheduler(**BETAS).save_pretrained(path / "scheduler")
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (path / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return path


_NAMES = (
    ("pos_embed.proj", "x_embedder.proj"),
    ("adaln_single.emb.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("adaln_single.emb.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("adaln_single.emb.resolution_embedder.linear_1", "csize_embedder.mlp.0"),
    ("adaln_single.emb.resolution_embedder.linear_2", "csize_embedder.mlp.2"),
    ("adaln_single.emb.aspect_ratio_embedder.linear_1", "ar_embedder.mlp.0"),
    ("adaln_single.emb.aspect_ratio_embedder.linear_2", "ar_embedder.mlp.2"),
    ("adaln_single.linear", "t_block.1"),
    ("caption_projection.linear_", "y_embedder.y_proj.fc"),
    ("proj_out", "final_layer.linear"),
    ("attn1.to_out.0", "attn.proj"),
    ("attn2.to_q", "cross_attn.q_linear"),
    ("attn2.to_out.0", "cross_attn.proj"),
    ("ff.net.0.proj", "mlp.fc1"),
    ("ff.net.2", "mlp.fc2"),
    ("transformer_blocks.", "blocks."),
)


def to_original(state: Mapping[str, torch.Tensor], tokens: int = 300) -> State:
    """A diffusers state dict under PixArt's names, with what only its own files have.

    Written from diffusers' conversion scripts for PixArt, without `sdengine.keys`.
    """
    width = state["pos_embed.proj.bias"].shape[0]
    context = state["caption_projection.linear_1.weight"].shape[1]
    like = state["scale_shift_table"]
    result: State = {
        "y_embedder.y_embedding": torch.zeros(tokens, context, device=like.device),
        "pos_embed": torch.zeros(1, 16, width, device=like.device),
        "final_layer.scale_shift_table": like,
    }
    for name, tensor in state.items():
        fused = next((x for x in ("attn1.to_", "attn2.to_") if x in name), "")
        if name == "scale_shift_table":
            continue
        if fused and any(f"{fused}{x}." in name for x in "kv"):
            continue
        new = name
        for ours, theirs in _NAMES:
            new = new.replace(ours, theirs)
        if "attn1.to_q." in name:
            tensor = torch.cat([state[name.replace("to_q", f"to_{x}")] for x in "qkv"])
            new = new.replace("attn1.to_q", "attn.qkv")
        if "attn2.to_q." in name:
            keys = torch.cat([state[name.replace("to_q", f"to_{x}")] for x in "kv"])
            result[new.replace("q_linear", "kv_linear")] = keys
        result[new] = tensor
    return result
