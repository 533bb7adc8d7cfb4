"""Checks of hyper-parameters that tensors do not tell, wherever they come from."""

from __future__ import annotations

import math
from collections.abc import Iterable
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


def check_rope_axes(axes: Any, head_dim: int) -> None:
    """Raise WeightsError unless a head's values are parted among three axes of positions."""
    even = isinstance(axes, list) and all(type(a) is int and a > 0 and a % 2 == 0 for a in axes)
    if not even or len(axes) != 3 or sum(axes) != head_dim:
        raise WeightsError(
            f"rope_axes = {axes!r}; expected three even numbers whose sum is {head_dim}"
        )
