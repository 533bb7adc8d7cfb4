"""The hyper-parameters of an IP-Adapter's own networks, base and plus, and of FLUX.1 Redux."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.families import Family
from sdengine.loading.networks.checks import check_between, check_divides
from sdengine.loading.networks.json_config import Json
from sdengine.loading.networks.shapes import Shapes

_EPSILON = 1e-5
_HEAD_WIDTH = 64  # tencent-ailab/IP-Adapter, resampler.py


def projection_from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of a base model's projection."""
    width = shapes.length("norm.weight")
    outputs = shapes.length("image_embeds.bias")
    return {
        "width": width,
        "tokens": outputs // width,
        "features_dim": shapes.columns("image_embeds.weight", outputs),
        "eps": _EPSILON,
    }


def resampler_from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of a plus model's resampler."""
    inner = shapes.length("proj_in.bias")
    attended = shapes.columns("layers.0.attn.to_q.weight", inner)
    return {
        "width": shapes.length("norm_out.weight"),
        "tokens": shapes.columns("latents", inner),
        "features_dim": shapes.columns("proj_in.weight", inner),
        "inner_dim": inner,
        "layers": shapes.count("layers."),
        "heads": max(1, attended // _HEAD_WIDTH),
        "head_dim": attended // max(1, attended // _HEAD_WIDTH),
        "feed_forward_dim": shapes.columns("layers.0.ff.1.net.0.proj.weight", inner),
        "eps": _EPSILON,
    }


def redux_from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of Redux's projection."""
    inner = shapes.length("redux_up.bias")
    return {
        "width": shapes.length("redux_down.bias"),
        "features_dim": shapes.columns("redux_up.weight", inner),
        "inner_dim": inner,
    }


REDUX_UNTOLD: frozenset[str] = frozenset()
UNTOLD = frozenset({"eps", "heads", "head_dim"})
"""Hyper-parameters that no shape tells."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config itself: the files have no config.json, and Redux's says what its tensors do."""
    return config


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no such network can have."""
    if "tokens" not in config:
        return  # Redux: its sizes are its tensors'
    check_between("eps", config["eps"], 0, 1)
    check_between("tokens", config["tokens"], 0, 1025)
    if "heads" in config:
        check_divides("heads", config["heads"], [config["heads"] * config["head_dim"]])
