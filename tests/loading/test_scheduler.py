"""Scheduler configs of diffusers as sampler, schedule and prediction."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, replace
from typing import Any

import diffusers
import pytest

from sdengine.errors import UnsupportedModelError, WeightsError
from sdengine.families import SD1, Flow
from sdengine.loading.scheduler import (
    SAMPLERS,
    SPACINGS,
    VARIANTS,
    SchedulerSettings,
    checked,
    from_diffusers,
)

PNDM = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def test_the_scheduler_of_stable_diffusion_1_5() -> None:
    assert from_diffusers(PNDM, SD1) == SchedulerSettings(
        prediction="epsilon",
        beta_kind="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        train_steps=1000,
        sampler="ipndm",
        schedule="leading",
        spacing="leading",
        steps_offset=1,
        source="PNDMScheduler",
    )


def test_an_empty_config_is_the_family_s() -> None:
    settings = from_diffusers({}, SD1)
    assert (settings.prediction, settings.sampler) == ("epsilon", None)
    assert settings.beta_end == SD1.betas.end


@pytest.mark.parametrize("name", [n for n in SAMPLERS if not n.startswith(("FlowMatch", "EDM"))])
def test_every_class_exists_and_its_default_spacing_is_known(name: str) -> None:
    defaults = inspect.signature(getattr(diffusers, name).__init__).parameters
    if "timestep_spacing" not in defaults:
        assert name in {"IPNDMScheduler", "DPMSolverSinglestepScheduler"} or name.startswith(
            "EDM"
        )  # grids of their own
        return
    assert (
        from_diffusers({"_class_name": name}, SD1).spacing == defaults["timestep_spacing"].default
    )


@pytest.mark.parametrize(
    ("changes", "sampler", "schedule"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "euler", "linspace"),
        ({"timestep_spacing": "trailing"}, "ipndm", "trailing"),
        ({"use_karras_sigmas": True}, "ipndm", "karras"),
        ({"use_exponential_sigmas": True}, "ipndm", "exponential"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpm++2m", "linspace"),
        ({"use_beta_sigmas": True}, "ipndm", "beta_sigmas"),
        ({"_class_name": "LCMScheduler"}, "lcm", "lcm"),
        ({"_class_name": "TCDScheduler"}, "tcd", "lcm"),
        ({"_class_name": "DDIMScheduler"}, "ddim", "leading"),
        ({"_class_name": "UniPCMultistepScheduler"}, "unipc_bh2", "linspace"),
        (
            {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"},
            "unipc_bh1",
            "linspace",
        ),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "algorithm_type": "sde-dpmsolver++",
            },
            "dpm++2m_sde",
            "linspace",
        ),
        ({"_class_name": "SomeNewScheduler"}, None, "linspace"),
    ],
)
def test_samplers_and_schedules(
    changes: dict[str, Any], sampler: str | None, schedule: str
) -> None:
    settings = from_diffusers({**PNDM, **changes}, SD1)
    assert (settings.sampler, settings.schedule) == (sampler, schedule)


def test_velocity_and_zero_terminal_snr() -> None:
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "shift": 3.0}
    settings = from_diffusers({**PNDM, **changes}, SD1)
    assert (settings.prediction, settings.rescale_zero_snr, settings.shift) == (
        "v_prediction",
        True,
        3.0,
    )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"beta_schedule": "sigmoid"}, UnsupportedModelError),
        ({"prediction_type": "flow"}, UnsupportedModelError),
        ({"prediction_type": ["epsilon"]}, UnsupportedModelError),
        ({"trained_betas": [0.1, 0.2]}, UnsupportedModelError),
        ({"timestep_spacing": "sideways"}, UnsupportedModelError),
        ({"timestep_spacing": [1]}, UnsupportedModelError),
        ({"beta_start": "0.1"}, WeightsError),
        ({"beta_end": 1.5}, WeightsError),
        ({"beta_end": float("nan")}, WeightsError),
        ({"num_train_timesteps": 0}, WeightsError),
        ({"num_train_timesteps": 10**9}, WeightsError),
        ({"steps_offset": -5}, WeightsError),
    ],
)
def test_bad_values(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        from_diffusers({**PNDM, **changes}, SD1)


def test_every_name_is_one_that_the_samplers_know() -> None:
    from sdengine import sampling

    defaults = [SD1.defaults.__dict__, *(variant.defaults for variant in SD1.variants)]
    assert {*SAMPLERS.values(), *VARIANTS.values()} <= set(sampling.SAMPLERS)
    assert {*SPACINGS, "karras", "exponential", "beta_sigmas", "lcm"} <= set(sampling.SCHEDULES)
    assert {d["sampler"] for d in defaults if "sampler" in d} <= set(sampling.SAMPLERS)
    assert {d["schedule"] for d in defaults if "schedule" in d} <= set(sampling.SCHEDULES)


FLOW = replace(SD1, title="A flow model", prediction="flow", flow=Flow(shift=3.0))
# The published configs of FLUX.1 dev, Qwen-Image and Lumina-Image 2.0.
FLUX = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
QWEN = {
    **FLUX,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
LUMINA = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "shift": 6.0,
    "use_dynamic_shifting": False,
}
PLAYGROUND = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
}
COSXL = {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "sigma_max": 120.0,
    "sigma_min": 0.002,
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def test_schedulers_of_flow_models() -> None:
    flux = from_diffusers(FLUX, FLOW)
    assert (flux.prediction, flux.sampler, flux.schedule) == ("flow", "euler", None)
    assert (flux.dynamic_shift, flux.base_shift, flux.max_shift) == (True, 0.5, 1.15)
    assert (flux.base_tokens, flux.max_tokens, flux.terminal) == (256, 4096, None)
    qwen = from_diffusers(QWEN, FLOW)
    assert (qwen.max_tokens, qwen.max_shift, qwen.terminal) == (8192, 0.9, 0.02)
    assert from_diffusers({**QWEN, "shift_terminal": None}, FLOW).terminal is None
    assert qwen.shift_form == "exponential"
    lumina = from_diffusers(LUMINA, FLOW)
    assert (lumina.dynamic_shift, lumina.shift) == (False, 6.0)
    assert from_diffusers({}, FLOW).shift == 3.0  # the family's
    converted = from_diffusers({**LUMINA, "use_karras_sigmas": True}, FLOW)
    assert (converted.schedule, converted.spacing) == ("karras", "trailing")
    stochastic = from_diffusers({**LUMINA, "stochastic_sampling": True}, FLOW)
    assert stochastic.sampler == "lcm"
    heun = from_diffusers({"_class_name": "FlowMatchHeunDiscreteScheduler"}, FLOW)
    assert (heun.sampler, heun.shift) == ("heun", 3.0)
    solver = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 5.0}
    assert from_diffusers(solver, FLOW).shift == 5.0


def test_a_flow_family_s_settings() -> None:
    flow = Flow(2.0, True, 0.4, 0.8, 100, 1000, 0.03, 1.0)
    settings = SchedulerSettings.of_family(replace(SD1, prediction="flow", flow=flow))
    assert (settings.shift, settings.dynamic_shift, settings.terminal) == (2.0, True, 0.03)
    assert (settings.base_shift, settings.max_shift, settings.multiplier) == (0.4, 0.8, 1.0)
    assert (settings.base_tokens, settings.max_tokens) == (100, 1000)


def test_schedulers_of_edm_models() -> None:
    settings = from_diffusers(PLAYGROUND, SD1)
    assert (settings.prediction, settings.sampler) == ("edm", "dpm++2m")
    assert (settings.schedule, settings.rho) == ("karras", 7.0)
    assert (settings.sigma_min, settings.sigma_max, settings.sigma_data) == (0.002, 80.0, 0.5)
    velocity = from_diffusers({**PLAYGROUND, "prediction_type": "v_prediction"}, SD1)
    assert (velocity.prediction, velocity.sigma_data) == ("edm_v_prediction", 0.5)
    euler = {"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"}
    assert from_diffusers(euler, SD1).schedule == "exponential"
    cosxl = from_diffusers(COSXL, SD1)
    assert (cosxl.prediction, cosxl.sampler, cosxl.schedule) == (
        "edm_v_prediction",
        "euler",
        "karras",
    )
    assert (cosxl.sigma_min, cosxl.sigma_max, cosxl.sigma_data) == (0.002, 120.0, None)


@pytest.mark.parametrize("config", [FLUX, QWEN, LUMINA])
def test_settings_survive_json(config: dict[str, Any]) -> None:
    settings = from_diffusers(config, FLOW)
    assert SchedulerSettings(**json.loads(json.dumps(asdict(settings)))) == settings


def test_families_without_flow_refuse_it_and_the_other_way_round() -> None:
    with pytest.raises(UnsupportedModelError, match="sampled over betas"):
        from_diffusers(FLUX, SD1)
    with pytest.raises(UnsupportedModelError, match="sampled over a flow"):
        from_diffusers(PNDM, FLOW)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({**LUMINA, "shift": 0.0}, WeightsError),
        ({**LUMINA, "shift": -3.0}, WeightsError),
        ({**LUMINA, "shift": "3"}, WeightsError),
        ({**LUMINA, "invert_sigmas": True}, UnsupportedModelError),
        ({**LUMINA, "time_shift_type": "cubic"}, UnsupportedModelError),
        ({**LUMINA, "shift_terminal": 1.5}, WeightsError),
        ({**LUMINA, "shift_terminal": "end"}, WeightsError),
        ({**FLUX, "base_image_seq_len": 5000}, WeightsError),
        ({**FLUX, "max_shift": 100.0}, WeightsError),
    ],
)
def test_bad_values_of_flow_models(config: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        from_diffusers(config, FLOW)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({**PLAYGROUND, "sigma_min": 90.0}, WeightsError),
        ({**PLAYGROUND, "sigma_min": 0.0}, WeightsError),
        ({**PLAYGROUND, "sigma_data": -0.5}, WeightsError),
        ({**PLAYGROUND, "rho": 0.0}, WeightsError),
        ({**PLAYGROUND, "prediction_type": "sample"}, UnsupportedModelError),
        ({**PLAYGROUND, "prediction_type": ["epsilon"]}, UnsupportedModelError),
        ({**PLAYGROUND, "sigma_schedule": "linear"}, UnsupportedModelError),
        ({**COSXL, "prediction_type": "epsilon"}, UnsupportedModelError),
    ],
)
def test_bad_values_of_edm_models(config: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        from_diffusers(config, SD1)


@pytest.mark.parametrize("name", ["shift", "terminal", "sigma_min", "sigma_max", "rho"])
def test_stored_numbers_that_are_texts(name: str) -> None:
    settings = SchedulerSettings.of_family(SD1)
    stored: dict[str, Any] = {"sigma_min": 0.1, name: "three"}
    with pytest.raises(WeightsError, match=name):
        checked(replace(settings, **stored))
