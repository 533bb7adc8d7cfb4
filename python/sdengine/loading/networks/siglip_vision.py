"""The hyper-parameters of a SigLIP vision encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_between, check_divides
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer, number
from sdengine.loading.networks.shapes import Shapes

_HEADS = 16  # google/siglip-so400m-patch14-384, FLUX.1 Redux's
_SIDE = 384  # of its pictures; 6 pixels of each side fill no patch
_EPSILON = 1e-6
_EMBEDDINGS = "vision_model.embeddings."
_LAYER = "vision_model.encoder.layers."


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the encoder with these parameters."""
    width = shapes.length(f"{_EMBEDDINGS}patch_embedding.bias")
    patches = math.isqrt(shapes.columns(f"{_EMBEDDINGS}position_embedding.weight", width))
    patch = math.isqrt(shapes.columns(f"{_EMBEDDINGS}patch_embedding.weight", width) // 3)
    return {
        "hidden_size": width,
        "intermediate_size": shapes.length(f"{_LAYER}0.mlp.fc1.bias"),
        "layers": shapes.count(_LAYER),
        "heads": _HEADS,
        "patch_size": patch,
        "image_size": _SIDE if patch and _SIDE // patch == patches else patch * patches,
        "eps": _EPSILON,
    }


UNTOLD = frozenset({"heads", "image_size", "eps"})
"""Hyper-parameters that no shape tells."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    vision = json.get("vision_config")
    json = vision if isinstance(vision, dict) else json  # a full SigLIP model nests the halves
    check_options(json, {"hidden_act": ("gelu_pytorch_tanh",)})
    check_facts(
        json,
        {
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"],
            "num_hidden_layers": config["layers"],
            "patch_size": config["patch_size"],
        },
    )
    side = integer(json, "image_size", config["image_size"])
    patch = max(1, config["patch_size"])
    if side // patch != config["image_size"] // patch:
        raise WeightsError(
            f"config.json has image_size = {side}, the tensors are for about {config['image_size']}"
        )
    return {
        **config,
        "heads": integer(json, "num_attention_heads", config["heads"]),
        "image_size": side,
        "eps": number(json, "layer_norm_eps", config["eps"]),
    }


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no encoder can have."""
    check_divides("heads", config["heads"], [config["hidden_size"]])
    check_between("eps", config["eps"], 0, 1)
    if config["layers"] < 1 or config["patch_size"] < 1:
        raise WeightsError("the vision encoder has no layers or no patches; the file is damaged")
