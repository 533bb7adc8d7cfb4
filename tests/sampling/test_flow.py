"""Samplers on rectified flow, x = (1 - s) x0 + s n, against diffusers and plain float64 numpy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import sdengine
from sdengine import _core
from sdengine.sampling import SAMPLERS, sample

from .test_samplers import CENTRES, mixture, relative

STEPS = [4, 10, 25]
SEED = 33
Noise = Callable[[], np.ndarray]


def flow_mixture(x: np.ndarray, sigma: float) -> np.ndarray:
    """The exact denoiser of the mixture under x = (1 - sigma) x0 + sigma n."""
    if sigma == 1.0:
        return np.tile(CENTRES.mean(0), x.size // 4).reshape(x.shape).astype(np.float32)
    return mixture(x / (1 - sigma), sigma / (1 - sigma))


def flow_guided(x: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    guided = flow_mixture(x, sigma)
    return guided, flow_mixture(0.9 * x, sigma) * np.float32(0.8)


def double(x: np.ndarray, sigma: float) -> np.ndarray:
    # Samplers evaluate at float32 latents and levels.
    return flow_mixture(x.astype(np.float32), float(np.float32(sigma))).astype(np.float64)


def levels_of(steps: int, first: float = 1.0, last: float = 0.0, shift: float = 3.0) -> np.ndarray:
    t = np.linspace(first, last, steps + 1)
    return (shift * t / (1 + (shift - 1) * t)).astype(np.float32)


def start(seed: int = 1) -> np.ndarray:
    return sdengine.random.normal([1, 4, 8, 8], seed)


def draws(seed: int) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn([1, 4, 8, 8], generator=generator).numpy().astype(np.float64)


def renoised(s: float, n: float, eta: float) -> tuple[float, float, float]:
    """Level to go down to, factor that brings alpha back, and noise that brings the level back."""
    down = n * (1 + (n / s - 1) * eta)
    back = (1 - n) / (1 - down)
    return down, back, np.sqrt(n**2 - (down * back) ** 2)


def euler_a(x: np.ndarray, levels: np.ndarray, noise: Noise, eta: float) -> np.ndarray:
    for s, n in itertools.pairwise(levels):
        down, back, up = renoised(s, n, eta)
        x = x + (x - double(x, s)) / s * (down - s)
        if n > 0:
            x = back * x + (up * noise() if eta else 0)
    return x


def dpm2_a(x: np.ndarray, levels: np.ndarray, noise: Noise, eta: float) -> np.ndarray:
    for s, n in itertools.pairwise(levels):
        new = double(x, s)
        if n == 0:
            return new
        down, back, up = renoised(s, n, eta)
        mid = np.sqrt(s * down)
        half = x + (x - new) / s * (mid - s)
        x = x + (half - double(half, mid)) / mid * (down - s)
        x = back * x + (up * noise() if eta else 0)
    return x


def dpmpp_2s_a(x: np.ndarray, levels: np.ndarray, noise: Noise, eta: float) -> np.ndarray:
    for s, n in itertools.pairwise(levels):
        new = double(x, s)
        if n == 0:
            return new
        down, back, up = renoised(s, n, eta)
        mid = 0.9999
        if s < 1:
            mid = 1 / (1 + np.exp((np.log(1 / s - 1) + np.log(1 / down - 1)) / 2))
        other = double(mid / s * x + (1 - mid / s) * new, mid)
        x = down / s * x + (1 - down / s) * other
        x = back * x + (up * noise() if eta else 0)
    return x


def res_multistep_a(x: np.ndarray, levels: np.ndarray, noise: Noise, eta: float) -> np.ndarray:
    old = old_down = None
    for i, (s, n) in enumerate(itertools.pairwise(levels)):
        new = double(x, s)
        if n == 0:
            return new
        down, back, up = renoised(s, n, eta)
        h = np.log(s / down)
        one = np.expm1(-h) / -h
        two = (one - 1) / -h
        if old is None:
            x = down / s * x + (1 - down / s) * new
        else:
            c = np.log(old_down / levels[i - 1]) / h
            x = np.exp(-h) * x + h * ((one - two / c) * new + two / c * old)
        x = back * x + (up * noise() if eta else 0)
        old, old_down = new, down
    return x


class Ratio:
    """Solvers for x = x0 + r n apply to y = x / (1 - s) with r = s / (1 - s)."""

    def __init__(self, levels: np.ndarray) -> None:
        self.levels = np.minimum(levels.astype(np.float64), np.float64(np.float32(0.9999)))
        self.ratios = self.levels / (1 - self.levels)

    def estimate(self, y: np.ndarray, r: float) -> np.ndarray:
        return double(y / (1 + r), r / (1 + r))


def ancestral(r: float, n: float, eta: float) -> tuple[float, float]:
    up = min(n, eta * np.sqrt(n**2 * (r**2 - n**2) / r**2))
    return np.sqrt(n**2 - up**2), up


def dpmpp_sde(x: np.ndarray, levels: np.ndarray, noise: Noise, eta: float) -> np.ndarray:
    space = Ratio(levels)
    y = x / (1 - space.levels[0])
    for r, n in itertools.pairwise(space.ratios):
        new = space.estimate(y, r)
        if n == 0:
            return new
        mid = np.sqrt(r * n)
        down, up = ancestral(r, mid, eta)
        half = down / r * y + (1 - down / r) * new + (up * noise() if eta else 0)
        other = space.estimate(half, mid)
        down, up = ancestral(r, n, eta)
        y = down / r * y + (1 - down / r) * other + (up * noise() if eta else 0)
    return y


def multistep_sde(kind: str) -> Callable[..., np.ndarray]:
    def run(x: np.ndarray, levels: np.ndarray, noise: Noise, eta: float) -> np.ndarray:
        space = Ratio(levels)
        y, past, steps = x / (1 - space.levels[0]), [], []
        for r, n in itertools.pairwise(space.ratios):
            new = space.estimate(y, r)
            if n == 0:
                return new
            h = np.log(r / n)
            z = h * (1 + eta)
            y = n / r * np.exp(-eta * h) * y + (1 - np.exp(-z)) * new
            if past:
                change = (new - past[0]) * h / steps[0]
                second = 1 - (1 - np.exp(-z)) / z
                if kind == "midpoint":
                    y = y + (1 - np.exp(-z)) / 2 * change
                elif kind == "heun" or len(past) == 1:
                    y = y + second * change
                else:
                    q, p = steps[0] / h, steps[1] / h
                    bend = (change - (past[0] - past[1]) / p) / (q + p)
                    y = y + second * (change + bend * q) - (second / z - 0.5) * bend
            if eta:
                y = y + n * np.sqrt(1 - np.exp(-2 * eta * h)) * noise()
            past, steps = [new, *past], [h, *steps]
        return y

    return run


def er_sde(x: np.ndarray, levels: np.ndarray, noise: Noise, eta: float) -> np.ndarray:
    space = Ratio(levels)
    y, old, old_change = x / (1 - space.levels[0]), None, None
    for i, (r, n) in enumerate(itertools.pairwise(space.ratios)):
        new = space.estimate(y, r)
        if n == 0:
            return new
        f = [z * (np.exp(z**0.3) + 10) for z in (n, r)]
        points = n + np.arange(200) * (r - n) / 200
        inverse = 1 / (points * (np.exp(points**0.3) + 10))
        y = f[0] / f[1] * y + (1 - f[0] / f[1]) * new
        change = None if old is None else (new - old) / (r - space.ratios[i - 1])
        if change is not None:
            y = y + (n - r + inverse.sum() * (r - n) / 200 * f[0]) * change
        if old_change is not None:
            bend = (change - old_change) / ((r - space.ratios[i - 2]) / 2)
            weight = (inverse * (points - r)).sum() * (r - n) / 200
            y = y + ((n - r) ** 2 / 2 + weight * f[0]) * bend
        if eta:
            y = y + eta * np.sqrt(n**2 - r**2 * (f[0] / f[1]) ** 2) * noise()
        old, old_change = new, change
    return y


def ddim(x: np.ndarray, levels: np.ndarray, noise: Noise, eta: float) -> np.ndarray:
    """Song et al. 2020, equation 12, with alpha = 1 - s and sigma = s."""
    for s, n in itertools.pairwise(levels):
        new = double(x, s)
        left = (x - (1 - s) * new) / s
        fresh = eta * n * np.sqrt(1 - (n * (1 - s) / (s * (1 - n))) ** 2)
        x = (1 - n) * new + np.sqrt(n**2 - fresh**2) * left
        if fresh > 0:
            x = x + fresh * noise()
    return x


NUMPY = {
    "euler_a": euler_a,
    "dpm2_a": dpm2_a,
    "dpm++2s_a": dpmpp_2s_a,
    "dpm++sde": dpmpp_sde,
    "dpm++2m_sde": multistep_sde("midpoint"),
    "dpm++2m_sde_heun": multistep_sde("heun"),
    "dpm++3m_sde": multistep_sde("third"),
    "er_sde": er_sde,
    "res_multistep_a": res_multistep_a,
    "ddim": ddim,
    "ddpm": ddim,
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("first", [1.0, 0.7])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", sorted(NUMPY))
def test_noise_is_that_of_a_flow(name: str, eta: float, first: float, steps: int) -> None:
    levels = levels_of(steps, first)
    expected = NUMPY[name](start().astype(np.float64), levels.astype(np.float64), draws(SEED), eta)
    options: dict[str, Any] = {"flow": True, "eta": eta, "brownian": False}
    found = sample(flow_mixture, start(), levels, name, SEED, **options)
    assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
def test_the_path_of_a_flow_leads_from_its_first_level(steps: int) -> None:
    levels = levels_of(steps)
    path = _core.BrownianNoise([SEED], float(levels[-2]), 1.0, start().size)
    pairs = itertools.pairwise([0.9999, *levels[1:].tolist()])
    expected = multistep_sde("midpoint")(
        start().astype(np.float64),
        levels.astype(np.float64),
        lambda: path.normal(*next(pairs), start().shape).astype(np.float64),
        1.0,
    )
    found = sample(flow_mixture, start(), levels, "dpm++2m_sde", SEED, flow=True)
    assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize("name", sorted(NUMPY))
def test_steps_of_ancestral_samplers_keep_the_law(name: str) -> None:
    """Noise of a point: whatever the sampler, x at level n is (1 - n) x0 + n times unit noise."""
    centre, levels = np.float32(0.7), np.array([0.95, 0.6, 0.4], np.float32)
    noise = sdengine.random.normal([1, 1, 200, 200], 4)
    x = 0.05 * centre + np.float32(0.95) * noise
    found = sample(lambda x, _: np.full_like(x, centre), x, levels, name, SEED, flow=True)
    assert abs(float(found.mean()) - 0.6 * centre) < 0.01
    assert abs(float(found.std()) - 0.4) < 0.01


def run_flow_scheduler(scheduler: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    state = torch.tensor(x)
    for t in scheduler.timesteps:
        sigma = float(scheduler.sigmas[scheduler.step_index or 0])
        velocity = (state.numpy() - flow_mixture(state.numpy(), sigma)) / np.float32(sigma)
        state = scheduler.step(torch.tensor(velocity), t, state, **options).prev_sample
    return state.numpy()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("euler", "FlowMatchEulerDiscreteScheduler"),
        ("heun", "FlowMatchHeunDiscreteScheduler"),
        ("lcm", "FlowMatchLCMScheduler"),
    ],
)
def test_equals_diffusers(name: str, scheduler: str, steps: int) -> None:
    reference = getattr(diffusers, scheduler)(shift=3.0)
    reference.set_timesteps(steps)
    levels = np.unique(reference.sigmas.numpy())[::-1].copy()
    options = {} if name == "heun" else {"generator": torch.Generator().manual_seed(SEED)}
    expected = run_flow_scheduler(reference, start(), **options)
    assert relative(sample(flow_mixture, start(), levels, name, SEED, flow=True), expected) <= 1e-5


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["bh1", "bh2"])
def test_unipc_equals_diffusers(solver: str, order: int, steps: int) -> None:
    reference = diffusers.UniPCMultistepScheduler(
        solver_type=solver,
        solver_order=order,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
    )
    reference.set_timesteps(steps)
    reference.sigmas[0], reference.sigmas[-1] = 0.99, 0.01
    levels = reference.sigmas.numpy()
    expected = run_flow_scheduler(reference, start())
    found = sample(flow_mixture, start(), levels, f"unipc_{solver}", flow=True, order=order)
    assert relative(found, expected) <= 1e-5


FLOWING = [name for name in SAMPLERS if name not in ("tcd", "dpm++2m_cfg_pp")]
# x0 is Gaussian with deviation 1: x(s) = x(1) sqrt((1 - s)^2 + s^2).
DETERMINISTIC = [n for n in FLOWING if n not in ("lcm", "er_sde", "euler_a_cfg_pp", "ddpm")]


@pytest.mark.parametrize("name", sorted({*DETERMINISTIC} - {"dpm++2mv2"}))
def test_without_noise_every_sampler_goes_to_the_exact_answer(name: str) -> None:
    def gaussian(x: np.ndarray, s: float) -> tuple[np.ndarray, np.ndarray]:
        estimate = (x * (1 - s) / ((1 - s) ** 2 + s**2)).astype(np.float32)
        return estimate, estimate

    levels = np.linspace(1, 0.05, 201).astype(np.float32)
    exact = start() * np.sqrt(0.95**2 + 0.05**2)
    found = sample(gaussian, start(), levels, name, flow=True, eta=0.0)
    assert relative(found, exact) <= (2e-2 if "euler" in name or "dd" in name else 2e-3)


@pytest.mark.parametrize("name", FLOWING)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_from_pure_noise_are_finite(name: str, steps: int) -> None:
    found = sample(flow_guided, start(), levels_of(steps), name, flow=True)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", FLOWING)
def test_save_and_restore_are_bit_identical(name: str) -> None:
    def fresh() -> _core.Sampler:
        return _core.Sampler(name, start(), levels_of(7), [3], flow=True)

    straight, interrupted = fresh(), fresh()
    while not straight.done:
        straight.step(flow_guided)
        interrupted.step(flow_guided)
        state = interrupted.save()
        interrupted = fresh()
        interrupted.restore(state)
    assert np.array_equal(interrupted.x, straight.x)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tcd", {}, "no tcd for rectified flow: .*use lcm"),
        ("dpm++2m_cfg_pp", {}, "no .* for rectified flow: .*use euler_cfg_pp"),
        ("euler", {"s_churn": 1.0}, "not defined for rectified flow; use euler_a"),
        ("euler", {"sigmas": [14.6, 0.0]}, "from 0 to 1; the first one is 14.6"),
    ],
)
def test_what_there_is_not(name: str, options: dict[str, Any], message: str) -> None:
    arguments = {"sigmas": levels_of(4), **options}
    with pytest.raises(sdengine.ParameterError, match=message):
        sample(flow_guided, start(), sampler=name, flow=True, **arguments)
