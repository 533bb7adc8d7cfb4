"""What the denoiser is told besides latents and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .families import SizeConditioning
from .text_encoders import EncodedText

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, in numpy.

    Attributes:
        context: float32 ``[N, tokens, width]``, one entry per prompt.
        negative_context: float32, same shape, of the negative prompts; None when there are none.
        pooled: float32 ``[N, width]``, each prompt as one vector; None where the family reads none.
        negative_pooled: the same of the negative prompts.
    """

    context: Array
    negative_context: Array | None = None
    pooled: Array | None = None
    negative_pooled: Array | None = None

    def __post_init__(self) -> None:
        for name, array in vars(self).items():
            axes = 3 if name.endswith("context") else 2
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
        names = ("context", "negative_context", "pooled", "negative_pooled")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        given = {n: None if a is None else np.repeat(a, count, axis=0) for n, a in given.items()}
        return replace(self, **given)


def stack_texts(texts: Sequence[EncodedText]) -> tuple[Array, Array | None]:
    """Context ``[N, tokens, width]`` and pooled ``[N, width]`` of texts with equal token counts."""
    context = np.stack([text.context for text in texts])
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return context, np.stack(pooled) if pooled else None


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
