"""From token weights to weighted embeddings, by the rules of the programs people know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ParameterError
from sdengine.prompt.emphasis import Segment

Array = NDArray[np.float32]

RULES: Final = ("a1111", "comfyui", "compel", "diffusers")
"""``a1111``: :func:`multiply_and_restore_mean`; ``comfyui``: :func:`interpolate_from_empty`; ``compel``: the same, then
:func:`blend` with the prompts of :func:`downweighted`; ``diffusers``: no weights, the prompt is taken literally and
cut after one chunk."""

MAX_DOWNWEIGHTED: Final = 64
"""Each is one more prompt to encode."""

SMALLEST_WEIGHT: Final = 1e-5
"""What compel takes for weights of 0 and less, whose share would be infinite."""


def apply_weights(rule: str, embeddings: Array, weights: Array, empty: Array | None) -> Array:
    """Weight the text encoder's output.

    Args:
        rule: one of :data:`RULES`.
        embeddings: ``[n * 77, width]``, the chunks one after another.
        weights: ``[n, 77]``, from :class:`sdengine.prompt.Chunks`.
        empty: ``[77, width]``, the encoded empty prompt; ``"comfyui"`` and ``"compel"`` read it.

    Returns:
        float32 ``[n * 77, width]``; `embeddings` itself when no weight differs from 1.

    Raises:
        ParameterError: `rule` is unknown, or the shapes do not fit.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise ParameterError(f"prompt weighting must be {', '.join(RULES)}, not {rule!r}")
    if embeddings.ndim != 2 or weights.ndim != 2 or len(embeddings) != weights.size:
        raise ParameterError(
            f"embeddings {embeddings.shape} do not fit weights {weights.shape}; expected "
            "[n * tokens, width] and [n, tokens]"
        )
    if rule == "diffusers" or bool(np.all(weights == 1)):
        return embeddings
    if rule == "a1111":
        return multiply_and_restore_mean(embeddings, weights)
    if empty is None or empty.shape != (weights.shape[1], embeddings.shape[1]):
        found = "nothing" if empty is None else str(empty.shape)
        expected = (weights.shape[1], embeddings.shape[1])
        raise ParameterError(f"empty embeddings must have the shape {expected}; found {found}")
    return interpolate_from_empty(embeddings, weights, empty)


def multiply_and_restore_mean(embeddings: Array, weights: Array) -> Array:
    """A1111: multiply every token by its weight, then scale each chunk back to its old mean.

    A chunk whose mean becomes zero keeps the plain product. Shapes as in :func:`apply_weights`.
    """
    chunks = embeddings.reshape(*weights.shape, embeddings.shape[1]).astype(np.float32)
    weighted = chunks * weights[:, :, None]
    old = chunks.mean(axis=(1, 2), dtype=np.float64)
    new = weighted.mean(axis=(1, 2), dtype=np.float64)
    scale = np.divide(old, new, out=np.ones_like(old), where=new != 0)
    scaled = weighted * scale[:, None, None].astype(np.float32)
    return np.asarray(scaled.reshape(embeddings.shape), np.float32)


def interpolate_from_empty(embeddings: Array, weights: Array, empty: Array) -> Array:
    """ComfyUI: move every token along the line from the empty prompt's token at its position.

    ``empty + weight * (embedding - empty)``: weight 0 is the empty prompt. Shapes as in
    :func:`apply_weights`.
    """
    base = np.tile(empty, (weights.shape[0], 1)).astype(np.float32)
    factor = weights.reshape(-1, 1)
    moved = base + factor * (embeddings - base)
    return np.asarray(np.where(factor == 1, embeddings, moved), np.float32)


def downweighted(segments: Sequence[Segment]) -> list[tuple[list[Segment], float]]:
    """The prompts that compel encodes besides the full one, for the segments that weigh less than 1.

    A weight below 1 shall not mean a little of something but doubt about it: the embeddings are mixed with those of the
    prompt without the segment, half and half at weight 0.5, all of it at 0 (damian0815/compel,
    ``DownweightMode.REMOVE``; its default there hides the tokens from the encoder's attention instead).

    Returns:
        (segments without one of them, share for :func:`blend`), in order; the full prompt's share is 1.

    Raises:
        ParameterError: more than 64 segments weigh less than 1.
    """
    lighter = [index for index, segment in enumerate(segments) if segment.weight < 1]
    if len(lighter) > MAX_DOWNWEIGHTED:
        raise ParameterError(
            f"{len(lighter)} parts of the prompt weigh less than 1; at most {MAX_DOWNWEIGHTED} can be encoded apart"
        )
    return [
        (
            [*segments[:index], *segments[index + 1 :]] or [Segment("")],
            math.tan((1 - max(SMALLEST_WEIGHT, segments[index].weight)) * math.pi / 2),
        )
        for index in lighter
    ]


def blend(embeddings: Sequence[Array], shares: Sequence[float]) -> Array:
    """The weighted mean of equally shaped embeddings, float32.

    Raises:
        ParameterError: there are not as many shares as embeddings, shapes differ, or the shares add up to nothing.
    """
    total = math.fsum(shares)
    shapes = {array.shape for array in embeddings}
    if (
        len(embeddings) != len(shares)
        or len(shapes) != 1
        or not (total > 0 and math.isfinite(total))
    ):
        raise ParameterError(
            f"expected embeddings of one shape, each with a share, and a positive sum; found {sorted(shapes)}, "
            f"{len(shares)} shares, sum {total:g}"
        )
    if len(embeddings) == 1:
        return embeddings[0]
    weights = np.asarray(shares, np.float64) / total
    return np.asarray(np.tensordot(weights, np.stack(embeddings), axes=1), np.float32)
