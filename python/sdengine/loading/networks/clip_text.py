"""The hyper-parameters of a CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_between, check_divides
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer, number
from sdengine.loading.networks.shapes import Shapes

_HEAD_WIDTH = 64  # in all CLIP text encoders (openai/CLIP, open_clip)
_EPSILON = 1e-5
# OpenAI's vocabulary ends with the start and the end of the text; learned words may follow it.
_VOCABULARY = 49408
# openai/CLIP's encoders use the sigmoid approximation; the wider ones were trained by OpenCLIP with
# erf.
_WIDEST_OPENAI = 768
_LEGACY_EOS = 2  # configs from before transformers 4.29, which looked for the largest id instead


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the encoder with these parameters."""
    width = shapes.length("text_model.final_layer_norm.weight")
    vocabulary = _rows(shapes, "text_model.embeddings.token_embedding.weight", width)
    projected = "text_projection.weight" in shapes
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes.length("text_model.encoder.layers.0.mlp.fc1.bias"),
        "layers": shapes.count("text_model.encoder.layers."),
        "heads": max(1, width // _HEAD_WIDTH),
        "max_positions": _rows(shapes, "text_model.embeddings.position_embedding.weight", width),
        "activation": "quick_gelu" if width <= _WIDEST_OPENAI else "gelu",
        "eps": _EPSILON,
        "projection_dim": _rows(shapes, "text_projection.weight", width) if projected else 0,
        "eos_token_id": min(vocabulary, _VOCABULARY) - 1,
        "has_projection": projected,
    }


def _rows(shapes: Shapes, name: str, width: int) -> int:
    """Rows of a matrix [rows, width]."""
    return shapes.columns(name, width)


UNTOLD = frozenset({"heads", "activation", "eps", "eos_token_id"})
"""Hyper-parameters that no shape tells."""

_ACTIVATIONS = ("quick_gelu", "gelu")


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    text = json.get("text_config")
    json = text if isinstance(text, dict) else json  # a full CLIP model nests the text half
    check_options(json, {"hidden_act": _ACTIVATIONS})
    check_facts(
        json,
        {
            "vocab_size": config["vocab_size"],
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"],
            "num_hidden_layers": config["layers"],
            "max_position_embeddings": config["max_positions"],
        },
    )
    eos = integer(json, "eos_token_id", config["eos_token_id"])
    if eos == _LEGACY_EOS:
        eos = config["eos_token_id"]
    return {
        **config,
        "heads": integer(json, "num_attention_heads", config["heads"]),
        "activation": json.get("hidden_act", config["activation"]),
        "eps": number(json, "layer_norm_eps", config["eps"]),
        "eos_token_id": eos,
    }


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no encoder can have."""
    check_divides("heads", config["heads"], [config["hidden_size"]])
    check_between("eps", config["eps"], 0, 1)
    check_between("eos_token_id", config["eos_token_id"], -1, config["vocab_size"])
    if config["activation"] not in _ACTIVATIONS:
        choices = " or ".join(_ACTIVATIONS)
        raise WeightsError(f"activation = {config['activation']!r}; expected {choices}")
