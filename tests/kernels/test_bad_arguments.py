"""What the bindings refuse before a kernel sees it."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.errors import ParameterError
from tests.kernels.conftest import kernels

IMAGE = np.zeros((1, 4, 4, 8), np.float32)
WEIGHT = np.zeros((5, 8, 3, 3), np.float32)


def test_sizes() -> None:
    with pytest.raises(ParameterError, match="weight has 1440 bytes; expected 1728"):
        kernels.conv2d(IMAGE, WEIGHT, "f32", 6)
    with pytest.raises(ParameterError, match="bias has 4 elements; expected 5"):
        kernels.conv2d(IMAGE, WEIGHT, "f32", 5, bias=np.zeros(4, np.float32))
    with pytest.raises(ParameterError, match="smaller than the kernel"):
        kernels.conv2d(IMAGE[:, :1], WEIGHT, "f32", 5, padding=(0, 0, 0, 0))
    with pytest.raises(ParameterError, match="whole blocks of 32"):
        kernels.linear(np.zeros((2, 33), np.float32), b"", "q8_0", 3)
    with pytest.raises(ParameterError, match="groups do not divide"):
        ones = np.ones(8, np.float32)
        kernels.group_norm(np.zeros((1, 2, 8), np.float32), groups=3, gamma=ones, beta=ones)


def test_names() -> None:
    with pytest.raises(ParameterError, match="unknown ggml type 'q9'"):
        kernels.conv2d(IMAGE, WEIGHT, "q9", 5)
    with pytest.raises(ParameterError, match="isa 'mmx' is not available"):
        kernels.conv2d(IMAGE, WEIGHT, "f32", 5, isa="mmx")
    with pytest.raises(ParameterError, match="unknown activation 'swish'"):
        kernels.conv2d(IMAGE, WEIGHT, "f32", 5, activation="swish")


def test_threads() -> None:
    with pytest.raises(ParameterError, match="at least 1"):
        kernels.conv2d(IMAGE, WEIGHT, "f32", 5, threads=0)


def test_nothing_to_do(isa: str) -> None:
    """Empty batches and rows pass through."""
    for method in ("direct", "winograd"):
        y = kernels.conv2d(IMAGE[:0], WEIGHT, "f32", 5, threads=2, isa=isa, method=method)
        assert y.shape == (0, 4, 4, 5)
    matrix = np.zeros((3, 8), np.float32)
    assert kernels.linear(matrix[:0], matrix, "f32", 3, threads=2, isa=isa).shape == (0, 3)
    assert kernels.layer_norm(matrix[:0], threads=2, isa=isa).shape == (0, 8)
    assert kernels.geglu(matrix[:0], threads=2, isa=isa).shape == (0, 4)
    ones = np.ones(8, np.float32)
    image = np.zeros((0, 3, 8), np.float32)
    y = kernels.group_norm(image, groups=2, gamma=ones, beta=ones, threads=2, isa=isa)
    assert y.shape == (0, 3, 8)
    options = {"heads": 2, "kv_heads": 2, "scale": 1.0, "threads": 2, "isa": isa}
    assert kernels.attention(image, image, image, **options).shape == (0, 3, 8)
    tokens = np.ones((1, 3, 8), np.float32)
    assert kernels.attention(tokens[:, :0], tokens, tokens, **options).shape == (1, 0, 8)
    assert not kernels.attention(tokens, tokens[:, :0], tokens[:, :0], **options).any()
