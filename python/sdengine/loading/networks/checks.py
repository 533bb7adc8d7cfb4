"""Checks of hyper-parameters that tensors do not tell, wherever they come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sdengine.errors import WeightsError


def check_divides(name: str, parts: int, widths: Iterable[int]) -> None:
    """Raise WeightsError unless every width can be cut into `parts` equal parts."""
    for width in widths:
        if parts < 1 or width % parts:
            raise WeightsError(
                f"{name} = {parts} does not divide {width} channels; expected a divisor of it."
                " The config is wrong, or another model's"
            )


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Raise WeightsError unless ``low < value < high``."""
    if not (math.isfinite(value) and low < value < high):
        raise WeightsError(f"{name} = {value!r}; expected a number between {low:g} and {high:g}")


def rope_axes(head_dim: int) -> list[int]:
    """16, 56, 56 of 128 for picture, row and column, and in proportion for other widths.

    Of FLUX.1 (black-forest-labs/flux, util.py) and Qwen-Image (Qwen/Qwen-Image, transformer/config.json).
    """
    place = 7 * head_dim // 32 * 2
    return [head_dim - 2 * place, place, place]


def check_rope_axes(axes: Any, head_dim: int) -> None:
    """Raise WeightsError unless a head's values are parted among three axes of positions."""
    even = isinstance(axes, list) and all(type(a) is int and a > 0 and a % 2 == 0 for a in axes)
    if not even or len(axes) != 3 or sum(axes) != head_dim:
        raise WeightsError(
            f"rope_axes = {axes!r}; expected three even numbers whose sum is {head_dim}"
        )


def check_channels(config: Mapping[str, Any]) -> None:
    """Raise WeightsError unless a denoiser of packed tokens reads and predicts latents."""
    if not config["in_channels"] or not config["out_channels"]:
        raise WeightsError("the denoiser reads or predicts less than one latent channel")


def check_variances(config: Mapping[str, Any]) -> None:
    """Raise WeightsError unless a denoiser predicts as many channels as it reads, or variances too."""
    channels = config["in_channels"]
    if config["out_channels"] not in (channels, 2 * channels):
        raise WeightsError(
            f"the denoiser predicts {config['out_channels']} channels for {channels} of latents;"
            f" expected {channels}, or {2 * channels} with variances"
        )
