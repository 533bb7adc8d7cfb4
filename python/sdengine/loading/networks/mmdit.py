"""The hyper-parameters of an SD3 denoiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_divides
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer
from sdengine.loading.networks.shapes import Shapes

PATCH = 2
# Of every published member: the width is 64 times the number of blocks, which is that of heads
# (Stability-AI/sd3.5, mmditx.py).
_HEAD_DIM = 64
_FIRST = "transformer_blocks.0"


def position_side(shapes: Shapes, width: int) -> int:
    """Places on a side of the square table of positions."""
    places = shapes.columns("pos_embed.pos_embed", width)
    side = math.isqrt(places)
    if side * side != places:
        raise WeightsError(
            f"'pos_embed.pos_embed' has {places} positions; expected a square number."
            " Is the file damaged?"
        )
    return side


def blocks_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """What the blocks' parameters tell; a control network has the same blocks."""
    layers = shapes.count("transformer_blocks.")
    head_norm = f"{_FIRST}.attn.norm_q.weight"
    return {
        "head_dim": shapes.length(head_norm) if head_norm in shapes else _HEAD_DIM,
        "layers": layers,
        "dual_attention_layers": [
            i for i in range(layers) if f"transformer_blocks.{i}.attn2.to_q.bias" in shapes
        ],
        "qk_norm": head_norm in shapes,
    }


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the denoiser with these parameters."""
    width = shapes.length("context_embedder.bias")
    patch = shapes.kernel("pos_embed.proj.weight", PATCH)
    return {
        "in_channels": shapes.columns("pos_embed.proj.weight", width, patch),
        "out_channels": shapes.length("proj_out.bias") // (patch * patch),
        "patch_size": patch,
        "position_side": position_side(shapes, width),
        "width": width,
        **blocks_from_shapes(shapes),
        "context_width": shapes.columns("context_embedder.weight", width),
        "pooled_width": shapes.columns("time_text_embed.text_embedder.linear_1.weight", width),
    }


UNTOLD = frozenset({"head_dim"})
"""Hyper-parameters that no shape tells (where heads are not normed)."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(json, {"qk_norm": ("rms_norm" if config["qk_norm"] else None,)})
    head_dim = integer(json, "attention_head_dim", config["head_dim"])
    check_divides("attention_head_dim", head_dim, [config["width"]])
    dual = {"dual_attention_layers": config["dual_attention_layers"]}
    check_facts(
        json,
        {
            "in_channels": config["in_channels"],
            "out_channels": config["out_channels"],
            "patch_size": config["patch_size"],
            "pos_embed_max_size": config["position_side"],
            "num_layers": config["layers"],
            "num_attention_heads": config["width"] // head_dim,
            "caption_projection_dim": config["width"],
            "joint_attention_dim": config["context_width"],
            "pooled_projection_dim": config["pooled_width"],
            **({"attention_head_dim": config["head_dim"]} if config["qk_norm"] else {}),
            **(dual if "dual_attention_layers" in json else {}),
        },
    )
    return {**config, "head_dim": head_dim}


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no SD3 denoiser can have."""
    check_divides("head_dim", config["head_dim"], [config["width"]])
    if config["patch_size"] not in (1, 2):
        raise WeightsError(f"patch_size = {config['patch_size']!r}; expected 1 or 2")
    if config["layers"] < 1:
        raise WeightsError("the SD3 denoiser has no blocks; the file is incomplete")
