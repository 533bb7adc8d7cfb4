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
    multistep: bool = False
    """The spacing is that of diffusers' multistep solvers, which leave out a last timestep."""
    steps_offset: int = 0
    """What diffusers adds to timesteps with "leading" spacing."""
    shift: float | None = None
    """Timestep shift of a flow model, the same for every size; None is 1."""
    dynamic_shift: bool = False
    """The shift of a flow model depends on the number of image tokens, see
    :func:`sdengine.sampling.dynamic_mu`; `shift` has no use."""
    shift_form: str = "exponential"
    """What the dynamic number is: the shift's logarithm ("exponential"), or the shift ("linear")."""
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    terminal: float | None = None
    """The last sigma above 0 of a flow model's schedule, which is stretched to it."""
    multiplier: float = 1000.0
    """A flow model's denoiser is told sigma times this."""
    sigma_min: float | None = None
    """Of the range of an EDM model; None is that of the usual models of its prediction."""
    sigma_max: float | None = None
    sigma_data: float | None = None
    """Deviation of the clean latents in EDM's scalings; None is the prediction's usual one."""
    rho: float | None = None
    """Exponent of the publisher's ``karras`` schedule; None is 7."""
    source: str = "family"
    """Where this comes from: the name of a scheduler class, "gguf" or "family"."""

    @classmethod
    def of_family(cls, family: Family) -> SchedulerSettings:
        """What the family says."""
        betas: Betas = family.betas
        settings = cls(
            *(family.prediction, betas.kind, betas.start, betas.end, betas.count),
            steps_offset=betas.steps_offset,
        )
        flow = family.flow
        if flow is None:
            return settings
        return replace(
            settings,
            shift=flow.shift,
            dynamic_shift=flow.dynamic,
            base_shift=flow.base_shift,
            max_shift=flow.max_shift,
            base_tokens=flow.base_tokens,
            max_tokens=flow.max_tokens,
            terminal=flow.terminal,
            multiplier=flow.multiplier,
        )


SAMPLERS: Mapping[str, str] = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpm++2m",
    "DPMSolverSDEScheduler": "dpm++sde",
    "DPMSolverSinglestepScheduler": "dpm++2s_a",  # without its noise it is the same step
    "EDMDPMSolverMultistepScheduler": "dpm++2m",
    "EDMEulerScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "FlowMatchLCMScheduler": "lcm",
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

VARIANTS: Mapping[tuple[str, str, str | bool], str] = {
    ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++"): "dpm++2m_sde",
    ("EDMDPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++"): "dpm++2m_sde",
    # The estimate, noised to the next level.
    ("FlowMatchEulerDiscreteScheduler", "stochastic_sampling", True): "lcm",
    ("UniPCMultistepScheduler", "solver_type", "bh1"): "unipc_bh1",
}
"""(class, key, value of its config) -> the sampler that it becomes with it."""

SPACINGS = ("leading", "linspace", "trailing")
"""diffusers ``timestep_spacing``; the schedules of these names are equal to it."""

BETA_PREDICTIONS = ("epsilon", "v_prediction", "sample")
BETA_KINDS = ("scaled_linear", "linear", "squaredcos_cap_v2")
SHIFT_FORMS = ("exponential", "linear")
_MOST_STEPS = 100_000  # training timesteps; published models have 1000 or 1100
_LARGEST_SHIFT = 10_000.0  # published models have 1 to 6
_LARGEST_MU = 9.0  # the logarithm of that shift
_LARGEST_SIGMA = 100_000.0  # published models have 700 at most

_SIGMAS: Mapping[str, str] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigmas",
}
# Where the config is silent about the spacing (the defaults of diffusers' classes).
_LEADING = {"PNDMScheduler", "DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"}
# Solvers that space one timestep more than there are steps.
_MULTISTEP = {
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
}
# Distilled models know 50 timesteps.
_DISTILLED = {"LCMScheduler", "TCDScheduler"}


def from_diffusers(config: Mapping[str, Any], family: Family) -> SchedulerSettings:
    """The settings that a ``scheduler_config.json`` amounts to.

    Raises:
        UnsupportedModelError: noise of a kind that no sampler here is for, or that the family is not.
        WeightsError: a value is not what its key promises.
    """
    name = str(config.get("_class_name", ""))
    if config.get("trained_betas") is not None:
        raise UnsupportedModelError(
            "scheduler_config.json lists trained_betas; only formulas are supported"
        )
    settings = replace(
        SchedulerSettings.of_family(family),
        sampler=_sampler(name, config),
        source=name or "scheduler_config.json",
    )
    flow = name.startswith("FlowMatch") or config.get("use_flow_sigmas") is True
    flow = flow or (not name and family.prediction == "flow")
    if flow != (family.prediction == "flow"):
        raise UnsupportedModelError(
            f"the scheduler is a {settings.source}; {family.title} is sampled over"
            f" {'betas' if flow else 'a flow'}, so this folder holds another kind of model"
        )
    if flow:
        return checked(_of_flow(config, settings))
    if name.startswith("EDM"):
        return checked(_of_edm(config, settings))
    if config.get("timestep_type") == "continuous":
        return checked(_of_range(config, settings))
    return checked(_of_betas(name, config, settings))


def _of_betas(
    name: str, config: Mapping[str, Any], settings: SchedulerSettings
) -> SchedulerSettings:
    usual = "leading" if name in _LEADING else "linspace"
    spacing = str(config.get("timestep_spacing") or usual)
    if spacing not in SPACINGS:
        raise UnsupportedModelError(
            f"scheduler_config.json has timestep_spacing = {spacing!r};"
            f" supported are {', '.join(SPACINGS)}"
        )
    prediction = config.get("prediction_type") or settings.prediction
    if prediction not in BETA_PREDICTIONS:
        raise UnsupportedModelError(
            f"scheduler_config.json has prediction_type = {prediction!r};"
            f" supported are {', '.join(BETA_PREDICTIONS)}"
        )
    return replace(
        settings,
        prediction=prediction,
        beta_kind=config.get("beta_schedule") or settings.beta_kind,
        beta_start=_number(config, "beta_start", settings.beta_start),
        beta_end=_number(config, "beta_end", settings.beta_end),
        train_steps=int(_number(config, "num_train_timesteps", settings.train_steps)),
        rescale_zero_snr=config.get("rescale_betas_zero_snr") is True,
        schedule=_converted(config) or ("lcm" if name in _DISTILLED else spacing),
        spacing=spacing,
        multistep=name in _MULTISTEP,
        steps_offset=int(_number(config, "steps_offset", 0)),
        shift=_number(config, "shift", 1.0) if "shift" in config else None,
    )


def _of_flow(config: Mapping[str, Any], settings: SchedulerSettings) -> SchedulerSettings:
    """Of FlowMatch classes, and of others with ``use_flow_sigmas``, which name the shift differently."""
    if config.get("invert_sigmas") is True:
        raise UnsupportedModelError(
            "scheduler_config.json has invert_sigmas = true; only sigmas that fall are supported"
        )
    usual = 1.0 if settings.shift is None else settings.shift
    key = "flow_shift" if config.get("use_flow_sigmas") is True else "shift"
    converted = _converted(config)
    terminal = settings.terminal
    if "shift_terminal" in config:
        terminal = _number(config, "shift_terminal", 0.0)
    return replace(
        settings,
        train_steps=int(_number(config, "num_train_timesteps", settings.train_steps)),
        schedule=converted,
        spacing="trailing" if converted else None,
        shift=_number(config, key, usual),
        dynamic_shift=config.get("use_dynamic_shifting", settings.dynamic_shift) is True,
        shift_form=config.get("time_shift_type") or settings.shift_form,
        base_shift=_number(config, "base_shift", settings.base_shift),
        max_shift=_number(config, "max_shift", settings.max_shift),
        base_tokens=int(_number(config, "base_image_seq_len", settings.base_tokens)),
        max_tokens=int(_number(config, "max_image_seq_len", settings.max_tokens)),
        terminal=terminal or None,  # diffusers takes 0 for none
    )


def _of_edm(config: Mapping[str, Any], settings: SchedulerSettings) -> SchedulerSettings:
    """Of EDM classes: Karras et al. 2022 over a range of sigmas."""
    predictions: Mapping[str, Prediction] = {"epsilon": "edm", "v_prediction": "edm_v_prediction"}
    kind = str(config.get("prediction_type", "epsilon"))
    schedule = str(config.get("sigma_schedule", "karras"))
    if kind not in predictions or schedule not in ("karras", "exponential"):
        raise UnsupportedModelError(
            f"scheduler_config.json has prediction_type = {kind!r} and sigma_schedule ="
            f" {schedule!r}; supported are epsilon or v_prediction, and karras or exponential"
        )
    return replace(
        settings,
        prediction=predictions[kind],
        schedule=schedule,
        sigma_min=_number(config, "sigma_min", 0.002),
        sigma_max=_number(config, "sigma_max", 80.0),
        sigma_data=_number(config, "sigma_data", 0.5),
        rho=_number(config, "rho", 7.0),
    )


def _of_range(config: Mapping[str, Any], settings: SchedulerSettings) -> SchedulerSettings:
    """Of a class that is told the logarithm of sigma: the velocity over a range (CosXL)."""
    if config.get("prediction_type") != "v_prediction":
        raise UnsupportedModelError(
            "scheduler_config.json has continuous timesteps with prediction_type ="
            f" {config.get('prediction_type')!r}; supported is v_prediction"
        )
    return replace(
        settings,
        prediction="edm_v_prediction",
        schedule=_converted(config) or "discrete",
        sigma_min=_number(config, "sigma_min", 0.002),
        sigma_max=_number(config, "sigma_max", 120.0),
    )


def _converted(config: Mapping[str, Any]) -> str | None:
    """The schedule that diffusers makes of a spacing's ends, if it does."""
    return next((s for key, s in _SIGMAS.items() if config.get(key) is True), None)


def checked(settings: SchedulerSettings) -> SchedulerSettings:
    """The settings themselves. Raises WeightsError for values that no model was trained with."""
    for name, value, low, high in (
        ("beta_start", settings.beta_start, 0.0, 1.0),
        ("beta_end", settings.beta_end, 0.0, 1.0),
        ("train_steps", settings.train_steps, 1, _MOST_STEPS),
        ("steps_offset", settings.steps_offset, -1, _MOST_STEPS),
        ("shift", settings.shift, 0.0, _LARGEST_SHIFT),
        ("base_shift", settings.base_shift, -_LARGEST_MU, _LARGEST_MU),
        ("max_shift", settings.max_shift, -_LARGEST_MU, _LARGEST_MU),
        ("base_tokens", settings.base_tokens, 0, settings.max_tokens),
        ("terminal", settings.terminal, 0.0, 1.0),
        ("multiplier", settings.multiplier, 0.0, _MOST_STEPS),
        ("sigma_max", settings.sigma_max, 0.0, _LARGEST_SIGMA),
        ("sigma_min", settings.sigma_min, 0.0, settings.sigma_max or _LARGEST_SIGMA),
        ("sigma_data", settings.sigma_data, 0.0, _LARGEST_SIGMA),
        ("rho", settings.rho, 0.99, 100.0),
    ):
        if value is None:
            continue
        if not isinstance(value, int | float):
            raise WeightsError(f"scheduler: {name} = {value!r}; expected a number or null")
        if not low < value < high:
            raise WeightsError(f"scheduler: {name} = {value!r}; expected between {low} and {high}")
    for name, text, choices in (
        ("prediction", settings.prediction, get_args(Prediction)),
        ("beta_kind", settings.beta_kind, BETA_KINDS),
        ("shift_form", settings.shift_form, SHIFT_FORMS),
    ):
        if text not in choices:
            raise UnsupportedModelError(
                f"scheduler: {name} = {text!r}; supported are {', '.join(choices)}"
            )
    for name, given, kind in (
        ("sampler", settings.sampler, str),
        ("schedule", settings.schedule, str),
        ("spacing", settings.spacing, str),
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
