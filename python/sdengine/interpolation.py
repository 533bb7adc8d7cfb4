"""Maps in another size, as torch resamples them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def enlarge(maps: Array, size: tuple[int, int], mode: str, antialias: bool = False) -> Array:
    """Maps resampled as ``torch.nn.functional.interpolate`` does it (without aligned corners).

    Args:
        maps: float32 ``[N, C, h, w]``.
        size: new height and width.
        mode: ``"bilinear"``, ``"bicubic"``, ``"nearest"`` or ``"nearest-exact"``.
        antialias: as in torch: wider filters where maps shrink, and Keys' cubic of -0.5 instead of -0.75.

    Returns:
        float32 ``[N, C, *size]``.
    """
    down = _resampling(maps.shape[2], size[0], mode, antialias)
    across = _resampling(maps.shape[3], size[1], mode, antialias)
    return np.ascontiguousarray(down @ maps.astype(np.float64) @ across.T, np.float32)


def _resampling(points: int, wanted: int, mode: str, antialias: bool) -> NDArray[np.float64]:
    """The matrix ``[wanted, points]`` that resamples one axis."""
    scale, matrix = points / wanted, np.zeros((wanted, points))
    if mode.startswith("nearest"):
        half = 0.5 if mode == "nearest-exact" else 0.0
        nearest = np.floor((np.arange(wanted) + half) * scale).astype(int)
        matrix[np.arange(wanted), np.minimum(nearest, points - 1)] = 1.0
        return matrix
    reach = 1 if mode == "bilinear" else 2
    stretch = max(scale, 1.0) if antialias else 1.0
    for i in range(wanted):
        centre = (i + 0.5) * scale - 0.5
        first = int(np.floor(centre - reach * stretch)) + 1
        near = np.arange(first, int(np.floor(centre + reach * stretch)) + 1)
        distance = np.asarray((near - centre) / stretch, np.float64)
        weights = _kernel(distance, mode, -0.5 if antialias else -0.75)
        if antialias:  # what lies outside is left out, and the rest counts for it
            inside = (near >= 0) & (near < points)
            near, weights = near[inside], weights[inside] / weights[inside].sum()
        np.add.at(matrix[i], np.clip(near, 0, points - 1), weights)
    return matrix


def _kernel(distance: NDArray[np.float64], mode: str, a: float) -> NDArray[np.float64]:
    """Weights of neighbours: a triangle, or the cubic convolution of Keys (1981)."""
    x = np.abs(distance)
    if mode == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))
