"""Scheduler settings as noise levels, schedule and prediction, against the classes that the settings come from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from sdengine.families import SD1, Family, Flow
from sdengine.loading.scheduler import SchedulerSettings, from_diffusers
from sdengine.noise_levels import make_prediction, make_schedule, noise_levels
from sdengine.sampling import dynamic_mu

FAMILY = replace(SD1, title="A flow model", prediction="flow", flow=Flow())
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLUX = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
QWEN = {**FLUX, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}


def settings_of(scheduler: Any, family: Family = SD1) -> SchedulerSettings:
    """What a saved config of it amounts to."""
    return from_diffusers({**scheduler.config, "_class_name": type(scheduler).__name__}, family)


def of_flow(config: dict[str, Any]) -> tuple[FlowMatchEulerDiscreteScheduler, SchedulerSettings]:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    return scheduler, settings_of(scheduler, FAMILY)


@pytest.mark.parametrize("steps", [2, 4, 20, 50])
@pytest.mark.parametrize(
    "config",
    [
        FLUX,
        QWEN,
        {**FLUX, "time_shift_type": "linear"},
        {"shift": 6.0},
        {"shift": 3.0, "use_karras_sigmas": True},
        {**QWEN, "use_exponential_sigmas": True},
        {"shift": 3.0, "use_beta_sigmas": True},
    ],
)
@pytest.mark.parametrize("tokens", [256, 1024, 4096, 6889])
def test_flow_models_equal_their_pipelines(config: dict[str, Any], tokens: int, steps: int) -> None:
    scheduler, settings = of_flow(config)
    ends = (scheduler.config.base_image_seq_len, scheduler.config.max_image_seq_len)
    mu = dynamic_mu(tokens, scheduler.config.base_shift, scheduler.config.max_shift, *ends)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    levels = noise_levels(settings, tokens)
    found = make_schedule(settings, settings.schedule or "trailing", steps, levels)
    # The reference stretches 1 - sigma to a terminal sigma in float32: up to eight roundings of
    # numbers near 1.
    assert np.abs(found.sigmas - scheduler.sigmas.numpy()).max() <= 8 * 2.0**-24
    assert np.abs(found.timesteps - scheduler.timesteps.numpy()).max() <= 1000 * 8 * 2.0**-24


def test_the_shift_of_flux_and_qwen_image() -> None:
    flux = noise_levels(of_flow(FLUX)[1], 4096)
    assert flux.sigma_min == pytest.approx(3.158193 * 0.001 / (1 + 2.158193 * 0.001), rel=1e-6)
    qwen = noise_levels(of_flow(QWEN)[1], 4096)
    shift = math.exp(0.693548387)
    assert qwen.sigma_min == pytest.approx(shift * 0.001 / (1 + (shift - 1) * 0.001), rel=1e-6)


def test_what_the_network_is_told() -> None:
    settings = SchedulerSettings.of_family(replace(FAMILY, flow=Flow(multiplier=1.0)))
    assert noise_levels(settings, 256).timestep(0.5) == 0.5


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_models_over_betas_equal_their_scheduler(spacing: str, karras: bool) -> None:
    scheduler = EulerDiscreteScheduler(
        **BETAS, timestep_spacing=spacing, steps_offset=1, use_karras_sigmas=karras
    )
    settings = settings_of(scheduler)
    scheduler.set_timesteps(12)
    levels = noise_levels(settings, 4096)
    assert settings.schedule is not None
    found = make_schedule(settings, settings.schedule, 12, levels)
    expected = scheduler.sigmas.numpy()
    assert (np.abs(found.sigmas - expected) <= 1e-6 * expected).all()


def test_zero_terminal_snr() -> None:
    scheduler = DPMSolverMultistepScheduler(**BETAS, rescale_betas_zero_snr=True)
    settings = settings_of(scheduler)
    assert noise_levels(settings, 1).sigma_max == pytest.approx(4096, rel=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_models_equal_their_scheduler(kind: str) -> None:
    config = {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.4, "rho": 5.0}
    scheduler = EDMEulerScheduler(**config, prediction_type=kind)
    settings = settings_of(scheduler)
    scheduler.set_timesteps(9)
    levels = noise_levels(settings, 1)
    found = make_schedule(settings, "karras", 9, levels)
    expected = scheduler.sigmas.numpy()
    assert (np.abs(found.sigmas - expected) <= 1e-6 * expected).all()
    assert np.abs(found.timesteps - scheduler.timesteps.numpy()).max() <= 1e-6
    x, output = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(1))
    denoised = make_prediction(settings).denoise(x.numpy(), output.numpy(), 2.0)
    reference = scheduler.precondition_outputs(x, output, torch.tensor(2.0)).numpy()
    assert np.abs(denoised - reference).max() <= 1e-6


def test_a_caller_s_exponent_comes_first() -> None:
    settings = from_diffusers({"_class_name": "EDMEulerScheduler", "rho": 5.0}, SD1)
    levels = noise_levels(settings, 1)
    own = make_schedule(settings, "karras", 5, levels).sigmas
    assert not np.allclose(own, make_schedule(settings, "karras", 5, levels, rho=7.0).sigmas)
    # Of the publisher's schedule, and of no other.
    plain = make_schedule(replace(settings, rho=None), "polyexponential", 5, levels).sigmas
    assert np.array_equal(make_schedule(settings, "polyexponential", 5, levels).sigmas, plain)


def test_usual_ranges() -> None:
    for prediction, high in (("edm", 80.0), ("edm_v_prediction", 120.0)):
        settings = SchedulerSettings.of_family(replace(SD1, prediction=prediction))
        assert noise_levels(settings, 1).sigma_max == pytest.approx(high, rel=1e-6)
