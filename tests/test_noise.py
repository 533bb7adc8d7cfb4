"""Start noise against torch, and A1111's rules written once more in torch."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from sdengine.errors import ParameterError
from sdengine.noise import COMPAT, Compat, image_seeds, slerp, start_noise
from sdengine.prompt import RULES
from sdengine.random import KINDS

SHAPE = [3, 4, 9, 7]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def torch_slerp(val: float, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """A1111's rule, over the columns of [C, h, w]."""
    cosine = (
        torch.nn.functional.normalize(low, dim=1)
        .mul(torch.nn.functional.normalize(high, dim=1))
        .sum(1)
    )
    if cosine.mean() > 0.9995:
        return torch.lerp(high, low, val)
    angle = cosine.acos().unsqueeze(1)
    return (((1 - val) * angle).sin() * low + (val * angle).sin() * high) / angle.sin()


def test_per_image_generators_count_up_from_the_seed() -> None:
    found = start_noise(SHAPE, 42)
    for index, image in enumerate(found):
        np.testing.assert_array_equal(image, drawn(42 + index, *SHAPE[1:]).numpy())
    np.testing.assert_array_equal(found, start_noise(SHAPE, [42, 43, 44]))


def test_one_generator_draws_the_whole_batch() -> None:
    found = start_noise(SHAPE, 42, batch="one-generator")
    np.testing.assert_array_equal(found, drawn(42, *SHAPE).numpy())
    # Both conventions agree on a batch of one, and on the first picture only where torch fills in the same order.
    single = [1, *SHAPE[1:]]
    np.testing.assert_array_equal(
        start_noise(single, 42), start_noise(single, 42, batch="one-generator")
    )
    assert not np.array_equal(found[1], start_noise(SHAPE, 42)[1])


def test_cuda_noise_is_another() -> None:
    per_image = start_noise(SHAPE, 1, kind="torch-cuda")
    assert not np.array_equal(per_image, start_noise(SHAPE, 1))
    single = start_noise([1, *SHAPE[1:]], 3, kind="torch-cuda")
    np.testing.assert_array_equal(single[0], per_image[2])


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 1.0])
def test_variation_walks_the_arc_to_other_noise(strength: float) -> None:
    found = start_noise(SHAPE, 42, variation_seed=7, variation_strength=strength)
    for index, image in enumerate(found):
        # While a variation is on, pictures share the seed and count up the variation's.
        base = drawn(42 if strength else 42 + index, *SHAPE[1:])
        expected = torch_slerp(strength, base, drawn(7 + index, *SHAPE[1:])) if strength else base
        np.testing.assert_allclose(image, expected.numpy(), rtol=2e-5, atol=2e-6)


def test_slerp_keeps_the_length_that_a_straight_line_would_lose() -> None:
    low, high = (drawn(seed, 4, 64, 64).numpy() for seed in (1, 2))
    assert slerp(0.5, low, high).std() == pytest.approx(1.0, abs=0.02)
    assert (0.5 * low + 0.5 * high).std() < 0.75


def test_slerp_of_near_parallel_noise_is_a_line_with_its_ends_exchanged() -> None:
    low = drawn(1, 4, 9, 7)
    high = low + 1e-3 * drawn(2, 4, 9, 7)
    found = slerp(0.2, low.numpy(), high.numpy())
    np.testing.assert_allclose(found, torch_slerp(0.2, low, high).numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found, (0.2 * low + 0.8 * high).numpy(), rtol=1e-6, atol=1e-7)


def test_slerp_of_columns_of_one_value_is_finite() -> None:
    found = start_noise([1, 2, 1, 5], 3, variation_seed=4, variation_strength=0.3)
    assert np.isfinite(found).all()


def a1111_resized(seed: int, shape: list[int], inner: tuple[int, int]) -> torch.Tensor:
    """Centre paste, row by row and column by column."""
    noise, canvas = drawn(seed, shape[0], *inner), drawn(seed, *shape)
    (rows, columns), (h, w) = inner, shape[1:]
    dy, dx = (h - rows) // 2, (w - columns) // 2
    for y in range(rows if dy >= 0 else rows + 2 * dy):
        for x in range(columns if dx >= 0 else columns + 2 * dx):
            canvas[:, y + max(dy, 0), x + max(dx, 0)] = noise[:, y + max(-dy, 0), x + max(-dx, 0)]
    return canvas


@pytest.mark.parametrize("inner", [(5, 4), (5, 12), (14, 4), (14, 12), (9, 6), (11, 7)])
def test_noise_of_another_size_is_pasted_in_the_centre(inner: tuple[int, int]) -> None:
    found = start_noise(SHAPE, 5, resize_from=inner)
    for index, image in enumerate(found):
        np.testing.assert_array_equal(image, a1111_resized(5 + index, SHAPE[1:], inner).numpy())


def test_the_same_size_changes_nothing() -> None:
    np.testing.assert_array_equal(start_noise(SHAPE, 5, resize_from=(9, 7)), start_noise(SHAPE, 5))


def test_seeds() -> None:
    assert image_seeds(2**64 - 1, 3) == [2**64 - 1, 0, 1]
    assert image_seeds([9], 2) == [9, 10]
    assert image_seeds([9, 3], 2) == [9, 3]
    assert image_seeds(np.int64(9), 2, shared=True) == [9, 9]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": [4, 9, 7]}, "shape"),
        ({"shape": [0, 4, 9, 7]}, "shape"),
        ({"seeds": -1}, "2\\*\\*64"),
        ({"seeds": [1, 2]}, "2 seeds do not fit 3 pictures"),
        ({"seeds": []}, "whole numbers"),
        ({"kind": "numpy"}, "torch-cpu"),
        ({"batch": "both"}, "per-image"),
        ({"variation_strength": 1.5}, "0 to 1"),
        ({"variation_strength": float("nan")}, "0 to 1"),
        ({"resize_from": (0, 4)}, "resize_from"),
        ({"batch": "one-generator", "variation_seed": 1, "variation_strength": 0.5}, "per-image"),
        ({"batch": "one-generator", "resize_from": (4, 4)}, "per-image"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        start_noise(**{"shape": SHAPE, "seeds": 1, **arguments})


@pytest.mark.parametrize("name", [None, "diffusers", "comfyui", "a1111"])
def test_conventions_name_things_that_exist(name: str | None) -> None:
    compat = COMPAT[name]
    assert compat.name == (name or "sdengine")
    assert compat.kind in KINDS
    assert compat.weighting in RULES
    for field, hint in get_type_hints(Compat).items():
        if choices := get_args(hint):
            assert getattr(compat, field) in choices, field
