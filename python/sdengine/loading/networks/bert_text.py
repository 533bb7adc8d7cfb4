"""The hyper-parameters of a BERT text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.families import Family
from sdengine.loading.networks.checks import check_between, check_divides
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer, number
from sdengine.loading.networks.shapes import Shapes

# In every published BERT (hfl/chinese-roberta-wwm-ext-large, google-bert/bert-base-uncased).
_HEAD_DIM, _EPSILON = 64, 1e-12


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the encoder with these parameters."""
    width = shapes.length("embeddings.LayerNorm.bias")
    return {
        "vocab_size": shapes.columns("embeddings.word_embeddings.weight", width),
        "hidden_size": width,
        "intermediate_size": shapes.length("encoder.layer.0.intermediate.dense.bias"),
        "layers": shapes.count("encoder.layer."),
        "heads": max(1, width // _HEAD_DIM),
        "max_positions": shapes.columns("embeddings.position_embeddings.weight", width),
        "sentences": shapes.columns("embeddings.token_type_embeddings.weight", width),
        "eps": _EPSILON,
    }


UNTOLD = frozenset({"heads", "eps"})
"""Hyper-parameters that no shape tells."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(
        json,
        {
            "model_type": ("bert",),
            "hidden_act": ("gelu",),
            "position_embedding_type": ("absolute", None),
            "is_decoder": (False, None),
            "add_cross_attention": (False, None),
        },
    )
    heads = integer(json, "num_attention_heads", config["heads"])
    check_facts(
        json,
        {
            "vocab_size": config["vocab_size"],
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"],
            "num_hidden_layers": config["layers"],
            "max_position_embeddings": config["max_positions"],
            "type_vocab_size": config["sentences"],
        },
    )
    return {**config, "heads": heads, "eps": number(json, "layer_norm_eps", config["eps"])}


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no encoder can have."""
    check_divides("heads", config["heads"], [config["hidden_size"]])
    check_between("eps", config["eps"], 0, 1)
    check_between("sentences", config["sentences"], 0, 1 << 16)
