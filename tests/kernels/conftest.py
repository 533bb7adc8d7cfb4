"""The module under test and what every kernel test needs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdengine import _core

kernels: ModuleType = _core.kernels
Array = npt.NDArray[Any]

# Direct float32 kernels: relative L2 error against float64.
DIRECT = 1e-6
VECTOR_ISAS: list[str] = [isa for isa in kernels.isas() if isa != "reference"]
WEIGHT_TYPES = (
    "f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_K q3_K q4_K q5_K q6_K iq4_nl iq4_xs mxfp4".split()
)


def relative_error(found: Array, expected: Array) -> float:
    """The L2 norm of the difference over that of the expectation."""
    assert found.shape == expected.shape
    difference = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(params=VECTOR_ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def shifted(array: Array) -> Array:
    """The same values one float behind a vector boundary."""
    memory = np.empty(array.size + 17, dtype=np.float32)
    offset = (16 - memory.ctypes.data // 4 % 16) % 16 + 1
    view: Array = memory[offset : offset + array.size].reshape(array.shape)
    view[...] = array
    assert view.ctypes.data % 64 == 4
    return view
