"""Schedules of flow and EDM models against diffusers and closed forms of ComfyUI's definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

import sdengine
from sdengine import _core
from sdengine.sampling import dynamic_mu, sigmas
from tests.sampling.test_schedules import TABLE, close, linear_quadratic

STEPS = [1, 2, 3, 4, 7, 10, 20, 25, 50]
CONVERTED = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta_sigmas": "use_beta_sigmas",
}


def explicit(steps: int) -> np.ndarray:
    """What the pipelines of FLUX and Qwen-Image pass."""
    return np.linspace(1.0, 1 / steps, steps)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("steps", STEPS)
def test_constant_shift_equals_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    levels = _core.NoiseLevels.flow(shift)
    assert levels.sigma_min == pytest.approx(scheduler.sigma_min, rel=1e-6)

    scheduler.set_timesteps(sigmas=explicit(steps))
    found = _core.Schedule("trailing", steps, levels)
    close(found.sigmas, scheduler.sigmas.numpy())
    close(found.timesteps, scheduler.timesteps.numpy())
    assert found.initial_scale == 1
    close(sigmas("trailing", steps, prediction="flow", shift=shift), scheduler.sigmas.numpy())

    # Left to itself it shifts a range whose end is shifted already.
    scheduler.set_timesteps(steps)
    found = _core.Schedule("discrete", steps, levels)
    close(found.sigmas, scheduler.sigmas.numpy())
    close(found.timesteps, scheduler.timesteps.numpy())


# The reference stretches 1 - sigma in float32 (wholly so with numpy 2), which costs small sigmas their
# last digits: up to eight roundings of numbers near 1. The closed form is met to 1e-6, below.
STRETCHED = 8 * 2.0**-24


@pytest.mark.parametrize("form", ["exponential", "linear"])
@pytest.mark.parametrize("mu", [0.5, 0.63, 0.693548, 1.15])
@pytest.mark.parametrize("steps", STEPS)
def test_dynamic_shift_equals_diffusers(steps: int, mu: float, form: str) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=form)
    shift = {"mu": mu} if form == "exponential" else {"shift": mu}
    scheduler.set_timesteps(sigmas=explicit(steps), mu=mu)
    close(sigmas("trailing", steps, prediction="flow", **shift), scheduler.sigmas.numpy())
    scheduler.set_timesteps(steps, mu=mu)
    close(sigmas("linspace", steps, prediction="flow", **shift), scheduler.sigmas.numpy())


@pytest.mark.parametrize("terminal", [0.02, 0.1])
@pytest.mark.parametrize("steps", STEPS[1:])
def test_terminal_shift_equals_diffusers(steps: int, terminal: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=terminal)
    scheduler.set_timesteps(sigmas=explicit(steps), mu=0.8)
    found = _core.Schedule(
        "trailing", steps, _core.NoiseLevels.flow(math.exp(0.8)), terminal=terminal
    )
    assert np.abs(found.sigmas - scheduler.sigmas.numpy()).max() <= STRETCHED
    assert np.abs(found.timesteps - scheduler.timesteps.numpy()).max() <= 1000 * STRETCHED
    plain = shifted(explicit(steps), math.exp(0.8))
    close(found.sigmas[:-1], 1 - (1 - plain) * (1 - terminal) / (1 - plain[-1]))
    assert found.sigmas[-2] == pytest.approx(terminal, rel=1e-6)


def test_a_single_step_has_nothing_to_stretch() -> None:
    # diffusers divides by zero here.
    assert sigmas("trailing", 1, prediction="flow", terminal=0.02).tolist() == [1, 0]


@pytest.mark.parametrize("terminal", [None, 0.02])
@pytest.mark.parametrize("name", CONVERTED)
@pytest.mark.parametrize("steps", STEPS[1:])
def test_converted_sigmas_equal_diffusers(steps: int, name: str, terminal: float | None) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0, shift_terminal=terminal, **{CONVERTED[name]: True}
    )
    scheduler.set_timesteps(sigmas=explicit(steps))
    options: dict[str, Any] = {"prediction": "flow", "shift": 3.0, "terminal": terminal}
    found = sigmas(name, steps, spacing="trailing", **options)
    if terminal is not None:
        assert np.abs(found - scheduler.sigmas.numpy()).max() <= STRETCHED
    else:
        close(found, scheduler.sigmas.numpy(), 1e-6)
        scheduler.set_timesteps(steps)
        found = sigmas(name, steps, spacing="discrete", **options)
        close(found, scheduler.sigmas.numpy(), 1e-6)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", CONVERTED)
@pytest.mark.parametrize("steps", STEPS[1:])
def test_converted_sigmas_over_betas_equal_diffusers(steps: int, name: str, spacing: str) -> None:
    scheduler = EulerDiscreteScheduler(
        **TABLE,
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        steps_offset=1,
        **{CONVERTED[name]: True},
    )
    scheduler.set_timesteps(steps)
    levels = _core.NoiseLevels("scaled_linear", 0.00085, 0.012, 1000)
    found = _core.Schedule(name, steps, levels, steps_offset=1, spacing=spacing)
    # The reference rounds the ends to float32 before the table is interpolated, and so do we.
    close(found.sigmas, scheduler.sigmas.numpy(), 1e-6)
    assert np.abs(found.timesteps - scheduler.timesteps.numpy()).max() <= 2e-3


def test_dynamic_mu_equals_diffusers_and_the_published_anchors() -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (16, 256, 1024, 4096, 10000):
        assert dynamic_mu(tokens) == calculate_shift(tokens)
        qwen = (256, 8192, 0.5, 0.9)
        assert dynamic_mu(tokens, 0.5, 0.9, 256, 8192) == calculate_shift(tokens, *qwen)
    assert dynamic_mu(1024) == pytest.approx(0.63)
    assert dynamic_mu(4096, 0.5, 0.9, 256, 8192) == pytest.approx(0.693548, abs=1e-6)
    assert dynamic_mu(6889, 0.5, 0.9, 256, 8192) == pytest.approx(0.834325, abs=1e-6)


def shifted(times: np.ndarray, shift: float) -> np.ndarray:
    return shift * times / (1 + (shift - 1) * times)


@pytest.mark.parametrize(("shift", "count"), [(3.0, 1000), (math.exp(1.15), 10000)])
@pytest.mark.parametrize("steps", STEPS)
def test_comfyui_s_schedules_over_a_flow(steps: int, shift: float, count: int) -> None:
    """comfy/samplers.py over the tables of comfy/model_sampling.py, from its formulas."""
    table = shifted(np.arange(1, count + 1) / count, shift)
    low, high = table[0], table[-1]
    u = np.arange(steps) / steps

    def entries(places: np.ndarray) -> np.ndarray:
        return table[list(dict.fromkeys(places.astype(int).tolist()))]

    expected = {
        "simple": table[[-(1 + int(i * (count / steps))) for i in range(steps)]],
        "discrete": shifted(np.linspace(high, low, steps), shift),
        "sgm_uniform": shifted(np.linspace(high, low, steps + 1)[:-1], shift),
        "ddim_uniform": table[1 :: count // steps][::-1],
        "beta": entries(np.rint(scipy.stats.beta.ppf(1 - u, 0.6, 0.6) * (count - 1))),
        "karras": np.linspace(high ** (1 / 7), low ** (1 / 7), steps) ** 7,
        "exponential": np.exp(np.linspace(np.log(high), np.log(low), steps)),
        "kl_optimal": np.tan(np.linspace(np.arctan(high), np.arctan(low), steps)),
        "smoothstep": entries(np.floor((3 - 2 * (1 - u)) * (1 - u) ** 2 * (count - 1) + 0.5)),
        "linear_quadratic": linear_quadratic(steps) * high,
    }
    levels = _core.NoiseLevels.flow(shift, count)
    for name, values in expected.items():
        found = _core.Schedule(name, steps, levels)
        close(found.sigmas, np.append(values, 0), 1e-6)
        close(found.timesteps, values * 1000, 1e-6)


def test_the_multiplier_is_what_the_network_is_told() -> None:
    levels = _core.NoiseLevels.flow(3.0, multiplier=1.0)
    schedule = _core.Schedule("trailing", 4, levels)
    assert np.array_equal(schedule.timesteps, schedule.sigmas[:-1])
    assert levels.timestep(0.25) == 0.25
    assert levels.sigma(0.25) == 0.25


@pytest.mark.parametrize("name", ["ays", "ays_sdxl", "gits", "lcm", "turbo", "leading"])
def test_schedules_of_other_models_are_refused(name: str) -> None:
    with pytest.raises(sdengine.ParameterError, match=f"schedule {name.removesuffix('_sdxl')} "):
        sigmas(name, 4, prediction="flow")
    with pytest.raises(sdengine.ParameterError, match=f"schedule {name.removesuffix('_sdxl')} "):
        sigmas(name, 4, prediction="edm")


LEVELS = {
    "flow 0.1": _core.NoiseLevels.flow(0.1),
    "flow 1": _core.NoiseLevels.flow(1.0),
    "flow 30": _core.NoiseLevels.flow(30.0),
    "flow 3 of 10000": _core.NoiseLevels.flow(3.0, 10000),
    "edm": _core.NoiseLevels.edm(),
    "cosxl": _core.NoiseLevels.edm(0.002, 120.0),
    "zero snr": _core.NoiseLevels("scaled_linear", 0.00085, 0.012, 1000, True),
}
EVERYWHERE = {"simple", "discrete", "karras", "beta", "sgm_uniform", "kl_optimal", "bong_tangent"}


@pytest.mark.parametrize("steps", [*STEPS, 200, 1000])
@pytest.mark.parametrize("levels", LEVELS)
def test_every_schedule_that_is_defined_falls_to_zero(levels: str, steps: int) -> None:
    defined = set()
    for name in _core.schedule_names():
        try:
            schedule = _core.Schedule(name, steps, LEVELS[levels])
        except sdengine.ParameterError:
            continue
        defined.add(name)
        assert np.isfinite(schedule.timesteps).all()
        assert len(schedule.sigmas) == len(schedule.timesteps) + 1 == schedule.steps + 1
        assert (np.diff(schedule.sigmas) < 0).all(), name
        assert (np.diff(schedule.timesteps) < 0).all() or name == "vp", name
        assert schedule.sigmas[-1] == 0
    assert defined >= EVERYWHERE


@pytest.mark.parametrize("name", ["vp", "laplace"])
def test_continuous_schedules_over_betas_are_refused(name: str) -> None:
    with pytest.raises(sdengine.ParameterError, match="betas, which flow models do not have"):
        sigmas(name, 4, prediction="flow")


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_edm_equals_diffusers(kind: type, steps: int, schedule: str) -> None:
    scheduler = kind(sigma_schedule=schedule)
    scheduler.set_timesteps(steps)
    found = _core.Schedule(schedule, steps, _core.NoiseLevels.edm())
    # The closed form in float64 to 1e-6. EDMDPMSolverMultistepScheduler takes the power of karras in
    # float32, seven roundings deep.
    low, high, root = 0.002, 80.0, 1 / 7
    along = np.linspace(0, 1, steps)
    levels = {
        "karras": (high**root + along * (low**root - high**root)) ** 7,
        "exponential": np.exp(np.log(high) + along * np.log(low / high)),
    }[schedule]
    close(found.sigmas, np.append(levels, 0))
    close(found.sigmas, scheduler.sigmas.numpy(), 2e-6 if schedule == "karras" else 1e-6)
    assert np.abs(found.timesteps - scheduler.timesteps.numpy()).max() <= 1e-6
    close(sigmas(schedule, steps, prediction="edm"), found.sigmas)


def test_ranges_of_edm() -> None:
    assert sigmas("karras", 4, prediction="edm")[0] == pytest.approx(80, rel=1e-6)
    assert sigmas("karras", 4, prediction="edm_v_prediction")[0] == pytest.approx(120, rel=1e-6)
    own = sigmas("discrete", 4, prediction="edm", sigma_min=0.01, sigma_max=10.0)
    close(own, np.append(np.exp(np.linspace(np.log(10), np.log(0.01), 4)), 0))
    levels = _core.NoiseLevels.edm()
    assert levels.timestep(levels.sigma(-0.7)) == pytest.approx(-0.7, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift": 0.0}, "shift of a flow model is above 0"),
        ({"shift": -1.0}, "above 0"),
        ({"shift": float("nan")}, "above 0"),
        ({"shift": 1e6}, "at most 10000"),
        ({"mu": 20.0}, "mu must be"),
        ({"mu": float("nan")}, "mu must be"),
        ({"shift": 3.0, "mu": 1.0}, "not both"),
        ({"terminal": 0.0}, "terminal sigma is above 0"),
        ({"terminal": 1.0}, "below 1"),
        ({"sigma_max": 1.5}, "<= 1"),
        ({"sigma_min": 0.5, "sigma_max": 0.4}, "sigma_min < sigma_max"),
        ({"spacing": "trailing", "sigma_min": 0.5}, "one of the two"),
        ({"spacing": "never"}, "no schedule"),
        ({"train_steps": 0}, "training timesteps"),
    ],
)
def test_bad_arguments_of_flow_models(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(sdengine.ParameterError, match=message):
        sigmas("karras", 4, prediction="flow", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift": 3.0}, "belong to flow models"),
        ({"mu": 1.0, "prediction": "edm"}, "belong to flow models"),
        ({"terminal": 0.02}, "belongs to flow models"),
        ({"sigma_min": -1.0}, "0 < sigma_min"),
        ({"sigma_min": 0.0, "prediction": "edm"}, "0 < min < max"),
        ({"sigma_max": float("inf"), "prediction": "edm"}, "0 < min < max"),
        ({"prediction": "guess"}, "a prediction is"),
    ],
)
def test_bad_arguments_of_other_models(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(sdengine.ParameterError, match=message):
        sigmas("karras", 4, **arguments)


@pytest.mark.parametrize("arguments", [(0,), (10, 0.5, 1.15, 4096, 256), (10, 0.5, 1.15, 0, 5)])
def test_bad_token_counts(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(sdengine.ParameterError, match="tokens"):
        dynamic_mu(*arguments)
