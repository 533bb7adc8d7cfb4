"""What a sampler can be told besides its name: churn, noise scale, order; and what it refuses."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from sdengine import _core
from sdengine.sampling import SAMPLERS, sample, sigmas

from .test_more_samplers import denoised64, ipndm_v_weights
from .test_samplers import K_SAMPLERS, guided, mixture, relative, start, torch_mixture

SEED = 55


def patch_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(SEED)
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.randn(x.shape, generator=generator))


@pytest.mark.parametrize("steps", [4, 10, 25])
@pytest.mark.parametrize(
    "churn",
    [
        {"s_churn": 1.5},
        {"s_churn": 100.0},
        {"s_churn": 5.0, "s_tmin": 0.3, "s_tmax": 8.0, "s_noise": 1.007},
    ],
)
@pytest.mark.parametrize("name", ["euler", "heun", "dpm2"])
def test_churn_equals_k_diffusion(
    k_diffusion: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    churn: dict[str, float],
    steps: int,
) -> None:
    levels = sigmas("karras", steps)
    x = start(levels)
    patch_noise(monkeypatch)
    function = getattr(k_diffusion, K_SAMPLERS[name])
    expected = function(torch_mixture, torch.tensor(x), torch.tensor(levels), disable=True, **churn)
    assert relative(sample(mixture, x, levels, name, SEED, **churn), expected.numpy()) <= 1e-5


def test_churn_pauses_and_survives_a_failing_denoiser() -> None:
    levels = sigmas("karras", 6)

    def fresh() -> _core.Sampler:
        return _core.Sampler("heun", start(levels), levels, [3], s_churn=4.0)

    straight, interrupted = fresh(), fresh()
    while not straight.done:
        straight.step(mixture)
        state = interrupted.save()
        interrupted = fresh()
        interrupted.restore(state)
        with pytest.raises(ZeroDivisionError):
            interrupted.step(lambda x, _: x / (1 // 0))
        assert interrupted.save() == state
        interrupted.step(mixture)
    assert np.array_equal(interrupted.x, straight.x)


@pytest.mark.parametrize("name", ["euler_a", "dpm2_a", "dpm++2s_a", "dpm++sde", "dpm++3m_sde"])
def test_eta_and_noise_scale_equal_k_diffusion(k_diffusion: ModuleType, name: str) -> None:
    levels = sigmas("karras", 10)
    x = start(levels)
    generator = torch.Generator().manual_seed(SEED)
    expected = getattr(k_diffusion, K_SAMPLERS[name])(
        torch_mixture,
        torch.tensor(x),
        torch.tensor(levels),
        disable=True,
        eta=0.7,
        s_noise=1.02,
        noise_sampler=lambda *_: torch.randn(x.shape, generator=generator),
    ).numpy()
    found = sample(mixture, x, levels, name, SEED, eta=0.7, s_noise=1.02, brownian=False)
    assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_orders_equal_k_diffusion(k_diffusion: ModuleType, order: int) -> None:
    levels = sigmas("karras", 10)
    x = start(levels)
    expected = k_diffusion.sample_lms(
        torch_mixture, torch.tensor(x), torch.tensor(levels), disable=True, order=order
    ).numpy()
    assert relative(sample(mixture, x, levels, "lms", order=order), expected) <= 1e-5


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["ipndm", "ipndm_v"])
def test_ipndm_orders(name: str, order: int) -> None:
    levels = sigmas("karras", 10)
    table = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12]}
    table[4] = [55 / 24, -59 / 24, 37 / 24, -9 / 24]
    first = start(levels)
    x, slopes, past = first.astype(np.float64), [], []
    for s, n in itertools.pairwise(levels.astype(np.float64)):
        new = denoised64(x, s)
        slopes = [(x - new) / s, *slopes][:order]
        weights = table[len(slopes)]
        if name == "ipndm_v":
            weights = ipndm_v_weights(n - s, *past[: len(slopes) - 1])
        mean = sum(w * d for w, d in zip(weights, slopes, strict=True))
        x = new if n == 0 else x + (n - s) * mean
        past = [n - s, *past]
    assert relative(sample(mixture, first, levels, name, order=order), x) <= 1e-5


DEFAULT_ORDERS = {"ipndm": 4, "ipndm_v": 4, "lms": 4, "deis": 2, "unipc_bh1": 2, "unipc_bh2": 2}


@pytest.mark.parametrize("name", SAMPLERS)
def test_orders_that_there_are(name: str) -> None:
    levels = sigmas("karras", 8)
    x = start(levels)
    highest = {"deis": 3, "unipc_bh1": 3, "unipc_bh2": 3}.get(name, 4)
    if name not in DEFAULT_ORDERS:
        with pytest.raises(sdengine.ParameterError, match="has no order to choose"):
            sample(guided, x, levels, name, order=2)
        return
    explicit = sample(mixture, x, levels, name, order=DEFAULT_ORDERS[name])
    assert np.array_equal(sample(mixture, x, levels, name), explicit)
    for order in (0, -1, highest + 1):
        with pytest.raises(sdengine.ParameterError, match=f"is 1 to {highest}, not {order}"):
            sample(mixture, x, levels, name, order=order)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sampler": "dpm++2m", "s_churn": 1.0},
            r"dpm\+\+2m has no s_churn; euler, heun, heunpp2 and dpm2",
        ),
        ({"s_churn": -1.0}, "s_churn must be a number from 0 up"),
        ({"s_churn": float("nan")}, "s_churn"),
        ({"s_churn": 1.0, "s_tmin": 2.0, "s_tmax": 1.0}, "s_tmin at most s_tmax"),
        ({"s_tmin": float("nan")}, "s_tmin"),
        ({"eta": -1.0}, "eta must be 0 to 10"),
        ({"eta": float("nan")}, "eta must be 0 to 10"),
        ({"s_noise": float("inf")}, "s_noise a number"),
        ({"sampler": "lms", "order": 2.5}, "order must be a whole number, not 2.5"),
        ({"sampler": "lms", "order": True}, "order must be a whole number, not True"),
        ({"noise": "dice"}, "torch-cuda, not 'dice'"),
        ({"seed": -1}, "seeds must be whole numbers"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    levels = sigmas("karras", 4)
    with pytest.raises(sdengine.ParameterError, match=message):
        sample(mixture, start(levels), levels, **options)
