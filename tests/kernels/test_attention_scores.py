"""attention with what language models add to its scores: a soft cap and a bias by distance."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from sdengine.errors import ParameterError
from tests.kernels.conftest import Array, kernels, relative_error

BOUND = 1.5e-6  # as in test_attention


def draw(
    rng: np.random.Generator, q_len: int, kv_len: int, causal: bool, masked: bool
) -> dict[str, Any]:
    """Four query heads over two key heads of 24."""
    mask = None
    if masked:
        mask = np.where(rng.random((2, q_len, kv_len)) < 0.3, -np.inf, 0.0).astype(np.float32)
        mask[:, :, 0] = 0
    return {
        "q": rng.standard_normal((2, q_len, 96), np.float32),
        "k": rng.standard_normal((2, kv_len, 48), np.float32),
        "v": rng.standard_normal((2, kv_len, 48), np.float32),
        "mask": mask,
        "heads": 4,
        "kv_heads": 2,
        "causal": causal,
        "scale": 0.7,
    }


def expected(data: dict[str, Any], softcap: float, bias: Array | None) -> Array:
    """The same in float64, with whole matrices of scores."""
    q, k, v = (
        data[name].astype(np.float64).reshape(2, -1, heads, 24).transpose(0, 2, 1, 3)
        for name, heads in (("q", 4), ("k", 2), ("v", 2))
    )
    k, v = k.repeat(2, axis=1), v.repeat(2, axis=1)
    scores = q @ k.transpose(0, 1, 3, 2) * 0.7
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    queries, keys = scores.shape[2:]
    distance = np.arange(keys)[None] - np.arange(queries)[:, None]
    if bias is not None:
        scores = scores + bias[:, distance + queries - 1]
    if data["mask"] is not None:
        scores = scores + data["mask"][:, None]
    if data["causal"]:
        scores = np.where(distance > 0, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(2, queries, 96)


CASES = [
    (q_len, kv_len, causal, masked, softcap, biased)
    for (q_len, kv_len), (causal, masked), (softcap, biased) in product(
        [(40, 40), (17, 700), (1, 5), (60, 13)],
        [(False, False), (True, False), (False, True)],
        [(5.0, False), (0.0, True), (2.0, True)],
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case: tuple[Any, ...], rng: np.random.Generator) -> None:
    q_len, kv_len, causal, masked, softcap, biased = case
    data = draw(rng, q_len, kv_len, causal, masked)
    bias = rng.standard_normal((4, q_len + kv_len - 1), np.float32) if biased else None
    exact = expected(data, softcap, bias)
    options: dict[str, Any] = {"softcap": softcap, "distance_bias": bias}
    for isa in kernels.isas():
        found = kernels.attention(**data, **options, isa=isa, threads=2)
        assert relative_error(found, exact) <= (2e-7 if isa == "reference" else BOUND), isa


def test_threads_change_nothing(isa: str, rng: np.random.Generator) -> None:
    data = draw(rng, 300, 300, True, False)
    bias = rng.standard_normal((4, 599), np.float32)
    results = [
        kernels.attention(**data, softcap=3.0, distance_bias=bias, isa=isa, threads=n)
        for n in (1, 3)
    ]
    assert np.array_equal(results[0], results[1])


def test_a_bias_of_another_size(rng: np.random.Generator) -> None:
    data = draw(rng, 4, 4, False, False)
    with pytest.raises(ParameterError, match="distance_bias"):
        kernels.attention(**data, distance_bias=np.zeros((4, 6), np.float32))
