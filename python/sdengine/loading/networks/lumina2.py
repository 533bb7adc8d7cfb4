"""The hyper-parameters of a Lumina-Image 2.0 denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.families import Family
from sdengine.loading.networks.checks import check_channels, check_divides, check_rope_axes
from sdengine.loading.networks.json_config import Json, check_facts, check_options
from sdengine.loading.networks.shapes import Shapes

_PATCH_AREA = 4  # 2 x 2 latents are a token
_AXES = 3  # text, row, column
_BLOCK = "noise_refiner.0."


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the denoiser with these parameters."""
    width = shapes.length("x_embedder.bias")
    head_dim = shapes.length(f"{_BLOCK}attn.norm_q.weight")
    # A third of a head for each axis (Alpha-VLLM/Lumina-Image-2.0, models/model.py), in whole pairs.
    place = head_dim // (2 * _AXES) * 2
    keys = shapes.columns(f"{_BLOCK}attn.to_k.weight", width)
    if keys > width:  # the fused q, k and v, see Source.shape
        keys = (keys - width) // 2
    embedder = "time_caption_embed."
    return {
        "in_channels": shapes.columns("x_embedder.weight", width) // _PATCH_AREA,
        "out_channels": shapes.length("norm_out.linear_2.bias") // _PATCH_AREA,
        "width": width,
        "head_dim": head_dim,
        "kv_heads": keys // head_dim,
        "inner_width": shapes.columns(f"{_BLOCK}feed_forward.linear_2.weight", width),
        "conditioning_width": shapes.length(f"{embedder}timestep_embedder.linear_2.bias"),
        "context_width": shapes.length(f"{embedder}caption_embedder.0.weight"),
        "layers": shapes.count("layers."),
        "refiner_layers": shapes.count("noise_refiner."),
        "rope_axes": [head_dim - 2 * place, place, place],
    }


UNTOLD = frozenset({"rope_axes"})
"""Hyper-parameters that no shape tells."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(json, {"patch_size": (2,), "norm_eps": (1e-5,)})
    check_facts(
        json,
        {
            "in_channels": config["in_channels"],
            "out_channels": config["out_channels"],
            "hidden_size": config["width"],
            "num_layers": config["layers"],
            "num_refiner_layers": config["refiner_layers"],
            "num_attention_heads": config["width"] // config["head_dim"],
            "num_kv_heads": config["kv_heads"],
            "cap_feat_dim": config["context_width"],
        },
    )
    axes = json.get("axes_dim_rope")
    return config if axes is None else {**config, "rope_axes": axes}


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no Lumina-Image denoiser can have."""
    check_divides("head_dim", config["head_dim"], [config["width"]])
    check_divides("kv_heads", config["kv_heads"], [config["width"] // config["head_dim"]])
    check_rope_axes(config["rope_axes"], config["head_dim"])
    check_channels(config)
