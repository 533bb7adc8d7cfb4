"""The eyes of a text encoder: pictures as tokens among those of a prompt (Qwen2.5-VL, arXiv 2502.13923)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.loading import ComponentPlan
from sdengine.stores import make_store

Array = NDArray[np.float32]
Ids = NDArray[np.int32]

_MARK = "<|image_pad|>"
"""The token in whose place those of a picture are put."""
_ROUNDING = 32
"""What diffusers' pipelines round the sides of a picture to, before its processor does."""
_LEAST, _MOST = 56 * 56, 14 * 14 * 4 * 16384
"""Pixels that the processor leaves a picture (Qwen/Qwen2.5-VL-7B-Instruct, preprocessor_config.json)."""
_THINNEST = 200
"""Its longest side is at most as many times as long as its shortest."""
# Of CLIP (Radford et al. 2021), per colour.
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Seen:
    """A picture as a language model reads it.

    Attributes:
        tokens: float32 ``[rows * columns, width]``, row by row.
    """

    tokens: Array
    rows: int
    columns: int


@dataclass(frozen=True)
class SightedTokens:
    """A prompt with pictures, as `decoder_text` takes it: int32 ``[1, length]`` each.

    Attributes:
        ids: from the vocabulary's size on they are rows of the pictures' tokens, all behind each other.
        positions: three of each token, which differ within pictures: place, row and column.
    """

    ids: Ids
    positions: tuple[Ids, Ids, Ids]


class Eyes:
    """A vision encoder with what brings pictures to it."""

    def __init__(
        self, plan: ComponentPlan, device: _core.Device, weight_type: str | None = None
    ) -> None:
        self.cell = 2 * int(plan.config["patch_size"])
        self.network = _core.Network(
            plan.kind, dict(plan.config), make_store(plan, weight_type), device
        )

    def see(self, picture: Image.Image, area: int, cancel: _core.CancelToken | None) -> Seen:
        """A picture of mode RGB, brought to about `area` pixels first.

        Raises:
            ParameterError: it is too thin.
        """
        sized = picture.resize(rounded_size(picture.size, area), Image.Resampling.LANCZOS)
        pixels = normalised(sized, self.cell)
        tokens = self.network.run({"pixels": pixels}, {}, cancel)["tokens"][0]
        return Seen(tokens, pixels.shape[2] // self.cell, pixels.shape[3] // self.cell)


def rounded_size(size: tuple[int, int], area: int) -> tuple[int, int]:
    """Width and height of about `area` pixels in the shape of `size`, as diffusers' pipelines round them."""
    ratio = size[0] / size[1]
    width = math.sqrt(area * ratio)
    height = width / ratio
    return max(1, round(width / _ROUNDING)) * _ROUNDING, max(
        1, round(height / _ROUNDING)
    ) * _ROUNDING


def processed_size(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """Width and height in whole cells, within the processor's limits.

    Raises:
        ParameterError: the picture is too thin.
    """
    width, height = size
    if max(size) > _THINNEST * min(size):
        raise ParameterError(
            f"a picture of {width}x{height} is too thin to be looked at: its sides must differ by a"
            f" factor of {_THINNEST} at most"
        )
    wide, high = round(width / cell) * cell, round(height / cell) * cell
    if wide * high > _MOST:
        factor = math.sqrt(width * height / _MOST)
        wide, high = (max(cell, math.floor(side / factor / cell) * cell) for side in size)
    elif wide * high < _LEAST:
        factor = math.sqrt(_LEAST / (width * height))
        wide, high = (math.ceil(side * factor / cell) * cell for side in size)
    return wide, high


def normalised(picture: Image.Image, cell: int) -> Array:
    """A picture of mode RGB as float32 ``[1, 3, H, W]``, sides in whole cells, colours as CLIP was trained with."""
    resized = picture.resize(processed_size(picture.size, cell), Image.Resampling.BICUBIC)
    colours = np.asarray(resized, np.float32) / np.float32(255)
    values = (colours - _MEAN) / _DEVIATION
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)


def with_pictures(ids: Ids, tokenizer: Any, seen: Sequence[Seen], vocabulary: int) -> SightedTokens:
    """A prompt's ids ``[1, length]`` with the tokens of pictures in the places that are marked for them.

    Positions go on as if a picture were as long as its longer side (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Raises:
        ParameterError: the prompt marks other numbers of places.
    """
    mark = tokenizer.id_of(_MARK)
    places = int(np.count_nonzero(ids[0] == mark))
    if mark is None or places != len(seen):
        raise ParameterError(
            f"the prompt has places for {places} pictures, {len(seen)} were given; leave {_MARK} out"
            " of prompts"
        )
    pictures = iter(seen)
    row, start = vocabulary, 0
    parts: list[Ids] = []
    positions: list[NDArray[np.int64]] = []
    for token in ids[0]:
        if token != mark:
            parts.append(np.array([token], np.int32))
            positions.append(np.full((3, 1), start))
            start += 1
            continue
        picture = next(pictures)
        count = picture.rows * picture.columns
        y, x = np.divmod(np.arange(count), picture.columns)
        parts.append(np.arange(row, row + count, dtype=np.int32))
        positions.append(np.stack([np.zeros(count, np.int64), y, x]) + start)
        row += count
        start += max(picture.rows, picture.columns)
    place, y, x = (np.ascontiguousarray(p[None], np.int32) for p in np.concatenate(positions, 1))
    return SightedTokens(np.concatenate(parts)[None], (place, y, x))
