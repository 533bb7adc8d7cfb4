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
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
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
    "UniPCMultistepScheduler": "unipc_bh2",
}
"""diffusers scheduler class -> the sampler that does the same, or comes nearest."""

VARIANTS: Mapping[tuple[str, str, str], str] = {
    ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++"): "dpm++2m_sde",
    ("UniPCMultistepScheduler", "solver_type", "bh1"): "unipc_bh1",
}
"""(class, key, value of its config) -> the sampler that it becomes with it."""

SPACINGS = ("leading", "linspace", "trailing")
"""diffusers ``timestep_spacing``; the schedules of these names are equal to it."""

BETA_KINDS = ("scaled_linear", "linear", "squaredcos_cap_v2")
_MOST_STEPS = 100_000  # training timesteps; published models have 1000 or 1100

_SIGMAS: Mapping[str, str] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}
# Where the config is silent about the spacing (the defaults of diffusers' classes).
_LEADING = {"PNDMScheduler", "DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"}
# Distilled models know 50 timesteps.
_DISTILLED = {"LCMScheduler", "TCDScheduler"}


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
    if name.startswith(("FlowMatch", "EDM")):
        raise UnsupportedModelError(
            f"the scheduler is a {name}; {family.title} is sampled over betas, so this folder holds"
            " another kind of model"
        )
    prediction = config.get("prediction_type") or settings.prediction
    usual = "leading" if name in _LEADING else "linspace"
    spacing = str(config.get("timestep_spacing") or usual)
    sigmas = next((s for key, s in _SIGMAS.items() if config.get(key) is True), None)
    if spacing not in SPACINGS:
        raise UnsupportedModelError(
            f"scheduler_config.json has timestep_spacing = {spacing!r};"
            f" supported are {', '.join(SPACINGS)}"
        )
    return checked(
        replace(
            settings,
            prediction=prediction,
            beta_kind=config.get("beta_schedule") or settings.beta_kind,
            beta_start=_number(config, "beta_start", settings.beta_start),
            beta_end=_number(config, "beta_end", settings.beta_end),
            train_steps=int(_number(config, "num_train_timesteps", settings.train_steps)),
            rescale_zero_snr=config.get("rescale_betas_zero_snr") is True,
            sampler=_sampler(name, config),
            schedule=sigmas or ("lcm" if name in _DISTILLED else spacing),
            spacing=spacing,
            steps_offset=int(_number(config, "steps_offset", 0)),
            shift=_number(config, "shift", 1.0) if "shift" in config else None,
            source=name or "scheduler_config.json",
        )
    )


def checked(settings: SchedulerSettings) -> SchedulerSettings:
    """The settings themselves. Raises WeightsError for values that no model was trained with."""
    for name, value, low, high in (
        ("beta_start", settings.beta_start, 0.0, 1.0),
        ("beta_end", settings.beta_end, 0.0, 1.0),
        ("train_steps", settings.train_steps, 1, _MOST_STEPS),
        ("steps_offset", settings.steps_offset, -1, _MOST_STEPS),
    ):
        if not low < value < high:
            raise WeightsError(f"scheduler: {name} = {value!r}; expected between {low} and {high}")
    for name, text, choices in (
        ("prediction", settings.prediction, get_args(Prediction)),
        ("beta_kind", settings.beta_kind, BETA_KINDS),
    ):
        if text not in choices:
            raise UnsupportedModelError(
                f"scheduler: {name} = {text!r}; supported are {', '.join(choices)}"
            )
    for name, given, kind in (
        ("sampler", settings.sampler, str),
        ("schedule", settings.schedule, str),
        ("spacing", settings.spacing, str),
        ("shift", settings.shift, float),
    ):
        if given is not None and not isinstance(given, kind):
            raise WeightsError(f"scheduler: {name} = {given!r}; expected a {kind.__name__} or null")
    return settings


def _sampler(name: str, config: Mapping[str, Any]) -> str | None:
    for (owner, key, value), sampler in VARIANTS.items():
        if name == owner and config.get(key) == value:
            return sampler
    return SAMPLERS.get(name)


def _number(config: Mapping[str, Any], key: str, otherwise: float) -> float:
    value = config.get(key)
    if value is None:
        return otherwise
    if type(value) not in (int, float) or value != value or abs(value) > 1e6:
        raise WeightsError(f"scheduler_config.json has {key} = {value!r}; expected a number")
    return float(value)
