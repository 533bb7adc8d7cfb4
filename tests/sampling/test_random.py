"""Noise equals torch's CPU generator bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sdengine
from sdengine import _core

SIZES = [*range(1, 41), 1000, 4095, 4096, 16383, 200_000]
SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**40 + 5]


def bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_size(seed: int) -> None:
    for size in SIZES:
        expected = torch.randn(size, generator=torch.Generator().manual_seed(seed)).numpy()
        assert np.array_equal(bits(sdengine.random.normal([size], seed)), bits(expected)), size


@pytest.mark.parametrize("sizes", [(64, 64), (5, 5, 5), (7, 64, 3, 1), (17, 15, 16)])
def test_successive_draws_continue_the_stream(sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(9)
    source = _core.NormalSource([9])
    for size in sizes:
        expected = torch.randn(1, size, generator=generator).numpy()
        assert np.array_equal(bits(source.normal([1, size])), bits(expected)), size


def test_one_generator_per_picture() -> None:
    batch = _core.NormalSource([3, 4, 5]).normal([3, 4, 8, 8])
    for index, seed in enumerate((3, 4, 5)):
        assert np.array_equal(batch[index], sdengine.random.normal([4, 8, 8], seed))


def test_bad_arguments() -> None:
    with pytest.raises(sdengine.ParameterError, match="torch-cpu"):
        sdengine.random.normal([4], 0, kind="dice")
    with pytest.raises(sdengine.ParameterError, match="seed"):
        sdengine.random.normal([4], -1)
    with pytest.raises(sdengine.ParameterError, match="non-negative"):
        sdengine.random.normal([-4], 0)
