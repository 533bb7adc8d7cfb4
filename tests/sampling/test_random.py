"""Noise equals torch's CPU generator bit for bit, and its CUDA generator to the last bits."""

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


def numpy_philox(counters: np.ndarray, key: int) -> np.ndarray:
    """Philox 4x32-10 of Salmon et al. 2011, over columns of counters [4, n]."""
    a, b, c, d = (row.astype(np.uint64) for row in counters)
    mask, k = np.uint64(0xFFFFFFFF), [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        ab, cd = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (
            (cd >> np.uint64(32)) ^ b ^ np.uint64(k[0]),
            cd & mask,
            (ab >> np.uint64(32)) ^ d ^ np.uint64(k[1]),
            ab & mask,
        )
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack([a, b, c, d])


def numpy_cuda_normal(size: int, seed: int, call: int = 0) -> np.ndarray:
    index = np.arange(size, dtype=np.uint64)
    zero = np.zeros_like(index)
    words = numpy_philox(np.stack([zero + np.uint64(call), zero, index, zero]), seed)
    # The arguments of the logarithm and the sine are float32, as on the device.
    parts = [np.float64(np.float32(2.0**-32)), np.float64(np.float32(2 * np.pi / 2**32))]
    u, v = (
        (word.astype(np.float32).astype(np.float64) * part + part / 2).astype(np.float32)
        for word, part in zip(words[:2], parts, strict=True)
    )
    return np.sqrt(-2 * np.log(u.astype(np.float64))) * np.sin(v.astype(np.float64))


def test_philox_known_answers() -> None:
    # From the authors' Random123 distribution (kat_vectors, philox4x32 10).
    ones, digits = 2**32 - 1, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    for counter, key, expected in (
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (digits, 0x299F31D0A4093822, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ):
        assert numpy_philox(np.array(counter)[:, None], key)[:, 0].tolist() == expected


@pytest.mark.parametrize("seed", [*SEEDS, 2**64 - 1])
def test_cuda_noise_equals_numpy(seed: int) -> None:
    found = sdengine.random.normal([10_000], seed, kind="torch-cuda")
    assert np.abs(found - numpy_cuda_normal(10_000, seed)).max() <= 1e-6
    source = _core.NormalSource([seed, 4], "torch-cuda")
    for call in range(3):
        drawn = source.normal([2, 50])
        assert np.abs(drawn[0] - numpy_cuda_normal(50, seed, call)).max() <= 1e-6
        assert np.abs(drawn[1] - numpy_cuda_normal(50, 4, call)).max() <= 1e-6


def test_cuda_noise_equals_a_device() -> None:
    # torch.randn on a CUDA device with seed 0, as A1111's modules/rng_philox.py documents it.
    device = [-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564]
    device += [-0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497]
    found = sdengine.random.normal([12], 0, kind="torch-cuda")
    assert np.abs(found - device).max() <= 1e-6


def test_bad_arguments() -> None:
    with pytest.raises(sdengine.ParameterError, match="torch-cpu"):
        sdengine.random.normal([4], 0, kind="dice")
    with pytest.raises(sdengine.ParameterError, match="torch-cuda, not 'dice'"):
        _core.NormalSource([0], "dice")
    with pytest.raises(sdengine.ParameterError, match="seed"):
        sdengine.random.normal([4], -1)
    with pytest.raises(sdengine.ParameterError, match="non-negative"):
        sdengine.random.normal([-4], 0)
