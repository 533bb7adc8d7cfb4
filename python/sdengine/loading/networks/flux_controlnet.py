"""The hyper-parameters of a ControlNet for FLUX.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks import flux
from sdengine.loading.networks.checks import check_divides, check_rope_axes, rope_axes
from sdengine.loading.networks.json_config import Json, check_facts, check_options
from sdengine.loading.networks.shapes import Shapes

_PATCH_AREA = 4  # tensors are counted in packed channels, as the denoiser's
_KERNEL = 3
_HINT = "input_hint_block"


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the ControlNet with these parameters."""
    width = shapes.length("x_embedder.bias")
    head_dim = shapes.length("transformer_blocks.0.attn.norm_q.weight")
    modes = "controlnet_mode_embedder.weight"
    channels: list[int] = []
    if f"{_HINT}.conv_in.bias" in shapes:
        pairs = shapes.count(f"{_HINT}.blocks.") // 2
        channels = [shapes.length(f"{_HINT}.conv_in.bias")]
        channels += [shapes.length(f"{_HINT}.blocks.{2 * i + 1}.bias") for i in range(pairs)]
    read = f"{_HINT}.conv_in.weight"
    return {
        "in_channels": shapes.columns("x_embedder.weight", width) // _PATCH_AREA,
        "hint_channels": shapes.columns(read, channels[0], _KERNEL)
        if channels
        else shapes.columns("controlnet_x_embedder.weight", width) // _PATCH_AREA,
        "hint_block_channels": channels,
        "tasks": shapes.columns(modes, width) if modes in shapes else 0,
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


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    pixels = bool(config["hint_block_channels"])
    # diffusers packs latents before the network, and what was made of pixels inside it.
    check_options(json, {"patch_size": (2 if pixels else 1,)})
    check_facts(
        json,
        {
            **flux.facts(config),
            **({"num_mode": config["tasks"]} if config["tasks"] else {}),
            **({"conditioning_embedding_channels": config["in_channels"]} if pixels else {}),
        },
    )
    axes = json.get("axes_dims_rope")
    return config if axes is None else {**config, "rope_axes": axes}


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no such ControlNet can have."""
    check_divides("head_dim", config["head_dim"], [config["width"]])
    check_rope_axes(config["rope_axes"], config["head_dim"])
    if not config["in_channels"] or not config["hint_channels"]:
        raise WeightsError("the FLUX ControlNet reads less than one channel")
