"""What the denoiser is told besides latents and time."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .families import SizeConditioning
from .text_encoders import EncodedText

Array = NDArray[np.float32]
Lengths = tuple[int, ...] | None
"""Tokens of each text of a batch; None where all of them have the same number."""
_ARRAYS = ("context", "negative_context", "pooled", "negative_pooled")


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, in numpy.

    Attributes:
        context: float32 ``[N, tokens, width]``, one entry per prompt.
        negative_context: float32, same shape, of the negative prompts; None when there are none.
        pooled: float32 ``[N, width]``, each prompt as one vector; None where the family reads none.
        negative_pooled: the same of the negative prompts.
        lengths: tokens of each context, 1 to all of them, where shorter ones were filled up; what they were filled
            up with is not read. None where all have the same length.
        negative_lengths: the same of the negative prompts.
        inputs: what else the denoiser reads of the prompts, by the names of its inputs, each with N entries: a second
            context, masks of padding. Empty for most families.
        negative_inputs: the same of the negative prompts.
    """

    context: Array
    negative_context: Array | None = None
    pooled: Array | None = None
    negative_pooled: Array | None = None
    lengths: Lengths = None
    negative_lengths: Lengths = None
    inputs: Mapping[str, Array] = field(default_factory=dict)
    negative_inputs: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            array, axes = getattr(self, name), 3 if name.endswith("context") else 2
            if array is None and name != "context":
                continue
            if (
                not isinstance(array, np.ndarray)
                or array.ndim != axes
                or array.dtype.kind not in "fiu"
            ):
                found = array.shape if isinstance(array, np.ndarray) else type(array).__name__
                raise ParameterError(
                    f"a conditioning's {name} must be numbers in a numpy array of {axes} axes,"
                    f" not {found}; encode_prompt() makes one"
                )
        object.__setattr__(self, "lengths", _checked("lengths", self.lengths, self.context))
        negative = _checked("negative_lengths", self.negative_lengths, self.negative_context)
        object.__setattr__(self, "negative_lengths", negative)
        _check_inputs("inputs", self.inputs, len(self.context))
        _check_inputs("negative_inputs", self.negative_inputs, len(self.context))

    @property
    def batch_size(self) -> int:
        """Number of prompts."""
        return int(self.context.shape[0])

    def repeat(self, count: int) -> Conditioning:
        """The same conditioning for `count` pictures; a batch of that size is returned as it is.

        Raises:
            ParameterError: there are several prompts, and not `count` of them.
        """
        if self.batch_size == count:
            return self
        if self.batch_size != 1:
            raise ParameterError(
                f"{self.batch_size} prompts do not fit {count} pictures; give one prompt or {count}"
            )
        given: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        given = {n: None if a is None else np.repeat(a, count, axis=0) for n, a in given.items()}
        for name in ("lengths", "negative_lengths"):
            own = getattr(self, name)
            given[name] = None if own is None else own * count
        for name in ("inputs", "negative_inputs"):
            arrays = getattr(self, name)
            given[name] = {n: np.repeat(array, count, axis=0) for n, array in arrays.items()}
        return replace(self, **given)


def _checked(name: str, lengths: Any, context: Array | None) -> Lengths:
    if lengths is None:
        return None
    try:
        found = tuple(operator.index(length) for length in lengths)
    except TypeError:
        found = ()
    count, tokens = (0, 0) if context is None else context.shape[:2]
    if not found or len(found) != count or not all(1 <= length <= tokens for length in found):
        raise ParameterError(
            f"a conditioning's {name} must be {count} whole numbers from 1 to {tokens}, the tokens of its"
            f" context, not {lengths!r}"
        )
    return found


def _check_inputs(name: str, inputs: Any, count: int) -> None:
    arrays = inputs.values() if isinstance(inputs, Mapping) else [None]
    if all(
        isinstance(a, np.ndarray) and a.shape[:1] == (count,) and a.dtype.kind in "fiu"
        for a in arrays
    ):
        return
    raise ParameterError(
        f"a conditioning's {name} must be numbers in numpy arrays by name, with {count} entries each;"
        " encode_prompt() makes them"
    )


class StackedTexts(NamedTuple):
    """The texts of a batch; see :class:`Conditioning`."""

    context: Array
    pooled: Array | None
    lengths: Lengths
    inputs: Mapping[str, Array]


def stack_texts(texts: Sequence[EncodedText]) -> StackedTexts:
    """One batch of texts: contexts shorter than the longest are filled up with zeros."""
    own = tuple(len(text.context) for text in texts)
    rows = [np.pad(t.context, ((0, max(own) - len(t.context)), (0, 0))) for t in texts]
    pooled = [text.pooled for text in texts if text.pooled is not None]
    lengths = own if len(set(own)) > 1 else None
    inputs = {name: np.stack([text.inputs[name] for text in texts]) for name in texts[0].inputs}
    return StackedTexts(np.stack(rows), np.stack(pooled) if pooled else None, lengths, inputs)


def of_equal_length(lengths: Lengths, count: int) -> dict[int | None, list[int]]:
    """Which of `count` pictures can be evaluated together: length to places; None stands for all tokens."""
    together: dict[int | None, list[int]] = {}
    for picture in range(count):
        together.setdefault(None if lengths is None else lengths[picture], []).append(picture)
    return together


def embed_numbers(values: Sequence[float], width: int) -> Array:
    """Numbers as sinusoids: cosines, then sines, of frequencies 10000^(-i / (width / 2)) (Ho et al. 2020).

    Returns:
        float32 ``[len(values), width]``.
    """
    half = width // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half, dtype=np.float32) / half)
    angles = np.asarray(values, np.float32)[:, None] * frequencies.astype(np.float32)[None]
    return np.asarray(np.concatenate([np.cos(angles), np.sin(angles)], axis=1), np.float32)


def class_embedding(pooled: Array, sizes: Mapping[str, float], layout: SizeConditioning) -> Array:
    """The vector condition of SDXL (Podell et al. 2023, arXiv 2307.01952): text, then numbers.

    Args:
        pooled: ``[N, width]``.
        sizes: a value for each name of `layout`, in pixels (the aesthetic score in points).
        layout: the family's order and width.

    Returns:
        float32 ``[N, width + names * layout.width]``.
    """
    numbers = embed_numbers([sizes[name] for name in layout.names], layout.width).reshape(1, -1)
    return np.concatenate([pooled, np.repeat(numbers, len(pooled), axis=0)], axis=1)
