"""Picture sizes that a model was trained on, and the one nearest to a shape."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from numbers import Real

from .errors import ParameterError
from .families import Defaults, Family

Size = tuple[int, int]
"""Width and height in pixels."""

_RATIO = re.compile(r"\s*(\d+(?:\.\d+)?)\s*[:/x]\s*(\d+(?:\.\d+)?)\s*")
WIDEST = 16.0
"""The longest shape that is understood; every list ends before it."""
_STEP = 64
"""Pixels between neighbouring sides, as in the buckets that NovelAI trained Stable Diffusion 1 with (2022); models for
pictures below 512 pixels take an eighth of their side."""
_SLACK = 0.1
"""How far from the model's own area, as a part of it."""
_LONGEST = 2.0


def resolutions(family: Family, defaults: Defaults) -> list[Size]:
    """The sizes that a model is at home in, from tall to wide, its own among them.

    The family's published list, where the model has the family's size. Otherwise every size of the model's area, or
    at most a tenth off it, whose sides are multiples of 64 and whose shape lies between 1:2 and 2:1.
    """
    own = (defaults.width, defaults.height)
    if own in family.resolutions:
        return list(family.resolutions)
    area = own[0] * own[1]
    side = math.isqrt(area)
    step = min(_STEP, max(8, side // 64 * 8))
    sides = range(step, 2 * side, step)
    found = {
        (width, height)
        for width in sides
        for height in sides
        if 1.0 / _LONGEST <= width / height <= _LONGEST
        and abs(width * height - area) <= _SLACK * area
    }
    return sorted({*found, own}, key=lambda size: (size[0] / size[1], size))


def nearest(sizes: Sequence[Size], ratio: float, area: int | None = None) -> Size:
    """The size whose shape is nearest to `ratio` (width over height), by factors.

    Of equals it is the one of nearest `area` in pixels, or without an area the largest.
    """

    def key(size: Size) -> tuple[float, int]:
        pixels = size[0] * size[1]
        off = -pixels if area is None else abs(pixels - area)
        return round(abs(math.log(size[0] / size[1] / ratio)), 6), off

    return min(sizes, key=key)


def parse_ratio(value: object) -> float:
    """Width over height from ``"16:9"``, ``"1.5"`` or a number.

    Raises:
        ParameterError: it is neither, or the shape is longer than 16:1.
    """
    ratio = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            ratio = float(value)
    elif isinstance(value, str):
        pair = _RATIO.fullmatch(value)
        with suppress(ValueError, ZeroDivisionError):
            ratio = float(pair[1]) / float(pair[2]) if pair else float(value)
    if not 1.0 / WIDEST <= ratio <= WIDEST:  # false for NaN as well
        raise ParameterError(
            f"aspect_ratio must be width over height, such as '16:9' or 1.5, from 1:16 to 16:1; not {value!r}"
        )
    return ratio
