"""Random numbers that equal those of the reference implementations."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import ParameterError

KINDS = ("torch-cpu", "torch-cuda")


def normal(shape: Sequence[int], seed: int, kind: str = "torch-cpu") -> NDArray[np.float32]:
    """Normal noise of mean 0 and standard deviation 1.

    Args:
        shape: sizes, each 0 or more.
        seed: 0 to 2**64 - 1.
        kind: ``"torch-cpu"`` equals ``torch.randn(shape, generator=torch.Generator().manual_seed(seed))`` on x86-64,
            bit for bit. ``"torch-cuda"`` equals the same on a CUDA device that runs a thread for every value, but for
            the last bits of its logarithm and sine.

    Returns:
        float32, C order.

    Raises:
        ParameterError: an argument is out of range.
    """
    if kind not in KINDS:
        raise ParameterError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    try:
        sizes = [operator.index(size) for size in shape]
    except TypeError:
        sizes = [-1]
    if not all(size >= 0 for size in sizes) or math.prod(sizes) > 2**34:
        raise ParameterError(
            f"a shape has whole, non-negative sizes, at most 2**34 values; not {shape}"
        )
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ParameterError(f"seed must be 0 to 2**64 - 1, not {seed}")
    return _core.normal(sizes, seed, kind)
