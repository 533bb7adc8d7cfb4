"""Weighting rules against straight formulas in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdengine.errors import ParameterError
from sdengine.prompt import (
    RULES,
    apply_weights,
    interpolate_from_empty,
    multiply_and_restore_mean,
)

CHUNKS, TOKENS, WIDTH = 2, 77, 16


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(0.1, 1, (CHUNKS * TOKENS, WIDTH)).astype(np.float32)
    weights = np.ones((CHUNKS, TOKENS), np.float32)
    weights[0, 3:9], weights[1, 5] = 1.3, 0.4
    return embeddings, weights, rng.normal(size=(TOKENS, WIDTH)).astype(np.float32)


def test_a1111_restores_the_mean_of_every_chunk() -> None:
    embeddings, weights, _ = inputs()
    found = multiply_and_restore_mean(embeddings, weights)
    expected = []
    for z, w in zip(embeddings.reshape(CHUNKS, TOKENS, WIDTH), weights, strict=True):
        z_torch = torch.from_numpy(z)
        product = z_torch * torch.from_numpy(w)[:, None]
        expected.append(product * (z_torch.mean() / product.mean()))
    np.testing.assert_allclose(found, torch.cat(expected).numpy(), rtol=2e-4, atol=1e-6)
    means = found.reshape(CHUNKS, -1).mean(axis=1)
    np.testing.assert_allclose(means, embeddings.reshape(CHUNKS, -1).mean(axis=1), atol=1e-6)


def test_a1111_with_a_vanishing_mean_keeps_the_product() -> None:
    embeddings = np.ones((3, 2), np.float32)
    found = multiply_and_restore_mean(embeddings, np.array([[0, 1, -1]], np.float32))
    assert found.tolist() == [[0, 0], [1, 1], [-1, -1]]


def test_comfyui_moves_along_the_line_from_the_empty_prompt() -> None:
    embeddings, weights, empty = inputs()
    weights[1, 7] = 0.0
    found = interpolate_from_empty(embeddings, weights, empty)
    for index, (z, w) in enumerate(zip(embeddings, weights.ravel(), strict=True)):
        base = empty[index % TOKENS]
        np.testing.assert_allclose(found[index], (z - base) * w + base, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[TOKENS + 7], empty[7])
    np.testing.assert_array_equal(found[0], embeddings[0])  # weight 1 is exact


@pytest.mark.parametrize("rule", RULES)
def test_without_emphasis_nothing_changes(rule: str) -> None:
    embeddings, weights, empty = inputs()
    assert apply_weights(rule, embeddings, np.ones_like(weights), empty) is embeddings


def test_rules_are_told_apart() -> None:
    embeddings, weights, empty = inputs()
    results = {rule: apply_weights(rule, embeddings, weights, empty) for rule in RULES}
    assert results["diffusers"] is embeddings
    np.testing.assert_array_equal(results["a1111"], multiply_and_restore_mean(embeddings, weights))
    np.testing.assert_array_equal(
        results["comfyui"], interpolate_from_empty(embeddings, weights, empty)
    )
    for result in results.values():
        assert (result.dtype, result.shape) == (np.float32, embeddings.shape)


def test_bad_input() -> None:
    embeddings, weights, empty = inputs()
    with pytest.raises(ParameterError, match="a1111, comfyui, diffusers, not 'sum'"):
        apply_weights("sum", embeddings, weights, empty)
    with pytest.raises(ParameterError, match=r"\(154, 16\) do not fit weights \(1, 77\)"):
        apply_weights("a1111", embeddings, weights[:1], empty)
    with pytest.raises(ParameterError, match="found nothing"):
        apply_weights("comfyui", embeddings, weights, None)
    with pytest.raises(ParameterError, match=r"shape \(77, 16\); found \(77, 8\)"):
        apply_weights("comfyui", embeddings, weights, empty[:, :8])


@given(st.floats(-3, 3, width=32))
def test_a_uniform_weight_is_no_weight_under_a1111(weight: float) -> None:
    embeddings, weights, _ = inputs()
    if abs(weight) > 1e-3:
        found = multiply_and_restore_mean(embeddings, np.full_like(weights, weight))
        np.testing.assert_allclose(found, embeddings, rtol=1e-4, atol=1e-5)
