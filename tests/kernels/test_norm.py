"""Normalizations, GEGLU and the exponential's range, against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.kernels.conftest import DIRECT, Array, kernels, relative_error, shifted


def group_norm(x: Array, groups: int, gamma: Array, beta: Array, eps: float) -> torch.Tensor:
    y = torch.from_numpy(np.array(x)).double().transpose(1, 2)
    weight, bias = (torch.from_numpy(a).double() for a in (gamma, beta))
    return F.group_norm(y, groups, weight, bias, eps).transpose(1, 2)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 4, 2),
        (1, 2, 1, 1),
        (2, 64, 320, 32),
        (3, 7, 12, 3),
        (1, 5000, 64, 32),
        (4, 33, 33, 3),
        (1, 2, 8192, 32),
    ],
)
def test_group_norm(
    shape: tuple[int, int, int, int], silu: bool, isa: str, rng: np.random.Generator
) -> None:
    batch, pixels, channels, groups = shape
    x = rng.standard_normal((batch, pixels, channels), dtype=np.float32)
    gamma, beta = rng.standard_normal((2, channels), dtype=np.float32)
    expected = group_norm(x, groups, gamma, beta, 1e-5)
    if silu:
        expected = F.silu(expected)
    options = {"groups": groups, "gamma": gamma, "beta": beta, "silu": silu}
    results = [kernels.group_norm(x, **options, isa=isa, threads=n) for n in (1, 2, 3, 4)]
    assert relative_error(results[0], expected.numpy()) <= DIRECT
    assert all(np.array_equal(results[0], other) for other in results[1:])
    found = kernels.group_norm(x, **options, isa="reference")
    assert relative_error(found, expected.numpy()) <= 1e-7


@pytest.mark.parametrize("mean", [100.0, 1e4])
def test_group_norm_with_a_large_mean(mean: float, isa: str, rng: np.random.Generator) -> None:
    x = (rng.standard_normal((2, 900, 32), dtype=np.float32) + np.float32(mean)).astype(np.float32)
    ones, zeros = np.ones(32, np.float32), np.zeros(32, np.float32)
    expected = group_norm(x, 8, ones, zeros, 1e-6).numpy()
    found = kernels.group_norm(x, groups=8, gamma=ones, beta=zeros, eps=1e-6, isa=isa, threads=2)
    assert relative_error(found, expected) <= DIRECT


def test_group_norm_of_a_constant(isa: str) -> None:
    x = np.full((1, 50, 8), 3.7, np.float32)
    ones = np.ones(8, np.float32)
    found = kernels.group_norm(x, groups=2, gamma=ones, beta=2 * ones, isa=isa)
    assert np.abs(found - 2).max() < 1e-4


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (77, 768), (2, 4097), (500, 320)])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_layer_norm(
    shape: tuple[int, int], affine: bool, mean: float, isa: str, rng: np.random.Generator
) -> None:
    width = shape[1]
    x = rng.standard_normal(shape, dtype=np.float32) + np.float32(mean)
    gamma, beta = rng.standard_normal((2, width), dtype=np.float32)
    options = {"gamma": gamma, "beta": beta} if affine else {}
    normal = F.layer_norm(torch.from_numpy(x).double(), (width,), eps=1e-5).numpy()
    expected = normal * gamma + beta if affine else normal
    results = [kernels.layer_norm(x, **options, isa=isa, threads=n) for n in (1, 2, 3, 4)]
    if width == 1:
        assert np.array_equal(results[0], expected.astype(np.float32))
    else:
        assert relative_error(results[0], expected) <= DIRECT
    assert all(np.array_equal(results[0], other) for other in results[1:])
    moved = kernels.layer_norm(shifted(x), **options, isa=isa)
    assert np.array_equal(results[0], moved)


@pytest.mark.parametrize("kind", ["vector", "reference"])
def test_layer_norm_with_offset(kind: str, isa: str, rng: np.random.Generator) -> None:
    """Modulation stores gamma less one."""
    x = rng.standard_normal((7, 45), dtype=np.float32)
    gamma, beta = rng.standard_normal((2, 45), dtype=np.float32)
    normal = F.layer_norm(torch.from_numpy(x).double(), (45,), eps=1e-6).numpy()
    options = {"gamma": shifted(gamma), "beta": shifted(beta), "eps": 1e-6, "gamma_offset": 1.0}
    found = kernels.layer_norm(x, isa=isa if kind == "vector" else kind, **options)
    assert relative_error(found, normal * (1 + gamma) + beta) <= DIRECT


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (50, 33), (9, 1280)])
def test_geglu(shape: tuple[int, int], isa: str, rng: np.random.Generator) -> None:
    rows, inner = shape
    x = 3 * rng.standard_normal((rows, 2 * inner), dtype=np.float32)
    value, gate = torch.from_numpy(x).double().chunk(2, dim=1)
    expected = (value * F.gelu(gate)).numpy()
    results = [kernels.geglu(x, isa=isa, threads=n) for n in (1, 2, 3, 4)]
    assert relative_error(results[0], expected) <= DIRECT
    assert all(np.array_equal(results[0], other) for other in results[1:])
    assert relative_error(kernels.geglu(x, isa="reference"), expected) <= 1e-7


def activated(x: Array, activation: str, isa: str) -> Array:
    """An activation alone: a linear layer of one input whose weight is 1."""
    one = np.ones((1, 1), np.float32)
    y: Array = kernels.linear(x[:, None], one, "f32", 1, activation=activation, isa=isa)
    return y[:, 0]


@pytest.mark.parametrize("activation", ["gelu", "silu", "gelu_tanh", "quick_gelu"])
def test_activations_everywhere(activation: str, isa: str) -> None:
    """Absolute error at most 1e-6 (relative where the value is above 1), and sane limits."""
    x = np.concatenate([np.linspace(-30, 30, 20001), np.geomspace(1e-30, 1e4, 400)])
    x = np.concatenate([x, -x]).astype(np.float32)
    exact = torch.from_numpy(x).double()
    expected = {
        "gelu": F.gelu(exact),
        "silu": F.silu(exact),
        "gelu_tanh": F.gelu(exact, approximate="tanh"),
        "quick_gelu": exact * torch.sigmoid(1.702 * exact),
    }[activation].numpy()
    found = activated(x, activation, isa)
    assert (np.abs(found - expected) <= 1e-6 * np.maximum(1, np.abs(expected))).all()
    limits = activated(np.array([3e38, -3e38, 0, -0.0], np.float32), activation, isa)
    assert np.array_equal(limits, np.array([3e38, 0, 0, 0], np.float32))


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_small_values_keep_their_digits(activation: str, isa: str) -> None:
    """Relative error, where a difference of large numbers would lose it."""
    x = -np.linspace(0.01, 6, 5000).astype(np.float32)
    function = {"gelu": torch.special.ndtr, "silu": torch.sigmoid}[activation]
    expected = x * function(torch.from_numpy(x).double()).numpy()
    found = activated(x, activation, isa)
    # The exponent x^2 / 2 = 18 is rounded, which weighs most.
    assert (np.abs(found / expected - 1)).max() <= 2e-6
