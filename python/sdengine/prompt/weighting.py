"""From token weights to weighted embeddings, by the rules of the programs people know."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ParameterError

Array = NDArray[np.float32]

RULES: Final = ("a1111", "comfyui", "diffusers")
"""``a1111``: :func:`multiply_and_restore_mean`; ``comfyui``: :func:`interpolate_from_empty`;
``diffusers``: no weights, the prompt is taken literally and cut after one chunk."""


def apply_weights(rule: str, embeddings: Array, weights: Array, empty: Array | None) -> Array:
    """Weight the text encoder's output.

    Args:
        rule: one of :data:`RULES`.
        embeddings: ``[n * 77, width]``, the chunks one after another.
        weights: ``[n, 77]``, from :class:`sdengine.prompt.Chunks`.
        empty: ``[77, width]``, the encoded empty prompt; only ``"comfyui"`` reads it.

    Returns:
        float32 ``[n * 77, width]``; `embeddings` itself when no weight differs from 1.

    Raises:
        ParameterError: `rule` is unknown, or the shapes do not fit.
    """
    if rule not in RULES:
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
