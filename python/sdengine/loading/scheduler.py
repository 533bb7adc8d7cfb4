"""A model's scheduler config (diffusers): the sampler, schedule and prediction that it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from sdengine.errors import UnsupportedModelError, WeightsError
from sdengine.families import Betas, Family, Prediction


@dataclass(frozen=True)
class SchedulerSettings:
    """How a model was trained to see noise, and how its publisher samples it."""

    prediction: Prediction
    beta_kind: str
    """"scaled_linear", "linear" or "squaredcos_cap_v2"."""
    beta_start: float
    beta_end: float
    train_steps: int
    rescale_zero_snr: bool = False
    """The noise schedule is shifted so that the last training step is pure noise."""
    sampler: str | None = None
    """The publisher's sampler, or what comes nearest; None leaves it to the family."""
    schedule: str | None = None
    """The publisher's step schedule, or what comes nearest; None leaves it to the family."""
    spacing: str | None = None
    """How diffusers spaces the timesteps: "leading", "linspace" or "trailing"."""
    steps_offset: int = 0
    """What diffusers adds to timesteps with "leading" spacing."""
    shift: float | None = None
    """Timestep shift of a flow model."""
    source: str = "family"
    """Where this comes from: the name of a scheduler class, "gguf" or "family"."""

    @classmethod
    def of_family(cls, family: Family) -> SchedulerSettings:
        """What the family says."""
        betas: Betas = family.betas
        return cls(family.prediction, betas.kind, betas.start, betas.end, betas.count)


SAMPLERS: Mapping[str, str] = {
    "DDIMScheduler": "euler",  # the same steps: DDIM without noise is Euler over sigma
    "DDPMScheduler": "euler_a",  # ancestral, as DDPM
    "DEISMultistepScheduler": "ipndm_v",  # exponential multistep; nearest is the variable-step one
    "DPMSolverMultistepScheduler": "dpm++2m",
    "DPMSolverSDEScheduler": "dpm++sde",
    "DPMSolverSinglestepScheduler": "dpm++2s_a",  # without its noise it is the same step
    "EulerAncestralDiscreteScheduler": "euler_a",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "IPNDMScheduler": "ipndm",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a",
    "KDPM2DiscreteScheduler": "dpm2",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms",
    # Pseudo linear multistep: Adams-Bashforth of order 4 on the noise, which iPNDM takes over
    # sigma.
    "PNDMScheduler": "ipndm",
    "TCDScheduler": "tcd",
    "UniPCMultistepScheduler": "unipc",
}
"""diffusers scheduler class -> the sampler that does the same, or comes nearest."""

SPACINGS: Mapping[str, str] = {
    "leading": "ddim_uniform",
    "linspace": "discrete",
    "trailing": "sgm_uniform",
}
"""diffusers ``timestep_spacing`` -> the schedule that does the same, or comes nearest."""

_SIGMAS: Mapping[str, str] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}
# Where the config is silent about the spacing (the defaults of diffusers' classes).
_LEADING = {"PNDMScheduler", "DDIMScheduler", "DDPMScheduler"}


def from_diffusers(config: Mapping[str, Any], family: Family) -> SchedulerSettings:
    """The settings that a ``scheduler_config.json`` amounts to.

    Raises:
        UnsupportedModelError: noise of a kind that no sampler here is for.
        WeightsError: a value is not what its key promises.
    """
    settings = SchedulerSettings.of_family(family)
    name = str(config.get("_class_name", ""))
    if config.get("trained_betas") is not None:
        raise UnsupportedModelError(
            "scheduler_config.json lists trained_betas; only formulas are supported"
        )
    prediction = config.get("prediction_type") or settings.prediction
    if prediction not in get_args(Prediction):
        raise UnsupportedModelError(f"scheduler_config.json has prediction_type = {prediction!r}")
    spacing = config.get("timestep_spacing") or ("leading" if name in _LEADING else "linspace")
    sigmas = next((s for key, s in _SIGMAS.items() if config.get(key) is True), None)
    sampler = SAMPLERS.get(name)
    if sampler == "dpm++2m" and str(config.get("algorithm_type", "")).startswith("sde"):
        sampler = "dpm++2m_sde"
    return replace(
        settings,
        prediction=prediction,
        beta_kind=_choice(config, "beta_schedule", settings.beta_kind),
        beta_start=_number(config, "beta_start", settings.beta_start),
        beta_end=_number(config, "beta_end", settings.beta_end),
        train_steps=int(_number(config, "num_train_timesteps", settings.train_steps)),
        rescale_zero_snr=config.get("rescale_betas_zero_snr") is True,
        sampler=sampler,
        schedule=sigmas or SPACINGS.get(spacing),
        spacing=spacing if spacing in SPACINGS else None,
        steps_offset=int(_number(config, "steps_offset", 0)),
        shift=_number(config, "shift", 1.0) if "shift" in config else None,
        source=name or "scheduler_config.json",
    )


_BETA_KINDS = ("scaled_linear", "linear", "squaredcos_cap_v2")


def _choice(config: Mapping[str, Any], key: str, otherwise: str) -> str:
    value = config.get(key) or otherwise
    if value not in _BETA_KINDS:
        raise UnsupportedModelError(
            f"scheduler_config.json has {key} = {value!r}; supported are {', '.join(_BETA_KINDS)}"
        )
    return str(value)


def _number(config: Mapping[str, Any], key: str, otherwise: float) -> float:
    value = config.get(key)
    if value is None:
        return otherwise
    if type(value) not in (int, float) or value != value or abs(value) > 1e6:
        raise WeightsError(f"scheduler_config.json has {key} = {value!r}; expected a number")
    return float(value)
