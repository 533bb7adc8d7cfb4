"""The hyper-parameters of a FLUX.1 denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.families import Family
from sdengine.loading.networks.checks import (
    check_channels,
    check_divides,
    check_rope_axes,
    rope_axes,
)
from sdengine.loading.networks.json_config import Json, check_facts, check_options
from sdengine.loading.networks.shapes import Shapes

_PATCH_AREA = 4  # FLUX packs 2 x 2 latents into a token; its tensors are counted in packed channels


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the denoiser with these parameters."""
    width = shapes.length("x_embedder.bias")
    head_dim = shapes.length("single_transformer_blocks.0.attn.norm_q.weight")
    return {
        "in_channels": shapes.columns("x_embedder.weight", width) // _PATCH_AREA,
        "out_channels": shapes.length("proj_out.bias") // _PATCH_AREA,
        "width": width,
        "head_dim": head_dim,
        "layers": shapes.count("transformer_blocks."),
        "single_layers": shapes.count("single_transformer_blocks."),
        "context_width": shapes.columns("context_embedder.weight", width),
        "pooled_width": shapes.columns("time_text_embed.text_embedder.linear_1.weight", width),
        "guidance": "time_text_embed.guidance_embedder.linear_1.bias" in shapes,
        "rope_axes": rope_axes(head_dim),
    }


UNTOLD = frozenset({"rope_axes"})
"""Hyper-parameters that no shape tells."""


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers' config.json says of the blocks, of a denoiser and of a ControlNet alike."""
    return {
        "in_channels": config["in_channels"] * _PATCH_AREA,
        "num_layers": config["layers"],
        "num_single_layers": config["single_layers"],
        "attention_head_dim": config["head_dim"],
        "num_attention_heads": config["width"] // config["head_dim"],
        "joint_attention_dim": config["context_width"],
        "pooled_projection_dim": config["pooled_width"],
        "guidance_embeds": config["guidance"],
    }


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(json, {"patch_size": (1,)})
    out = {"out_channels": config["out_channels"] * _PATCH_AREA}
    check_facts(json, {**facts(config), **out})
    axes = json.get("axes_dims_rope")
    return config if axes is None else {**config, "rope_axes": axes}


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no FLUX denoiser can have."""
    check_divides("head_dim", config["head_dim"], [config["width"]])
    check_rope_axes(config["rope_axes"], config["head_dim"])
    check_channels(config)
