"""The hyper-parameters of a PixArt denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.families import Family
from sdengine.loading.networks.checks import check_between, check_divides, check_variances
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer, number
from sdengine.loading.networks.shapes import Shapes

_PATCH = 2
# Of every published member: 16 heads of 72, and positions that part a picture of any size into 32
# units along each axis (PixArt-alpha, PixArt-sigma: configs; base size / interpolation scale).
_HEAD_DIM = 72
_SPAN = 32.0
_WIDTH_PARTS = 12  # three micro-conditions; sine and cosine of rows and columns


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the denoiser with these parameters."""
    width = shapes.length("pos_embed.proj.bias")
    caption = "caption_projection."
    null_caption = f"{caption}y_embedding"
    return {
        "in_channels": shapes.columns("pos_embed.proj.weight", width, _PATCH),
        "out_channels": shapes.length("proj_out.bias") // _PATCH**2,
        "width": width,
        "head_dim": _HEAD_DIM,
        "layers": shapes.count("transformer_blocks."),
        "context_width": shapes.columns(f"{caption}linear_1.weight", width),
        "micro_conditions": "adaln_single.emb.resolution_embedder.linear_1.bias" in shapes,
        # 120 for alpha, 300 for sigma; 0 where the file does not tell.
        "caption_tokens": shapes.size(null_caption, 0) if null_caption in shapes else 0,
        "position_span": _SPAN,
    }


UNTOLD = frozenset({"head_dim", "position_span", "caption_tokens"})
"""Hyper-parameters that no shape tells."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(
        json,
        {
            "patch_size": (_PATCH,),
            "activation_fn": ("gelu-approximate",),
            "attention_bias": (True,),
            "attention_type": ("default", None),
            "norm_type": ("ada_norm_single",),
            "norm_elementwise_affine": (False,),
            "norm_eps": (1e-6,),
        },
    )
    head_dim = integer(json, "attention_head_dim", config["head_dim"])
    check_divides("attention_head_dim", head_dim, [config["width"]])
    check_facts(
        json,
        {
            "in_channels": config["in_channels"],
            "out_channels": config["out_channels"],
            "num_layers": config["layers"],
            "num_attention_heads": config["width"] // head_dim,
            "cross_attention_dim": config["width"],
            "caption_channels": config["context_width"],
            "use_additional_conditions": config["micro_conditions"],
        },
    )
    span = config["position_span"]
    if "sample_size" in json:
        side = integer(json, "sample_size", 0)
        scale = number(json, "interpolation_scale", float(max(side // 64, 1)))
        check_between("interpolation_scale", scale, 0, 1e6)
        span = side // _PATCH / scale
    return {**config, "head_dim": head_dim, "position_span": span}


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no PixArt denoiser can have."""
    check_divides("head_dim", config["head_dim"], [config["width"]])
    check_divides("the parts of positions and sizes", _WIDTH_PARTS, [config["width"]])
    check_between("position_span", config["position_span"], 0, 1e6)
    check_variances(config)
