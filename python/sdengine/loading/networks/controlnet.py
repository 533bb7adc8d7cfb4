"""The hyper-parameters of a ControlNet: those of a UNet's way down, and of what reads the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks import unet
from sdengine.loading.networks.json_config import (
    Json,
    check_facts,
    check_options,
    integer,
    number,
)
from sdengine.loading.networks.shapes import Shapes

_KERNEL = 3
_HINT = "controlnet_cond_embedding"


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the ControlNet with these parameters."""
    pairs = shapes.count(f"{_HINT}.blocks.") // 2
    channels = [shapes.length(f"{_HINT}.conv_in.bias")]
    channels += [shapes.length(f"{_HINT}.blocks.{2 * i + 1}.bias") for i in range(pairs)]
    return {
        **unet.encoder_from_shapes(shapes, family),
        "hint_channels": shapes.columns(f"{_HINT}.conv_in.weight", channels[0], _KERNEL),
        "hint_block_channels": channels,
        "global_pool": False,
    }


def union_from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the ControlNet-Union with these parameters."""
    config = from_shapes(shapes, family)
    return {
        **config,
        "tasks": shapes.columns("task_embedding.weight", config["block_out_channels"][0]),
        "fusion_layers": shapes.count("transformer_layes."),
    }


UNTOLD = unet.UNTOLD | {"global_pool"}
"""Hyper-parameters that no shape tells."""

_OPTIONS: dict[str, tuple[Any, ...]] = {
    **unet.OPTIONS,
    "controlnet_conditioning_channel_order": ("rgb",),
}


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(json, _OPTIONS)
    check_facts(
        json,
        {
            "in_channels": config["in_channels"],
            "layers_per_block": config["layers_per_block"],
            "block_out_channels": config["block_out_channels"],
            "conditioning_channels": config["hint_channels"],
            "conditioning_embedding_out_channels": config["hint_block_channels"],
        },
    )
    if config["cross_attention_dim"]:
        check_facts(json, {"cross_attention_dim": config["cross_attention_dim"]})
    return {
        **config,
        "attention_heads": unet.attention_heads(json, config),
        "norm_groups": integer(json, "norm_num_groups", config["norm_groups"]),
        "norm_eps": number(json, "norm_eps", config["norm_eps"]),
        "addition_time_embed_dim": integer(
            json, "addition_time_embed_dim", config["addition_time_embed_dim"]
        ),
        "global_pool": json.get("global_pool_conditions") is True,
    }


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no ControlNet can have."""
    unet.check(config)
    if config["mid_block"] == "none":
        raise WeightsError("the ControlNet has no mid_block; the file is incomplete")
