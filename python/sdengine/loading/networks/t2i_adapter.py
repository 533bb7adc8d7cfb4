"""The hyper-parameters of a T2I adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer
from sdengine.loading.networks.shapes import Shapes

_KERNEL = 3
_BODY = "adapter.body."
# Pixels on a side that become the channels of one: those for SDXL start with a picture of half the
# latents' size, and shrink it once instead of three times (TencentARC/T2I-Adapter).
_SMALL, _LARGE = 8, 16
_LARGE_INPUTS = (_LARGE**2, 3 * _LARGE**2)
_ONLY_SHRINKING_LEVEL = 2


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the adapter with these parameters."""
    levels = shapes.count(_BODY)
    light = f"{_BODY}0.out_conv.bias" in shapes
    last = "out_conv.bias" if light else "resnets.0.block2.bias"
    channels = [shapes.length(f"{_BODY}{i}.{last}") for i in range(levels)]
    if light:
        inner = shapes.length(f"{_BODY}0.in_conv.bias")
        columns = shapes.columns(f"{_BODY}0.in_conv.weight", inner)
    else:
        columns = shapes.columns("adapter.conv_in.weight", channels[0], _KERNEL)
    side = _LARGE if columns in _LARGE_INPUTS else _SMALL
    return {
        "hint_channels": columns,
        "channels": channels,
        "resnets": shapes.count(f"{_BODY}0.resnets."),
        "light": light,
        "side": side,
        "shrinks": _shrinks(side, levels),
    }


def _shrinks(side: int, levels: int) -> list[bool]:
    if side == _LARGE:
        return [i == _ONLY_SHRINKING_LEVEL for i in range(levels)]
    return [i > 0 for i in range(levels)]


UNTOLD = frozenset({"side", "shrinks"})
"""Hyper-parameters that no shape tells."""

_TYPES = ("full_adapter", "full_adapter_xl", "light_adapter")


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(json, {"adapter_type": _TYPES})
    # A light adapter has one level more than its config names, as wide as the last one.
    named = config["channels"][:-1] if config["light"] else config["channels"]
    check_facts(json, {"channels": named, "num_res_blocks": config["resnets"]})
    side = integer(json, "downscale_factor", config["side"])
    if side < 1 or config["hint_channels"] % (side * side):
        raise WeightsError(
            f"config.json says downscale_factor = {side}, the tensors show {config['in_channels']}"
            " inputs; expected a multiple of its square"
        )
    large = json.get("adapter_type") == "full_adapter_xl"
    levels = len(config["channels"])
    return {**config, "side": side, "shrinks": _shrinks(_LARGE if large else _SMALL, levels)}


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no adapter can have."""
    if not config["channels"] or config["resnets"] < 1:
        raise WeightsError("the adapter has no resnets; the file is incomplete")
    if config["hint_channels"] not in (config["side"] ** 2, 3 * config["side"] ** 2):
        raise WeightsError(
            f"the adapter reads {config['in_channels']} values for each square of"
            f" {config['side']} x {config['side']} pixels; expected 1 or 3 colours"
        )
