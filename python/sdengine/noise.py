"""The noise a picture starts from, and the conventions of other programs around it.

Which numbers a seed gives is :mod:`sdengine.random`; which of them land where is decided here. docs/compat.md has the
conventions as one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ParameterError
from sdengine.random import KINDS, normal

Array = NDArray[np.float32]
Batch = Literal["per-image", "one-generator"]

BATCHES: tuple[Batch, ...] = ("per-image", "one-generator")
NEAR_PARALLEL = 0.9995
"""Mean cosine above which A1111's slerp gives up on angles."""


@dataclass(frozen=True)
class Compat:
    """The conventions of a program. See docs/compat.md for where each is written."""

    name: str
    kind: str
    """Generator of the start noise, a name of :data:`sdengine.random.KINDS`."""
    batch: Batch
    weighting: Literal["a1111", "comfyui", "diffusers"]
    """Rule of :mod:`sdengine.prompt`."""
    timestep: Literal["interpolated", "nearest"]
    """What the network is told about a sigma between two training timesteps."""
    initial_scale: Literal["sigma", "sqrt1p", "scheduler"]
    """Factor of the start noise: sigma; sqrt(1 + sigma^2) at the highest sigma; or as the schedule's spacing says."""
    strength: Literal["diffusers", "a1111", "comfyui"]
    """Which steps of an image-to-image run are kept."""
    last_layer: int
    """The ``clip_skip`` that reads the text encoder's last layer."""
    step_noise: Literal["continued", "seed", "seed+1"]
    """Noise of ancestral samplers: the start noise's generator goes on, or a new one with this seed."""
    brownian: Literal["none", "batch", "per-image"]
    """Brownian tree of the SDE samplers: none, one for the batch, or one per picture."""


COMPAT: dict[str | None, Compat] = {
    None: Compat(
        *("sdengine", "torch-cpu", "per-image", "a1111", "interpolated", "scheduler", "diffusers"),
        last_layer=1,
        step_noise="continued",
        brownian="per-image",
    ),
    "diffusers": Compat(
        *(
            "diffusers",
            "torch-cpu",
            "one-generator",
            "diffusers",
            "interpolated",
            "scheduler",
            "diffusers",
        ),
        last_layer=0,
        step_noise="continued",
        brownian="none",
    ),
    "comfyui": Compat(
        *("comfyui", "torch-cpu", "one-generator", "comfyui", "nearest", "sqrt1p", "comfyui"),
        last_layer=1,
        step_noise="seed+1",
        brownian="batch",
    ),
    "a1111": Compat(
        *("a1111", "torch-cuda", "per-image", "a1111", "interpolated", "sigma", "a1111"),
        last_layer=1,
        step_noise="continued",
        brownian="per-image",
    ),
}
"""By the value of ``compat=``; None is sdengine's own."""


def start_noise(
    shape: Sequence[int],
    seeds: int | Sequence[int],
    *,
    kind: str = "torch-cpu",
    batch: Batch = "per-image",
    variation_seed: int | None = None,
    variation_strength: float = 0.0,
    resize_from: tuple[int, int] | None = None,
) -> Array:
    """Normal noise for a batch of latents.

    Args:
        shape: ``[N, C, h, w]``, each 1 or more.
        seeds: of picture 0, the others count up from it (with a variation all pictures share it, as in A1111); or one
            for each picture.
        kind: see :func:`sdengine.random.normal`.
        batch: ``"per-image"`` has one generator per picture, so that a batch equals single pictures; with
            ``"one-generator"`` the first seed's draws the whole batch.
        variation_seed: of other noise that is blended in; the pictures of a batch count up from it.
        variation_strength: 0 keeps the noise, 1 is the other one, on the arc between them (A1111's slerp).
        resize_from: (h, w) in latents of another size: its noise is pasted in the centre, so that the picture resembles
            the one of that size (A1111's "resize seed from").

    Returns:
        float32 ``[N, C, h, w]``.

    Raises:
        ParameterError: an argument is out of range, or a variation or another size is asked of one generator.
    """
    count, *image = _checked(shape, kind, batch, variation_strength, resize_from)
    varied = variation_seed is not None and variation_strength > 0
    given = image_seeds(seeds, count, shared=varied)
    if batch == "one-generator":
        if varied or resize_from is not None:
            raise ParameterError(
                "a variation seed and resize_from need one generator per picture; use batch='per-image'"
            )
        return normal([count, *image], given[0], kind)
    inner = image if resize_from is None else [image[0], *resize_from]
    pictures = []
    for index, seed in enumerate(given):
        noise = normal(inner, seed, kind)
        if varied and variation_seed is not None:
            other = normal(inner, _wrapped(variation_seed + index), kind)
            noise = slerp(variation_strength, noise, other)
        if inner != image:
            noise = _pasted(noise, normal(image, seed, kind))
        pictures.append(noise)
    return np.stack(pictures)


def image_seeds(seeds: int | Sequence[int], count: int, *, shared: bool = False) -> list[int]:
    """One seed for each of `count` pictures.

    A single seed counts up by one per picture, modulo 2**64, or is `shared` by all (A1111, while a variation is on).

    Raises:
        ParameterError: there are several seeds and not `count`, or one is no whole number from 0 to 2**64 - 1.
    """
    given = [seeds] if isinstance(seeds, int | np.integer) else list(seeds)
    if not given or not all(isinstance(s, int | np.integer) and 0 <= s < 2**64 for s in given):
        raise ParameterError(f"seeds must be whole numbers from 0 to 2**64 - 1, not {seeds!r}")
    if len(given) not in (1, count):
        raise ParameterError(f"{len(given)} seeds do not fit {count} pictures; give one or {count}")
    if len(given) == count and count > 1:
        return [int(seed) for seed in given]
    return [_wrapped(int(given[0]) + (0 if shared else index)) for index in range(count)]


def slerp(strength: float, low: Array, high: Array) -> Array:
    """A1111's spherical blend of two noises ``[C, h, w]``: 0 is `low`, 1 is `high`.

    The angle is that between their columns (axis 1), one for each channel and x. Where the mean cosine exceeds
    :data:`NEAR_PARALLEL`, A1111 blends linearly with the ends exchanged (1 is `low`); so does this.
    """
    cosine = (_unit(low) * _unit(high)).sum(axis=1, dtype=np.float32)
    if cosine.mean() > NEAR_PARALLEL:
        return np.asarray(low * strength + high * (1 - strength), np.float32)
    angle = np.arccos(np.clip(cosine, -1, 1)).astype(np.float64)
    sine = np.sin(angle)
    arc = (
        sine > 1e-6
    )  # columns of one value are parallel or opposite: no arc, A1111 would divide by zero
    safe = np.where(arc, sine, 1.0)
    weight_low = np.where(arc, np.sin((1 - strength) * angle) / safe, 1 - strength)
    weight_high = np.where(arc, np.sin(strength * angle) / safe, strength)
    return np.asarray(weight_low[:, None] * low + weight_high[:, None] * high, np.float32)


def _unit(noise: Array) -> Array:
    return np.asarray(noise / np.linalg.norm(noise, axis=1, keepdims=True), np.float32)


def _pasted(noise: Array, canvas: Array) -> Array:
    """The centre of `noise` over the centre of `canvas`, offsets rounded as A1111 rounds them."""
    result: Array = canvas.copy()
    target, source = [], []
    for inner, outer in zip(noise.shape[1:], canvas.shape[1:], strict=True):
        offset = (outer - inner) // 2
        # The offset is floored: noise that is larger by an odd number leaves a last row of the canvas.
        size = inner if offset >= 0 else inner + 2 * offset
        target.append(slice(max(offset, 0), max(offset, 0) + size))
        source.append(slice(max(-offset, 0), max(-offset, 0) + size))
    (to_y, to_x), (from_y, from_x) = target, source
    result[:, to_y, to_x] = noise[:, from_y, from_x]
    return result


def _wrapped(seed: int) -> int:
    return seed % 2**64


def _checked(
    shape: Sequence[int],
    kind: str,
    batch: str,
    strength: float,
    resize_from: tuple[int, int] | None,
) -> list[int]:
    sizes = list(shape)
    if len(sizes) != 4 or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ParameterError(f"noise has a shape [N, C, h, w] of whole numbers from 1; not {shape}")
    if kind not in KINDS:
        raise ParameterError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if batch not in BATCHES:
        raise ParameterError(f"batch must be one of {', '.join(BATCHES)}, not {batch!r}")
    if not 0 <= strength <= 1:
        raise ParameterError(f"variation_strength must be 0 to 1, not {strength}")
    if resize_from is not None and not (
        len(resize_from) == 2 and all(isinstance(s, int) and s >= 1 for s in resize_from)
    ):
        raise ParameterError(f"resize_from must be (h, w), whole numbers from 1; not {resize_from}")
    return sizes
