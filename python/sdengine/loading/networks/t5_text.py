"""The hyper-parameters of a T5 v1.1, mT5 or UMT5 encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_between
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer, number
from sdengine.loading.networks.shapes import Shapes

# In every published T5 (google/t5-v1_1-xxl, google/mt5-xl).
_BUCKETS, _MAX_DISTANCE, _EPSILON = 32, 128, 1e-6
_LONGEST = 4096  # positions are relative, so this only bounds the memory

_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the encoder with these parameters."""
    width = shapes.length("encoder.final_layer_norm.weight")
    inner = shapes.columns("encoder.block.0.layer.0.SelfAttention.q.weight", width)
    config = {
        "vocab_size": shapes.columns("shared.weight", width),
        "hidden_size": width,
        "intermediate_size": shapes.columns(
            "encoder.block.0.layer.1.DenseReluDense.wo.weight", width
        ),
        "layers": shapes.count("encoder.block."),
        "bias_per_layer": _BIAS.replace("block.0", "block.1") in shapes,
        "eps": _EPSILON,
        "max_distance": _MAX_DISTANCE,
        "max_positions": _LONGEST,
    }
    return _with_buckets(config, _BUCKETS, shapes.length(_BIAS), inner)


def _with_buckets(
    config: Mapping[str, Any], buckets: int, entries: int, inner: int
) -> dict[str, Any]:
    """The config whose relative positions have these buckets, with `entries` values in all."""
    heads, rest = divmod(entries, buckets) if buckets else (0, 1)
    if rest or not heads or inner % heads:
        raise WeightsError(
            f"{_BIAS!r} has {entries} values for {buckets} buckets, the attention is {inner} wide;"
            " expected one value per bucket and head. Is the file damaged?"
        )
    return {**config, "buckets": buckets, "heads": heads, "head_dim": inner // heads}


UNTOLD = frozenset({"heads", "head_dim", "buckets", "eps", "max_distance", "max_positions"})
"""Hyper-parameters that no shape tells."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(
        json,
        {
            "feed_forward_proj": ("gated-gelu",),
            "model_type": ("t5", "mt5", "umt5"),
            "is_gated_act": (True,),
        },
    )
    buckets = integer(json, "relative_attention_num_buckets", config["buckets"])
    inner = config["heads"] * config["head_dim"]
    config = _with_buckets(config, buckets, config["heads"] * config["buckets"], inner)
    check_facts(
        json,
        {
            "vocab_size": config["vocab_size"],
            "d_model": config["hidden_size"],
            "d_ff": config["intermediate_size"],
            "num_layers": config["layers"],
            "num_heads": config["heads"],
            "d_kv": config["head_dim"],
        },
    )
    return {
        **config,
        "eps": number(json, "layer_norm_epsilon", config["eps"]),
        "max_distance": integer(json, "relative_attention_max_distance", config["max_distance"]),
    }


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no encoder can have."""
    check_between("buckets", config["buckets"], 0, 1 << 16)
    if config["buckets"] % 4:
        raise WeightsError(f"buckets = {config['buckets']}; expected a multiple of 4")
    check_between("heads", config["heads"], 0, 1 << 16)
    check_between("head_dim", config["head_dim"], 0, 1 << 16)
    check_between("eps", config["eps"], 0, 1)
    check_between("max_distance", config["max_distance"], config["buckets"] / 4, 1 << 20)
    check_between("max_positions", config["max_positions"], 0, _LONGEST + 1)
