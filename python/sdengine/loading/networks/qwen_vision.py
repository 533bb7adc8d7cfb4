"""The hyper-parameters of Qwen2.5-VL's vision encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_between, check_divides
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer
from sdengine.loading.networks.shapes import Shapes

# Qwen/Qwen2.5-VL-7B-Instruct, config.json: 16 heads, windows of 112 pixels, every eighth layer without.
_HEADS = 16
_PATCH = 14
_CELL = 2
_WINDOW = 112
_WHOLE = 8


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the encoder with these parameters."""
    width = shapes.length("merger.ln_q.weight")
    layers = shapes.count("blocks.")
    return {
        "hidden_size": width,
        "intermediate_size": shapes.length("blocks.0.mlp.up_proj.bias"),
        "out_width": shapes.length("merger.mlp.2.bias"),
        "layers": layers,
        "heads": _HEADS,
        "patch_size": shapes.kernel("patch_embed.0.weight", _PATCH),
        "window_cells": _WINDOW // (_CELL * _PATCH),
        "whole_layers": list(range(_WHOLE - 1, layers, _WHOLE)),
    }


UNTOLD = frozenset({"heads", "window_cells", "whole_layers"})
"""Hyper-parameters that no shape tells."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what a Qwen2.5-VL's config.json tells. Raises WeightsError for a contradiction."""
    vision = json.get("vision_config")
    json = vision if isinstance(vision, dict) else json
    check_options(
        json,
        {
            "hidden_act": ("silu",),
            "spatial_merge_size": (_CELL,),
            "temporal_patch_size": (2,),
            "in_channels": (3,),
            "in_chans": (3,),
        },
    )
    check_facts(
        json,
        {
            "depth": config["layers"],
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"],
            "out_hidden_size": config["out_width"],
            "patch_size": config["patch_size"],
        },
    )
    window = integer(json, "window_size", _WINDOW)
    return {
        **config,
        "heads": integer(json, "num_heads", config["heads"]),
        "window_cells": window // (_CELL * config["patch_size"]),
        "whole_layers": json.get("fullatt_block_indexes") or config["whole_layers"],
    }


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no such encoder can have."""
    check_between("heads", config["heads"], 0, 1 << 16)
    check_divides("heads", 4 * config["heads"], [config["hidden_size"]])
    check_between("patch_size", config["patch_size"], 0, 1 << 10)
    check_between("window_cells", config["window_cells"], 0, 1 << 10)
    whole = config["whole_layers"]
    if not isinstance(whole, list) or not all(type(layer) is int for layer in whole):
        raise WeightsError(f"whole_layers = {whole!r}; expected numbers of layers")
