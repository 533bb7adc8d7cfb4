"""linear against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.conftest import DIRECT, WEIGHT_TYPES, kernels, relative_error, shifted

SHAPES = [
    (1, 1, 1),
    (1, 320, 1280),
    (2, 1280, 64),
    (3, 5, 3),
    (13, 100, 70),
    (77, 768, 33),
    (25, 1024, 48),
    (64, 3072, 20),
    (300, 40, 16),
    (150, 1500, 53),
    (1030, 600, 40),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_numpy(shape: tuple[int, int, int], isa: str, rng: np.random.Generator) -> None:
    rows, wide, out = shape
    x = rng.standard_normal((rows, wide), dtype=np.float32)
    weight = rng.standard_normal((out, wide), dtype=np.float32)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    for threads in (1, 3):
        found = kernels.linear(x, weight, "f32", out, isa=isa, threads=threads)
        assert relative_error(found, expected) <= DIRECT
    assert relative_error(kernels.linear(x, weight, "f32", out, isa="reference"), expected) <= 1e-7


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
@pytest.mark.parametrize("rows", [1, 2, 7, 30])
def test_every_weight_type(kind: str, rows: int, isa: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((rows, 768), dtype=np.float32)
    weight = rng.standard_normal((53, 768), dtype=np.float32)
    packed = kernels.quantize(weight, kind, 768)
    exact = kernels.dequantize(packed, kind, weight.size).reshape(weight.shape)
    expected = x.astype(np.float64) @ exact.astype(np.float64).T
    found = kernels.linear(x, packed, kind, 53, isa=isa, threads=2)
    assert relative_error(found, expected) <= DIRECT


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q5_0", "iq4_xs"])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_few_rows_far_from_zero(kind: str, rows: int, isa: str, rng: np.random.Generator) -> None:
    """q4_0 and q5_0 hold numbers around 8 and 16, which are taken off their sums with the input."""
    x = rng.standard_normal((rows, 3072), dtype=np.float32) + 3
    x[:, ::400] *= 50
    weight = rng.standard_normal((53, 3072), dtype=np.float32)
    packed = kernels.quantize(weight, kind, 3072)
    exact = kernels.dequantize(packed, kind, weight.size).reshape(weight.shape)
    expected = x.astype(np.float64) @ exact.astype(np.float64).T
    found = kernels.linear(x, packed, kind, 53, isa=isa)
    assert relative_error(found, expected) <= DIRECT


@pytest.mark.parametrize("shape", [(1, 512, 100), (5, 700, 65), (77, 320, 1300), (600, 64, 40)])
def test_threads_change_nothing(
    shape: tuple[int, int, int], isa: str, rng: np.random.Generator
) -> None:
    rows, wide, out = shape
    x = rng.standard_normal((rows, wide), dtype=np.float32)
    weight = rng.standard_normal((out, wide), dtype=np.float32)
    results = [kernels.linear(x, weight, "f32", out, isa=isa, threads=n) for n in (1, 2, 3, 4)]
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "q5_1", "q4_K", "iq2_s"])
def test_few_rows_do_not_see_each_other(kind: str, isa: str, rng: np.random.Generator) -> None:
    """So that a picture of a small batch has the embeddings that it has alone."""
    x = rng.standard_normal((7, 768), dtype=np.float32)
    weight = kernels.quantize(rng.standard_normal((21, 768), dtype=np.float32), kind, 768)
    together = kernels.linear(x, weight, kind, 21, isa=isa)
    for rows in range(1, 7):
        assert np.array_equal(kernels.linear(x[:rows], weight, kind, 21, isa=isa), together[:rows])


@pytest.mark.parametrize("terms", [("bias",), ("residual",), ("bias", "residual")])
@pytest.mark.parametrize("shape", [(40, 1500, 53), (19, 100, 48)])
def test_sums_begin_with(
    terms: tuple[str, ...], shape: tuple[int, int, int], isa: str, rng: np.random.Generator
) -> None:
    """Bias and residual, where nothing else is done with the sums; panels whole and partial, slices one and several."""
    rows, wide, out = shape
    x = rng.standard_normal((rows, wide), dtype=np.float32)
    weight = rng.standard_normal((out, wide), dtype=np.float32)
    known = {
        "bias": rng.standard_normal(out, dtype=np.float32),
        "residual": rng.standard_normal((rows, out), dtype=np.float32),
    }
    given = {name: shifted(known[name]) for name in terms}
    found = kernels.linear(x, weight, "f32", out, isa=isa, threads=2, **given)
    expected = x.astype(np.float64) @ weight.T + sum(known[name] for name in terms)
    assert relative_error(found, expected) <= DIRECT


@pytest.mark.parametrize("rows", [6, 12])
def test_terms(rows: int, isa: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((rows, 33), dtype=np.float32)
    weight = rng.standard_normal((21, 33), dtype=np.float32)
    bias = rng.standard_normal(21, dtype=np.float32)
    batch_bias = rng.standard_normal((3, 21), dtype=np.float32)
    residual = rng.standard_normal((rows, 21), dtype=np.float32)
    found = kernels.linear(
        shifted(x),
        shifted(weight),
        "f32",
        21,
        isa=isa,
        rows_per_batch=rows // 3,
        bias=shifted(bias),
        batch_bias=shifted(batch_bias),
        residual=shifted(residual),
        activation="silu",
    )
    sums = x.astype(np.float64) @ weight.T + bias + np.repeat(batch_bias, rows // 3, axis=0)
    assert relative_error(found, sums / (1 + np.exp(-sums)) + residual) <= DIRECT


@pytest.mark.parametrize("residual", [False, True])
def test_gate(residual: bool, isa: str, rng: np.random.Generator) -> None:
    """It multiplies what the residual is added to, and is another for every batch entry."""
    x = rng.standard_normal((12, 33), dtype=np.float32)
    weight = rng.standard_normal((21, 33), dtype=np.float32)
    bias = rng.standard_normal(21, dtype=np.float32)
    gate = rng.standard_normal((3, 21), dtype=np.float32)
    added = rng.standard_normal((12, 21), dtype=np.float32)
    options = {"isa": isa, "rows_per_batch": 4, "bias": bias, "activation": "silu"}
    options |= {"residual": added} if residual else {}
    found = kernels.linear(x, weight, "f32", 21, gate=shifted(gate), **options)
    sums = x.astype(np.float64) @ weight.T + bias
    expected = sums / (1 + np.exp(-sums)) * np.repeat(gate, 4, axis=0) + residual * added
    assert relative_error(found, expected) <= DIRECT
    options["isa"] = "reference"
    found = kernels.linear(x, weight, "f32", 21, gate=gate, **options)
    assert relative_error(found, expected) <= 1e-7


@pytest.mark.parametrize("rows", [2, 8])
def test_rounding_does_not_grow_with_the_sum(rows: int, isa: str, rng: np.random.Generator) -> None:
    """16384 terms: added up in one chain they would be wrong by some 2e-6."""
    x = rng.standard_normal((rows, 16384), dtype=np.float32)
    weight = rng.standard_normal((16, 16384), dtype=np.float32)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    found = kernels.linear(x, weight, "f32", 16, isa=isa)
    assert relative_error(found, expected) <= DIRECT
