"""Checks of hyper-parameters that tensors do not tell, wherever they come from."""

from __future__ import annotations

import math
from collections.abc import Iterable

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
