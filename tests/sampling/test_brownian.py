"""Brownian paths equal torchsde's bit for bit, and the noise of a step that of k-diffusion."""

from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
import pytest
import torch
import torchsde

import sdengine
from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.sampling import SAMPLERS, sample

from .test_samplers import guided, mixture, relative, start, torch_mixture

LOW, HIGH = 0.029167158, 14.614641


def bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


@pytest.mark.parametrize("entropy", [0, 1, 2**32 - 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("spawn_key", [[], [0, 0], [5, 3], [2**33 + 1, 34]])
def test_seed_sequence(entropy: int, spawn_key: list[int]) -> None:
    sequence = np.random.SeedSequence(entropy, spawn_key=tuple(spawn_key), pool_size=24)
    assert _core.seed_sequence_word(entropy, spawn_key) == sequence.generate_state(1)[0]


@pytest.mark.parametrize("size", [5, 64])
@pytest.mark.parametrize("seed", [0, 42, 2**40 + 5])
def test_path(seed: int, size: int) -> None:
    """Random queries, so that halving points fall on either side of ties of the sixth decimal."""
    expected = torchsde.BrownianTree(LOW, torch.zeros(size), HIGH, entropy=seed)
    tree = _core.BrownianTree(seed, LOW, HIGH, size)
    rng = np.random.default_rng(seed)
    for _ in range(40):
        a, b = sorted(rng.uniform(0.03, 14.6, 2))
        assert np.array_equal(bits(tree.increment(a, b)), bits(expected(a, b).numpy())), (a, b)


def test_path_does_not_depend_on_earlier_queries() -> None:
    used, fresh = (_core.BrownianTree(7, LOW, HIGH, 32) for _ in range(2))
    for a, b in [(1.0, 2.0), (0.5, 1.0), (2.0, 14.0), (3.3, 3.4)]:
        used.increment(a, b)
    assert np.array_equal(bits(used.increment(1.25, 9.5)), bits(fresh.increment(1.25, 9.5)))


def test_increments_add_up() -> None:
    tree = _core.BrownianTree(3, LOW, HIGH, 64)
    parts = tree.increment(1.0, 4.0) + tree.increment(4.0, 9.0)
    np.testing.assert_allclose(parts, tree.increment(1.0, 9.0), rtol=0, atol=1e-5)


def test_times_that_round_together_give_zero() -> None:
    assert not _core.BrownianTree(3, LOW, HIGH, 8).increment(2.0, 2.0 + 1e-8).any()


@pytest.mark.parametrize("steps", [4, 20])
def test_noise_of_a_run(k_diffusion: ModuleType, steps: int) -> None:
    seeds = [11, 12, 13]
    sigmas = k_diffusion.get_sigmas_karras(steps, 0.03, 14.6)
    x = torch.zeros(3, 4, 8, 8)
    sampler = k_diffusion.BrownianTreeNoiseSampler(x, sigmas[-2], sigmas[0], seed=seeds)
    noise = _core.BrownianNoise(seeds, float(sigmas[-2]), float(sigmas[0]), 256)
    for sigma, following in itertools.pairwise(sigmas[:-1]):
        with pytest.MonkeyPatch.context() as patch:
            # The ends of the path are rounded to six decimals, perhaps inwards; torchsde then warns and moves a query.
            patch.setattr("warnings.warn", lambda *_: None)
            increment = sampler.tree(sigma, following).numpy()
            scaled = sampler(sigma, following).numpy()
        actual = noise.normal(float(sigma), float(following), [3, 4, 8, 8])
        root = np.sqrt(np.abs(following.numpy() - sigma.numpy()))
        assert np.array_equal(bits(actual), bits(increment / root)), float(sigma)
        # torch's own root may be one unit in the last place off (2^-23); either quotient is rounded (2^-24 each).
        np.testing.assert_allclose(actual, scaled, rtol=2.0**-22, atol=0)


def test_a_batch_equals_single_runs() -> None:
    batch = _core.BrownianNoise([1, 2], LOW, HIGH, 40).normal(9.0, 5.0, [2, 40])
    for row, seed in zip(batch, (1, 2), strict=True):
        alone = _core.BrownianNoise([seed], LOW, HIGH, 40).normal(9.0, 5.0, [1, 40])
        assert np.array_equal(row, alone[0])


def test_noise_is_standard_normal() -> None:
    values = _core.BrownianNoise([1], LOW, HIGH, 100_000).normal(3.0, 2.5, [100_000])
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.02


@pytest.mark.parametrize(
    ("start", "end"), [(1.0, 1.0), (2.0, 1.0), (0.0, 1e9), (0.0, float("nan"))]
)
def test_impossible_paths(start: float, end: float) -> None:
    with pytest.raises(ParameterError, match="Brownian path"):
        _core.BrownianTree(0, start, end, 4)


def test_bad_arguments() -> None:
    with pytest.raises(ParameterError, match="increment"):
        _core.BrownianTree(0, 0.0, 1.0, 4).increment(0.5, 0.5)
    with pytest.raises(ParameterError, match="seed"):
        _core.BrownianNoise([], 0.0, 1.0, 4)
    with pytest.raises(ParameterError, match="cannot fill"):
        _core.BrownianNoise([1, 2], 0.0, 1.0, 4).normal(0.9, 0.5, [3, 4])


SDE = {
    "dpm++sde": ("sample_dpmpp_sde", {}),
    "dpm++2m_sde": ("sample_dpmpp_2m_sde", {}),
    "dpm++2m_sde_heun": ("sample_dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpm++3m_sde": ("sample_dpmpp_3m_sde", {}),
}


@pytest.mark.filterwarnings("ignore:Should have t")
@pytest.mark.parametrize("steps", [4, 10, 25])
@pytest.mark.parametrize("name", sorted(SDE))
def test_runs_equal_k_diffusion(k_diffusion: ModuleType, name: str, steps: int) -> None:
    """The SDE samplers with the noise that they have by default, there and here."""
    levels = sdengine.sampling.sigmas("karras", steps)
    # From start 1, one path ends between two of the mixture's centres and amplifies rounding to 1e-5
    # (k-diffusion differs as much from itself in float64).
    x = np.concatenate([start(levels, 3), start(levels, 4)])
    function, options = SDE[name]
    noise = k_diffusion.BrownianTreeNoiseSampler(
        torch.tensor(x), torch.tensor(levels[-2]), torch.tensor(levels[0]), seed=[5, 6]
    )
    expected = getattr(k_diffusion, function)(
        torch_mixture,
        torch.tensor(x),
        torch.tensor(levels),
        disable=True,
        noise_sampler=noise,
        **options,
    ).numpy()
    assert relative(sample(mixture, x, levels, name, [5, 6]), expected) <= 1e-5


def test_ancestral_samplers_take_it_where_they_are_told_to(k_diffusion: ModuleType) -> None:
    levels = sdengine.sampling.sigmas("karras", 8)
    x = start(levels)
    noise = _core.BrownianNoise([3], float(levels[-2]), float(levels[0]), x.size)

    def sampler(sigma: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        return torch.tensor(noise.normal(float(sigma), float(following), x.shape))

    expected = k_diffusion.sample_euler_ancestral(
        torch_mixture, torch.tensor(x), torch.tensor(levels), disable=True, noise_sampler=sampler
    ).numpy()
    assert relative(sample(mixture, x, levels, "euler_a", 3, brownian=True), expected) <= 1e-5
    assert relative(sample(mixture, x, levels, "euler_a", 3), expected) > 0.1


def test_pictures_change_little_with_the_number_of_steps() -> None:
    """What the path is for: fresh noise gives another picture with every number of steps."""

    def gaussian(x: np.ndarray, sigma: float) -> np.ndarray:
        return (x / (1 + sigma**2)).astype(np.float32)

    def distance(brownian: bool) -> float:
        runs = []
        for steps in (100, 200):
            levels = np.geomspace(14.6, 0.03, steps + 1).astype(np.float32)
            x = start(levels)
            runs.append(sample(gaussian, x, levels, "dpm++2m_sde", 3, brownian=brownian))
        return relative(*runs)

    assert distance(brownian=True) < 0.2 * distance(brownian=False)


def test_the_device_s_generator() -> None:
    """torchsde seeds a generator of the path's device; on CUDA that is Philox."""
    tree = _core.BrownianTree(9, 0.0, 4.0, 64, "torch-cuda")
    word = _core.seed_sequence_word(9, [])
    expected = 2 * sdengine.random.normal([64], word, "torch-cuda")
    np.testing.assert_allclose(tree.increment(0.0, 4.0), expected, rtol=1e-6)
    levels = sdengine.sampling.sigmas("karras", 4)
    runs = [
        sample(mixture, start(levels), levels, "dpm++sde", noise=k)
        for k in ("torch-cpu", "torch-cuda")
    ]
    assert relative(*runs) > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_save_and_restore_are_bit_identical(name: str) -> None:
    levels = sdengine.sampling.sigmas("karras", 9)

    def fresh() -> _core.Sampler:
        return _core.Sampler(name, start(levels), levels, [3], brownian=True)

    straight, interrupted = fresh(), fresh()
    while not straight.done:
        straight.step(guided)
        interrupted.step(guided)
        state = interrupted.save()
        interrupted = fresh()
        interrupted.restore(state)
    assert np.array_equal(interrupted.x, straight.x)
