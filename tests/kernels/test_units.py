"""The kernels of ``arithmetic="fast"``: against numpy in float64, and against the plain units."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine import ParameterError
from tests.kernels.conftest import WEIGHT_TYPES, Array, kernels, relative_error, shifted

UNITS: list[str] = kernels.units()
# Relative L2 errors of random values: 8 bits where the weights' own blocks are multiplied, 8 bits where weights are
# rounded as well, and bfloat16. Both operands of a product have the error of their rounding.
INT8, INT8_TWICE, BF16 = 6.5e-3, 9.5e-3, 3e-3
OWN_BLOCKS = ("q8_0", "q5_0", "q4_0", "iq4_nl")
# Between two units that round alike: sums in another order.
BETWEEN = 1e-6


INT8_UNITS = [unit for unit in UNITS if unit.startswith("int8")]
BF16_UNITS = [unit for unit in UNITS if unit.startswith("bf16")]


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def plain(unit: str) -> str:
    return unit.split("_")[0] + "_plain"


def rounded_blocks(values: Array) -> Array:
    """Values as blocks of 32 with 8 bits and a scale hold them."""
    blocks = values.reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    factors = np.divide(np.float32(127), largest, where=largest > 0, out=np.zeros_like(largest))
    scales = largest / np.float32(127)
    return (np.rint(blocks * factors) * scales.astype(np.float64)).reshape(values.shape)


@pytest.mark.parametrize("shape", [(8, 32, 16), (13, 96, 70), (77, 768, 33), (300, 1184, 20)])
@pytest.mark.parametrize("kind", OWN_BLOCKS)
@pytest.mark.parametrize("unit", INT8_UNITS)
def test_blocks_are_multiplied_exactly(
    kind: str, shape: tuple[int, int, int], unit: str, rng: np.random.Generator
) -> None:
    """Nothing is rounded but the input to blocks of 8 bits."""
    rows, wide, out = shape
    x = rng.standard_normal((rows, wide), dtype=np.float32)
    packed = kernels.quantize(rng.standard_normal((out, wide), dtype=np.float32), kind, wide)
    weight = kernels.dequantize(packed, kind, out * wide).reshape(out, wide)
    expected = rounded_blocks(x) @ weight.astype(np.float64).T
    found = kernels.linear(x, packed, kind, out, isa=unit, threads=2)
    assert relative_error(found, expected) <= BETWEEN
    assert relative_error(found, x.astype(np.float64) @ weight.astype(np.float64).T) <= INT8


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_every_weight_type(kind: str, unit: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((30, 768), dtype=np.float32)
    packed = kernels.quantize(rng.standard_normal((53, 768), dtype=np.float32), kind, 768)
    weight = kernels.dequantize(packed, kind, 53 * 768).reshape(53, 768).astype(np.float64)
    found = kernels.linear(x, packed, kind, 53, isa=unit, threads=2)
    bound = BF16 if unit.startswith("bf16") else INT8 if kind in OWN_BLOCKS else INT8_TWICE
    assert relative_error(found, x.astype(np.float64) @ weight.T) <= bound
    same = kernels.linear(x, packed, kind, 53, isa=plain(unit))
    assert relative_error(found, same) <= BETWEEN


@pytest.mark.parametrize("rows", [9, 40])
def test_terms(rows: int, unit: str, rng: np.random.Generator) -> None:
    """With what is added behind the product, on memory behind a boundary and odd sizes."""
    rows *= 3
    x = rng.standard_normal((rows, 45), dtype=np.float32)
    weight = rng.standard_normal((21, 45), dtype=np.float32)
    bias, gate = rng.standard_normal(21, np.float32), rng.standard_normal((3, 21), np.float32)
    residual = rng.standard_normal((rows, 21), dtype=np.float32)
    terms = {"bias": shifted(bias), "gate": shifted(gate), "residual": shifted(residual)}
    options = {"rows_per_batch": rows // 3, "activation": "silu", **terms}
    found = kernels.linear(shifted(x), shifted(weight), "f32", 21, isa=unit, threads=3, **options)
    sums = x.astype(np.float64) @ weight.T + bias
    expected = sums / (1 + np.exp(-sums)) * np.repeat(gate, rows // 3, axis=0) + residual
    assert relative_error(found, expected) <= INT8_TWICE


def test_convolutions(unit: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 7, 9, 40), dtype=np.float32)
    packed = kernels.quantize(rng.standard_normal((35, 40), np.float32), "f16", 40)
    options = {"kernel": (1, 1), "padding": [0, 0, 0, 0]}
    expected = kernels.conv2d(x, packed, "f16", 35, isa="reference", **options)
    found = kernels.conv2d(x, packed, "f16", 35, isa=unit, threads=2, **options)
    bound = BF16 if unit.startswith("bf16") else INT8_TWICE
    assert relative_error(found, expected) <= bound
    with pytest.raises(ParameterError, match="1x1 convolutions only"):
        kernels.conv2d(x, packed, "f16", 35, isa=unit, kernel=(1, 1), stride=2)


@pytest.mark.parametrize("head_dim", [40, 64, 128, 160])
@pytest.mark.parametrize("tokens", [(9, 5), (300, 77), (150, 1100)])
@pytest.mark.parametrize("unit", BF16_UNITS)
def test_attention(
    head_dim: int, tokens: tuple[int, int], unit: str, rng: np.random.Generator
) -> None:
    queries, keys = tokens
    q = rng.standard_normal((2, queries, 4 * head_dim), dtype=np.float32)
    k, v = rng.standard_normal((2, 2, keys, 2 * head_dim), dtype=np.float32)
    options = {"heads": 4, "kv_heads": 2, "scale": head_dim**-0.5}
    expected = kernels.attention(q, k, v, isa="reference", **options)
    found = kernels.attention(q, k, v, isa=unit, threads=2, **options)
    assert relative_error(found, expected) <= 2 * BF16


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_stay_so(value: float, unit: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 64), dtype=np.float32)
    x[3, 40] = value
    packed = kernels.quantize(rng.standard_normal((16, 64), dtype=np.float32), "q8_0", 64)
    found = kernels.linear(x, packed, "q8_0", 16, isa=unit)
    assert not np.isfinite(found[3]).any()
    assert np.isfinite(np.delete(found, 3, axis=0)).all()


def test_zeros_and_tiny_numbers(unit: str) -> None:
    x = np.zeros((12, 64), dtype=np.float32)
    x[1], x[2] = 1e-42, 1e-30
    packed = kernels.quantize(np.ones((16, 64), dtype=np.float32), "q8_0", 64)
    found = kernels.linear(x, packed, "q8_0", 16, isa=unit)
    assert np.allclose(found, x.sum(axis=1, keepdims=True), rtol=1e-2, atol=1e-39)


@pytest.mark.parametrize("shape", [(9, 512, 100), (77, 320, 1300), (1600, 64, 40)])
def test_threads_change_nothing(
    shape: tuple[int, int, int], unit: str, rng: np.random.Generator
) -> None:
    rows, wide, out = shape
    x = rng.standard_normal((rows, wide), dtype=np.float32)
    packed = kernels.quantize(rng.standard_normal((out, wide), dtype=np.float32), "q8_0", wide)
    results = [kernels.linear(x, packed, "q8_0", out, isa=unit, threads=n) for n in (1, 2, 3, 4)]
    assert all(np.array_equal(results[0], other) for other in results[1:])
