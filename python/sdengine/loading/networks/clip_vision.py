"""The hyper-parameters of a CLIP vision encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_between, check_divides
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer, number
from sdengine.loading.networks.shapes import Shapes

_HEADS = 16  # of ViT-L, H and bigG alike (open_clip's model configs)
_EPSILON = 1e-5
_WIDEST_OPENAI = 1024  # ViT-L; the wider ones are OpenCLIP's, which use erf
_EMBEDDINGS = "vision_model.embeddings."
_LAYER = "vision_model.encoder.layers."


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the encoder with these parameters."""
    width = shapes.length(f"{_EMBEDDINGS}class_embedding")
    positions = shapes.columns(f"{_EMBEDDINGS}position_embedding.weight", width)
    patch = math.isqrt(shapes.columns(f"{_EMBEDDINGS}patch_embedding.weight", width) // 3)
    return {
        "hidden_size": width,
        "intermediate_size": shapes.length(f"{_LAYER}0.mlp.fc1.bias"),
        "layers": shapes.count(_LAYER),
        "heads": _HEADS,
        "patch_size": patch,
        "image_size": patch * math.isqrt(max(1, positions - 1)),
        "projection_dim": shapes.columns("visual_projection.weight", width),
        "activation": "quick_gelu" if width <= _WIDEST_OPENAI else "gelu",
        "eps": _EPSILON,
    }


UNTOLD = frozenset({"heads", "activation", "eps"})
"""Hyper-parameters that no shape tells."""

_ACTIVATIONS = ("quick_gelu", "gelu")


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    vision = json.get("vision_config")
    json = vision if isinstance(vision, dict) else json  # a full CLIP model nests the halves
    check_options(json, {"hidden_act": _ACTIVATIONS})
    check_facts(
        json,
        {
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"],
            "num_hidden_layers": config["layers"],
            "patch_size": config["patch_size"],
            "image_size": config["image_size"],
        },
    )
    return {
        **config,
        "heads": integer(json, "num_attention_heads", config["heads"]),
        "activation": json.get("hidden_act", config["activation"]),
        "eps": number(json, "layer_norm_eps", config["eps"]),
    }


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no encoder can have."""
    check_divides("heads", config["heads"], [config["hidden_size"]])
    check_between("eps", config["eps"], 0, 1)
    if config["layers"] < 1 or config["patch_size"] < 1:
        raise WeightsError("the vision encoder has no layers or no patches; the file is damaged")
