"""CFG++ samplers against plain numpy, written from Chung et al. 2024 (arXiv 2406.08070) and ComfyUI's forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from sdengine import _core
from sdengine.sampling import sample, sigmas

from .test_flow import flow_guided, levels_of
from .test_flow import start as flow_start
from .test_samplers import guided, mixture, relative, start

STEPS = [4, 10, 25]
SEED = 8
NAMES = ["euler_cfg_pp", "euler_a_cfg_pp", "dpm++2m_cfg_pp"]


def pair64(x: np.ndarray, sigma: float, flow: bool) -> tuple[np.ndarray, np.ndarray]:
    both = (flow_guided if flow else guided)(x.astype(np.float32), float(sigma))
    return both[0].astype(np.float64), both[1].astype(np.float64)


def euler_cfg_pp(x: np.ndarray, levels: np.ndarray, eta: float, flow: bool) -> np.ndarray:
    generator = torch.Generator().manual_seed(SEED)
    for s, n in itertools.pairwise(levels.astype(np.float64)):
        denoised, unguided = pair64(x, s, flow)
        if n == 0:
            return denoised
        here, there = (1 - s, 1 - n) if flow else (1.0, 1.0)
        # In y = x / alpha, which is x0 + (s / alpha) n: ancestral Euler from the level s / alpha.
        level = n / there
        part = 0.0 if here == 0 else level / (s / here)
        up = min(level, eta * level * np.sqrt(1 - part**2))
        down = np.sqrt(level**2 - up**2)
        x = there * (denoised + down * (x - here * unguided) / s)
        if eta:
            x = x + there * up * torch.randn(x.shape, generator=generator).numpy()
    return x


def dpmpp_2m_cfg_pp(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    old = None
    for i, (s, n) in enumerate(itertools.pairwise(levels.astype(np.float64))):
        denoised, unguided = pair64(x, s, flow=False)
        new = denoised + n / s * (x - unguided)
        if old is not None and n > 0:
            h, before = np.log(s / n), np.log(levels[i - 1] / s)
            new = new + (1 - n / s) * h / (2 * before) * (denoised - old)
        x, old = new, unguided
    return x


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler(eta: float, flow: bool, steps: int) -> None:
    levels = levels_of(steps) if flow else sigmas("karras", steps)
    x = flow_start() if flow else start(levels)
    expected = euler_cfg_pp(x.astype(np.float64), levels, eta, flow)
    options: dict[str, Any] = {"flow": flow, "eta": eta}
    denoiser = flow_guided if flow else guided
    found = [sample(denoiser, x, levels, name, SEED, **options) for name in NAMES[:2]]
    assert relative(found[0], expected) <= 1e-5
    assert np.array_equal(*found)


def test_default_noise() -> None:
    levels = sigmas("karras", 6)
    x = start(levels)
    for name, eta in zip(NAMES, (0.0, 1.0), strict=False):
        explicit = sample(guided, x, levels, name, SEED, eta=eta)
        assert np.array_equal(sample(guided, x, levels, name, SEED), explicit)


@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_2m(steps: int) -> None:
    levels = sigmas("karras", steps)
    x = start(levels)
    expected = dpmpp_2m_cfg_pp(x.astype(np.float64), levels)
    assert relative(sample(guided, x, levels, "dpm++2m_cfg_pp"), expected) <= 1e-5


@pytest.mark.parametrize(
    ("name", "plain"), [("euler_cfg_pp", "euler"), ("euler_a_cfg_pp", "euler_a")]
)
def test_without_guidance_it_is_the_plain_sampler(name: str, plain: str) -> None:
    levels = sigmas("karras", 10)
    x = start(levels)
    found = sample(lambda x, s: (mixture(x, s),) * 2, x, levels, name, SEED)  # type: ignore[return-value]
    assert relative(found, sample(mixture, x, levels, plain, SEED)) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_denoiser_must_give_both_estimates(name: str) -> None:
    levels = sigmas("karras", 4)
    run = _core.Sampler(name, start(levels), levels, [0])
    before = run.save()
    with pytest.raises(sdengine.ParameterError, match=r"must return a pair \(denoised, unguided\)"):
        run.step(mixture)
    with pytest.raises(sdengine.ParameterError, match="shape"):
        run.step(lambda x, s: (mixture(x, s), x[:, :2]))
    with pytest.raises(sdengine.NumericError, match="step 1 of 4"):
        run.step(lambda x, s: (mixture(x, s), np.full_like(x, np.nan)))
    assert run.save() == before
