"""Scheduler configs of diffusers as sampler, schedule and prediction."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest

from sdengine.errors import UnsupportedModelError, WeightsError
from sdengine.families import SD1
from sdengine.loading.scheduler import (
    SAMPLERS,
    SPACINGS,
    VARIANTS,
    SchedulerSettings,
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_class_exists_and_its_default_spacing_is_known(name: str) -> None:
    defaults = inspect.signature(getattr(diffusers, name).__init__).parameters
    if "timestep_spacing" not in defaults:
        assert name in {"IPNDMScheduler", "DPMSolverSinglestepScheduler"}  # grids of their own
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
        ({"use_beta_sigmas": True}, "ipndm", "beta"),
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
    assert {*SPACINGS, "karras", "exponential", "beta", "lcm"} <= set(sampling.SCHEDULES)
    assert {d["sampler"] for d in defaults if "sampler" in d} <= set(sampling.SAMPLERS)
    assert {d["schedule"] for d in defaults if "schedule" in d} <= set(sampling.SCHEDULES)
