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
    Segment,
    apply_weights,
    blend,
    downweighted,
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
    with pytest.raises(ParameterError, match="a1111, comfyui, compel, diffusers, not 'sum'"):
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


def test_compel_blends_with_the_prompts_that_lack_what_weighs_less() -> None:
    segments = [Segment("a", 1.5), Segment("b", 0.5), Segment("c"), Segment("d", 0.0)]
    without = downweighted(segments)
    assert [[s.text for s in prompt] for prompt, _ in without] == [["a", "c", "d"], ["a", "b", "c"]]
    # Weight 0.5 counts as much as the full prompt; weight 0 drowns everything else.
    assert without[0][1] == pytest.approx(1.0)
    assert without[1][1] > 6e4
    assert downweighted([Segment("a"), Segment("b", 1.2)]) == []
    assert downweighted([Segment("a", 0.5)])[0][0] == [Segment("")]
    assert downweighted([Segment("a", -3.0)]) == downweighted([Segment("a", 0.0)])


def test_compel_equals_its_formula() -> None:
    rng = np.random.default_rng(3)
    full, without_b, without_d = rng.normal(size=(3, 77, 8)).astype(np.float32)
    segments = [Segment("a", 1.5), Segment("b", 0.75), Segment("d", 0.25)]
    shares = [1.0, *(share for _, share in downweighted(segments))]
    found = blend([full, without_b, without_d], shares)
    tangents = [1.0, np.tan(0.25 * np.pi / 2), np.tan(0.75 * np.pi / 2)]
    expected = (full + tangents[1] * without_b + tangents[2] * without_d) / sum(tangents)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert blend([full], [1.0]) is full


def test_blend_refuses_what_has_no_mean() -> None:
    array = np.zeros((77, 8), np.float32)
    for embeddings, shares in [
        ([array], [1, 2]),
        ([array, array[:3]], [1, 1]),
        ([], []),
        ([array], [0.0]),
    ]:
        with pytest.raises(ParameterError, match="share"):
            blend(embeddings, shares)
    with pytest.raises(ParameterError, match="65 parts"):
        downweighted([Segment(str(n), 0.5) for n in range(65)])
