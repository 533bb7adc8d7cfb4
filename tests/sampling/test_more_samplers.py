"""Samplers that k-diffusion lacks: against diffusers' schedulers, and against plain numpy from their papers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sdengine import _core
from sdengine.sampling import sample, sigmas

from .test_samplers import mixture, relative, start

STEPS = [4, 10, 25]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SEED = 21


def denoised64(x: np.ndarray, sigma: float) -> np.ndarray:
    return mixture(x.astype(np.float32), sigma).astype(np.float64)


def noise_like(x: np.ndarray, generator: torch.Generator) -> np.ndarray:
    return torch.randn(x.shape, generator=generator).numpy()


def run_scheduler(scheduler: Any, levels: np.ndarray, x: np.ndarray, **options: Any) -> np.ndarray:
    """A diffusers scheduler in its own variance preserving space, from and to x0 + sigma * noise."""
    state = torch.tensor(x) / np.sqrt(1 + levels[0] ** 2)
    for t, sigma in zip(scheduler.timesteps, levels[:-1], strict=True):
        at = float(np.sqrt(1 + sigma**2))
        estimate = torch.tensor(mixture((state * at).numpy(), float(sigma)))
        state = scheduler.step(estimate, t, state, **options).prev_sample
    return state.numpy() * np.sqrt(1 + levels[-1] ** 2)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [None, 1, 2, 3])
@pytest.mark.parametrize(("solver", "last"), [("bh1", 0.01), ("bh2", 0.01), ("bh2", 0)])
def test_unipc_equals_diffusers(solver: str, last: float, order: int | None, steps: int) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        **BETAS,
        **({} if order is None else {"solver_order": order}),
        solver_type=solver,
        prediction_type="sample",
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas[-1] = last  # bh1 divides by 0 at level 0 there
    levels = scheduler.sigmas.numpy()
    x = start(levels)
    expected = run_scheduler(scheduler, levels, x)
    found = sample(mixture, x, levels, f"unipc_{solver}", order=order)
    assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [None, 1, 2, 3])
def test_deis_equals_diffusers(order: int | None, steps: int) -> None:
    scheduler = diffusers.DEISMultistepScheduler(
        **BETAS,
        **({} if order is None else {"solver_order": order}),
        prediction_type="sample",
        use_karras_sigmas=True,
        lower_order_final=False,
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas[-1] = 0.01  # it takes the logarithm of the last level
    levels = scheduler.sigmas.numpy()
    x = start(levels)
    expected = run_scheduler(scheduler, levels, x)
    assert relative(sample(mixture, x, levels, "deis", order=order), expected) <= 1e-5


def trained_levels(scheduler: Any, last: float) -> np.ndarray:
    kept = scheduler.alphas_cumprod[scheduler.timesteps].numpy()
    return np.append(np.sqrt((1 - kept) / kept), last).astype(np.float32)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_equals_diffusers(eta: float, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(
        **BETAS, prediction_type="sample", timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(steps)
    levels = trained_levels(scheduler, 0)
    x = start(levels)
    generator = torch.Generator().manual_seed(SEED)
    expected = run_scheduler(scheduler, levels, x, eta=eta, generator=generator)
    assert relative(sample(mixture, x, levels, "ddim", SEED, eta=eta), expected) <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
def test_ddpm_equals_diffusers(steps: int) -> None:
    scheduler = diffusers.DDPMScheduler(
        **BETAS, prediction_type="sample", timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(steps)
    levels = trained_levels(scheduler, 0)
    x = start(levels)
    expected = run_scheduler(scheduler, levels, x, generator=torch.Generator().manual_seed(SEED))
    assert relative(sample(mixture, x, levels, "ddpm", SEED), expected) <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_equals_diffusers(eta: float, steps: int) -> None:
    scheduler = diffusers.TCDScheduler(**BETAS, prediction_type="sample")
    scheduler.set_timesteps(steps)
    # Its last step goes to the first training timestep, not to 0.
    kept = float(scheduler.alphas_cumprod[0])
    levels = trained_levels(scheduler, np.sqrt((1 - kept) / kept))
    x = start(levels)
    generator = torch.Generator().manual_seed(SEED)
    expected = run_scheduler(scheduler, levels, x, eta=eta, generator=generator)
    assert relative(sample(mixture, x, levels, "tcd", SEED, eta=eta), expected) <= 1e-5


def test_tcd_steps_over_the_model_s_own_timesteps() -> None:
    scheduler = diffusers.TCDScheduler(**{**BETAS, "beta_end": 0.014}, prediction_type="sample")
    scheduler.set_timesteps(4)
    kept = float(scheduler.alphas_cumprod[0])
    levels = trained_levels(scheduler, np.sqrt((1 - kept) / kept))
    x = start(levels)
    generator = torch.Generator().manual_seed(SEED)
    expected = run_scheduler(scheduler, levels, x, eta=0.3, generator=generator)
    model = _core.NoiseLevels("scaled_linear", 0.00085, 0.014, 1000)
    run = _core.Sampler("tcd", x, levels, [SEED], levels=model)
    while not run.done:
        run.step(mixture)
    assert relative(run.x, expected) <= 1e-5
    assert relative(sample(mixture, x, levels, "tcd", SEED), expected) > 1e-3


def dpmpp_2m_v2(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """As stable-diffusion.cpp defines it."""
    t, old = -np.log(np.append(levels[:-1], 1e-300)), None
    for i in range(len(levels) - 1):
        h = t[i + 1] - t[i]
        new = denoised64(x, levels[i])
        if levels[i + 1] == 0:
            x = new
        elif old is None:
            x = levels[i + 1] / levels[i] * x - np.expm1(-h) * new
        else:
            past = t[i] - t[i - 1]
            r = max(h, past) / min(h, past)
            mixed = (1 + 1 / (2 * r)) * new - old / (2 * r)
            x = levels[i + 1] / levels[i] * x - np.expm1(-(h + past) / 2) * mixed
        old = new
    return x


def ipndm_v(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Zhou et al. 2024 (diff-sampler), with its coefficients as published there."""
    slopes: list[np.ndarray] = []
    for i in range(len(levels) - 1):
        new = denoised64(x, levels[i])
        slopes = [(x - new) / levels[i], *slopes][:4]
        if levels[i + 1] == 0:
            return new
        h = levels[i + 1] - levels[i]
        steps = [levels[i - k] - levels[i - k - 1] for k in range(min(i, 3))]
        weights = ipndm_v_weights(h, *steps)
        x = x + h * sum(w * d for w, d in zip(weights, slopes, strict=True))
    return x


def ipndm_v_weights(h: float, *past: float) -> list[float]:
    if not past:
        return [1]
    first = [1 + h / past[0] / 2, -h / past[0] / 2]
    if len(past) == 1:
        return first
    a, b = past[:2]
    third = (1 - h / (3 * (h + a)) * (h * (h + a)) / (a * (a + b))) / 2
    second = [first[0] + third, first[1] - (1 + a / b) * third, third * a / b]
    if len(past) == 2:
        return second
    c = past[2]
    fourth = (1 - h / (3 * (h + a))) / 2 + (1 - h / (2 * (h + a))) * h / (6 * (h + a + b))
    fourth *= h * (h + a) * (h + a + b) / (a * (a + b) * (a + b + c))
    ratio = a * (a + b) / (b * (b + c))
    return [
        second[0] + fourth,
        second[1] - (1 + a / b + ratio) * fourth,
        second[2] + (a / b + ratio * (1 + b / c)) * fourth,
        -fourth * ratio * a / b,
    ]


def gradient_estimation(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Permenter and Yuan 2024, with gamma = 2."""
    slope = None
    for sigma, following in itertools.pairwise(levels):
        new = denoised64(x, sigma)
        last, slope = slope, (x - new) / sigma
        used = slope if last is None else 2 * slope - last
        x = new if following == 0 else x + (following - sigma) * used
    return x


def heunpp2(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """ComfyUI's form: weights of the two later slopes are their levels' shares."""
    for i in range(len(levels) - 1):
        s, rest = levels[i], levels[i + 1 : -1][:2]
        slopes, ahead, at = [(x - denoised64(x, s)) / s], x, s
        for level in rest:
            ahead, at = ahead + slopes[-1] * (level - at), level
            slopes.append((ahead - denoised64(ahead, level)) / level)
        shares = rest / levels[0] / (len(rest) + 1)
        mean = (1 - shares.sum()) * slopes[0]
        mean = mean + sum(w * d for w, d in zip(shares, slopes[1:], strict=True))
        x = x + mean * (levels[i + 1] - s)
    return x


def phi(order: int, z: float) -> float:
    return np.expm1(z) / z if order == 1 else (phi(1, z) - 1) / z


def res_multistep(
    x: np.ndarray, levels: np.ndarray, eta: float = 0.0, seed: int = SEED
) -> np.ndarray:
    """Zhang et al. 2023, second order with the last step's estimate as the other stage; ancestral as in ComfyUI."""
    generator, old, old_down = torch.Generator().manual_seed(seed), None, None
    for i, (s, n) in enumerate(itertools.pairwise(levels)):
        new = denoised64(x, s)
        if n == 0:
            return new
        up = min(n, eta * np.sqrt(n**2 * (1 - (n / s) ** 2)))
        down = np.sqrt(n**2 - up**2)
        h = np.log(s / down)
        if old is None:
            x = np.exp(-h) * x + h * phi(1, -h) * new
        else:
            other = phi(2, -h) / (-np.log(levels[i - 1] / old_down) / h)
            x = np.exp(-h) * x + h * ((phi(1, -h) - other) * new + other * old)
        if eta > 0:
            x = x + up * noise_like(x, generator)
        old, old_down = new, down
    return x


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_res_multistep(eta: float, steps: int) -> None:
    levels = sigmas("karras", steps)
    x = start(levels)
    expected = res_multistep(x.astype(np.float64), levels.astype(np.float64), eta)
    assert relative(sample(mixture, x, levels, "res_multistep", SEED, eta=eta), expected) <= 1e-5
    if eta == 1.0:
        assert relative(sample(mixture, x, levels, "res_multistep_a", SEED), expected) <= 1e-5


def res_2s(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Zhang et al. 2023, single step of second order, c_2 = 1/2."""
    for sigma, following in itertools.pairwise(levels):
        new = denoised64(x, sigma)
        if following == 0:
            return new
        h = np.log(sigma / following)
        half = np.exp(-h / 2) * x + h / 2 * phi(1, -h / 2) * new
        # The evaluation is at the float32 level that the sampler names.
        other = denoised64(half, float(np.float32(np.sqrt(sigma * following))))
        weight = phi(2, -h) / 0.5
        x = np.exp(-h) * x + h * ((phi(1, -h) - weight) * new + weight * other)
    return x


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("schedule", ["karras", "discrete"])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("dpm++2mv2", dpmpp_2m_v2),
        ("ipndm_v", ipndm_v),
        ("euler_ge", gradient_estimation),
        ("heunpp2", heunpp2),
        ("res_multistep", res_multistep),
        ("res_2s", res_2s),
    ],
)
def test_equals_its_paper(
    name: str, reference: Callable[..., np.ndarray], schedule: str, steps: int
) -> None:
    levels = sigmas(schedule, steps)
    x = start(levels)
    expected = reference(x.astype(np.float64), levels.astype(np.float64))
    assert relative(sample(mixture, x, levels, name), expected) <= 1e-5


def er_sde(x: np.ndarray, levels: np.ndarray, seed: int) -> np.ndarray:
    """Cui et al. 2023, third order in the variance exploding form, 200 points for the integrals."""
    generator = torch.Generator().manual_seed(seed)
    old = old_change = None
    for i, (s, n) in enumerate(itertools.pairwise(levels)):
        new = denoised64(x, s)
        if n == 0:
            return new
        f = [z * (np.exp(z**0.3) + 10) for z in (n, s)]
        points = n + np.arange(200) * (s - n) / 200
        inverse = 1 / (points * (np.exp(points**0.3) + 10))
        x = f[0] / f[1] * x + (1 - f[0] / f[1]) * new
        change = None if old is None else (new - old) / (s - levels[i - 1])
        if change is not None:
            x = x + (n - s + inverse.sum() * (s - n) / 200 * f[0]) * change
        if old_change is not None:
            bend = (change - old_change) / ((s - levels[i - 2]) / 2)
            weight = (inverse * (points - s)).sum() * (s - n) / 200
            x = x + ((n - s) ** 2 / 2 + weight * f[0]) * bend
        x = x + np.sqrt(n**2 - s**2 * (f[0] / f[1]) ** 2) * noise_like(x, generator)
        old, old_change = new, change
    return x


@pytest.mark.parametrize("steps", STEPS)
def test_er_sde_equals_its_paper(steps: int) -> None:
    levels = sigmas("karras", steps)
    x = start(levels)
    expected = er_sde(x.astype(np.float64), levels.astype(np.float64), SEED)
    assert relative(sample(mixture, x, levels, "er_sde", SEED), expected) <= 1e-5


@pytest.mark.parametrize("name", ["dpm++2m_sde", "dpm++3m_sde", "res_multistep", "er_sde", "ddim"])
def test_eta_0_draws_no_noise(name: str) -> None:
    levels = sigmas("karras", 6)
    x = start(levels)
    runs = [sample(mixture, x, levels, name, seed, eta=0.0) for seed in (1, 2)]
    assert np.array_equal(*runs)
