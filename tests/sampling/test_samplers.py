"""Samplers against k-diffusion and closed forms, on a Gaussian mixture whose denoiser is known exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch

import sdengine
from sdengine import _core
from sdengine.sampling import SAMPLERS, sample, sigmas

CENTRES = np.array([[-1.5, 0.5, 1.0, -0.2], [1.0, -1.0, 0.3, 0.8], [0.2, 1.2, -0.7, -1.1]])
WIDTH = 0.4


def mixture(x: np.ndarray, sigma: float) -> np.ndarray:
    """The exact denoiser of three Gaussians of width WIDTH, in float64."""
    flat = x.reshape(-1, 4).astype(np.float64)
    variance = WIDTH**2 + sigma**2
    away = flat[:, None] - CENTRES
    score = -(away**2).sum(-1) / (2 * variance)
    weight = np.exp(score - score.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    posterior = CENTRES + away * (WIDTH**2 / variance)
    return (weight[:, :, None] * posterior).sum(1).reshape(x.shape).astype(np.float32)


def guided(x: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """The mixture as the guided estimate, beside another one as that without guidance."""
    return mixture(x, sigma), mixture(0.9 * x, sigma) * np.float32(0.8)


def torch_mixture(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return torch.tensor(mixture(x.numpy(), float(sigma.flatten()[0])))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def start(levels: np.ndarray, seed: int = 1) -> np.ndarray:
    return sdengine.random.normal([1, 4, 8, 8], seed) * levels[0]


K_SAMPLERS = {
    "euler": "sample_euler",
    "euler_a": "sample_euler_ancestral",
    "heun": "sample_heun",
    "dpm2": "sample_dpm_2",
    "dpm2_a": "sample_dpm_2_ancestral",
    "dpm++2m": "sample_dpmpp_2m",
    "dpm++2s_a": "sample_dpmpp_2s_ancestral",
    "dpm++sde": "sample_dpmpp_sde",
    "dpm++2m_sde": "sample_dpmpp_2m_sde",
    "dpm++2m_sde_heun": "sample_dpmpp_2m_sde",
    "dpm++3m_sde": "sample_dpmpp_3m_sde",
    "lms": "sample_lms",
}


@pytest.mark.parametrize("steps", [4, 10, 25])
@pytest.mark.parametrize("schedule", ["discrete", "karras"])
@pytest.mark.parametrize("name", sorted(K_SAMPLERS))
def test_equals_k_diffusion(k_diffusion: ModuleType, name: str, schedule: str, steps: int) -> None:
    levels = sigmas(schedule, steps)
    x = start(levels)
    generator = torch.Generator().manual_seed(77)
    options: dict[str, object] = {"disable": True}
    if name.endswith("_a") or "sde" in name:
        options["noise_sampler"] = lambda *_: torch.randn(x.shape, generator=generator)
    if name == "dpm++2m_sde_heun":
        options["solver_type"] = "heun"
    function = getattr(k_diffusion, K_SAMPLERS[name])
    expected = function(torch_mixture, torch.tensor(x), torch.tensor(levels), **options).numpy()
    assert relative(sample(mixture, x, levels, name, 77, brownian=False), expected) <= 1e-5


def numpy_ipndm(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Adams-Bashforth of rising order on the slope, written from Liu et al. 2022, section 3.3."""
    table = [
        [1],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
    x, slopes = x.astype(np.float64), []
    for sigma, following in itertools.pairwise(levels.astype(float)):
        denoised = mixture(x.astype(np.float32), sigma).astype(np.float64)
        slopes = [(x - denoised) / sigma, *slopes][:4]
        mean = sum(c * d for c, d in zip(table[len(slopes) - 1], slopes, strict=True))
        x = denoised if following == 0 else x + (following - sigma) * mean
    return x


def numpy_lcm(x: np.ndarray, levels: np.ndarray, seed: int) -> np.ndarray:
    """Luo et al. 2023, algorithm 3, in sigma."""
    generator = torch.Generator().manual_seed(seed)
    for sigma, following in itertools.pairwise(levels):
        x = mixture(x, float(sigma))
        if following > 0:
            x = x + following * torch.randn(x.shape, generator=generator).numpy()
    return x


@pytest.mark.parametrize("steps", [4, 10, 25])
def test_ipndm_and_lcm_equal_their_papers(steps: int) -> None:
    levels = sigmas("karras", steps)
    x = start(levels)
    assert relative(sample(mixture, x, levels, "ipndm"), numpy_ipndm(x, levels)) <= 1e-5
    assert relative(sample(mixture, x, levels, "lcm", seed=5), numpy_lcm(x, levels, 5)) <= 1e-5


@pytest.mark.parametrize("noise", sdengine.random.KINDS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_save_and_restore_are_bit_identical(name: str, noise: str) -> None:
    levels = sigmas("karras", 9)
    x = start(levels)

    def fresh() -> _core.Sampler:
        return _core.Sampler(name, x, levels, [3], noise=noise)

    straight, interrupted = fresh(), fresh()
    while not straight.done:
        straight.step(guided)
        if not interrupted.done:
            interrupted.step(guided)
            state = interrupted.save()
            interrupted = fresh()
            interrupted.restore(state)
    assert np.array_equal(interrupted.x, straight.x)
    assert np.array_equal(interrupted.denoised, straight.denoised)


@pytest.mark.parametrize("name", SAMPLERS)
def test_batch_equals_single_runs(name: str) -> None:
    levels = sigmas("karras", 6)
    x = np.concatenate([start(levels, 1), start(levels, 2)])
    both = sample(guided, x, levels, name, seed=[8, 9])
    for index in range(2):
        single = sample(guided, x[index : index + 1], levels, name, seed=8 + index)
        assert np.array_equal(both[index : index + 1], single)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_finite(name: str, steps: int) -> None:
    levels = sigmas("discrete", steps)
    assert np.isfinite(sample(guided, start(levels), levels, name)).all()


def failing_at(step: int, value: float) -> Callable[[np.ndarray, float], np.ndarray]:
    calls = 0

    def denoiser(x: np.ndarray, sigma: float) -> np.ndarray:
        nonlocal calls
        calls += 1
        result = mixture(x, sigma)
        if calls == step:
            result[0, 0, 0, 0] = value
        return result

    return denoiser


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_names_the_step(value: float) -> None:
    levels = sigmas("karras", 5)
    with pytest.raises(sdengine.NumericError, match="step 3 of 5"):
        sample(failing_at(3, value), start(levels), levels, "euler")


def test_an_exception_leaves_the_state_as_it_was() -> None:
    levels = sigmas("karras", 5)
    for name in SAMPLERS:
        run = _core.Sampler(name, start(levels), levels, [0])
        run.step(guided)
        before = run.save()

        def broken(x: np.ndarray, sigma: float) -> np.ndarray:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            run.step(broken)
        assert run.save() == before, name


@pytest.mark.parametrize(
    "name", ["heun", "heunpp2", "dpm2", "dpm2_a", "dpm++2s_a", "dpm++sde", "res_2s"]
)
def test_a_failing_second_evaluation_leaves_the_state_too(name: str) -> None:
    levels = sigmas("karras", 5)
    run = _core.Sampler(name, start(levels), levels, [0])
    before = run.save()
    with pytest.raises(sdengine.NumericError, match="step 1 of 5"):
        run.step(failing_at(2, float("nan")))
    assert run.save() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": [1.0]}, "at least two"),
        ({"sigmas": [1.0, 2.0, 0.0]}, "must fall"),
        ({"sigmas": [1.0, 1.0]}, "must fall"),
        ({"sigmas": [float("nan"), 0.0]}, "numbers"),
        ({"sigmas": [1.0, -1.0]}, "from 0 up"),
        ({"sampler": "quicksort"}, "no sampler 'quicksort'; known are .*euler"),
        ({"x": np.zeros((0, 4), np.float32)}, "parted"),
        ({"seed": [1, 2, 3]}, "3 pictures"),
        ({"denoiser": lambda x, sigma: x[:, :2]}, r"returned an array of shape \[1, 2, 8, 8\]"),
    ],
)
def test_bad_arguments(changes: dict[str, object], message: str) -> None:
    arguments = {
        "denoiser": mixture,
        "x": np.zeros((1, 4, 8, 8), np.float32),
        "sigmas": [1.0, 0.0],
        **changes,
    }
    with pytest.raises(sdengine.ParameterError, match=message):
        sample(**arguments)  # type: ignore[arg-type]


def test_damaged_state() -> None:
    levels = sigmas("karras", 5)
    run = _core.Sampler("dpm++2m", start(levels), levels, [0])
    state = run.save()
    for damaged in (b"", state[:10], state[:-1], state + b"x", b"\xff" * len(state)):
        with pytest.raises(sdengine.FormatError):
            run.restore(damaged)
    run.step(mixture)
    with pytest.raises(sdengine.ParameterError, match="finished"):
        while True:
            run.step(mixture)
