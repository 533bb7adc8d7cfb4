"""Which noise levels one generation visits, by the model's settings and the caller's parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from . import _core, sampling
from .loading import ModelPlan, SchedulerSettings
from .noise_levels import make_prediction, make_schedule, noise_levels
from .params import GenerateParameters

# A schedule starts at the largest sigma if it is this close to it (ComfyUI's test).
_SAME_SIGMA = 1e-5
# Samplers that are written over sqrt(abar) x0 + sqrt(1 - abar) noise, everywhere and in diffusers.
_OVER_ABAR = ("ddim", "ddpm", "lcm", "tcd")
_OVER_ABAR_IN_DIFFUSERS = (
    *("dpm++2m", "dpm++2m_sde", "dpm++2s_a", "deis", "unipc_bh1", "unipc_bh2"),
)


@dataclass(frozen=True)
class Steps:
    """The steps of one run.

    Attributes:
        schedule: the noise levels that are visited; those of a part for a run that starts later or stops earlier.
        levels: the model's own.
        prediction: what the network's output means.
        initial_scale: standard deviation of the first latents where they are noise alone.
    """

    schedule: _core.Schedule
    levels: _core.NoiseLevels
    prediction: _core.Prediction
    initial_scale: float


def plan_steps(plan: ModelPlan, parameters: GenerateParameters) -> Steps:
    """The steps of a run.

    Raises:
        ParameterError: the schedule is not defined for this model, or nothing is left to do.
    """
    settings, conventions = plan.scheduler, parameters.conventions
    if parameters.shift is not None:  # the same for every size, and nothing on top of it
        settings = replace(settings, shift=parameters.shift, dynamic_shift=False, terminal=None)
    factor = plan.latents.factor * plan.family.patch
    width, height = parameters.seen
    tokens = (height // factor) * (width // factor)
    levels = noise_levels(settings, tokens, nearest=conventions.timestep == "nearest")
    steps, kept = parameters.steps, None
    if parameters.strength < 1.0:
        flow = levels.kind == "flow" and conventions.strength == "diffusers"
        # A1111's hires pass does all steps that it is given.
        exact = parameters.in_hires and conventions.strength == "a1111"
        convention = "diffusers-flow" if flow else "a1111-exact" if exact else conventions.strength
        partial = sampling.partial_run(steps, parameters.strength, convention)
        steps, kept = partial.steps, partial.kept
    whole = _whole(settings, levels, parameters, steps)
    if kept is not None and (parameters.sigmas or parameters.timesteps):
        kept = sampling.partial_run(whole.steps, parameters.strength, "diffusers").kept
    first, last = sampling.ensemble_part(
        whole.timesteps, len(levels), parameters.denoising_start, parameters.denoising_end
    )
    if kept is not None:
        first = max(first, whole.steps - kept)
    schedule = whole.part(first, last) if (first, last) != (0, whole.steps) else whole
    # Models distilled to consistency with guidance as an input (Luo et al. 2023).
    boundary = levels if levels.kind == "betas" and plan.reads_guidance else None
    return Steps(
        schedule,
        levels,
        make_prediction(settings, boundary),
        _initial_scale(schedule, levels, parameters),
    )


def _whole(
    settings: SchedulerSettings,
    levels: _core.NoiseLevels,
    parameters: GenerateParameters,
    steps: int,
) -> _core.Schedule:
    if parameters.sigmas is not None:
        return _core.Schedule.from_sigmas(list(parameters.sigmas), levels)
    if parameters.timesteps is not None:
        return _core.Schedule.from_timesteps(list(parameters.timesteps), levels)
    return make_schedule(settings, parameters.schedule, steps, levels)


def _initial_scale(
    schedule: _core.Schedule, levels: _core.NoiseLevels, parameters: GenerateParameters
) -> float:
    """Noise that starts at the largest sigma has deviation sigma, or that of noisy latents of variance 1.

    The latter, sqrt(sigma^2 + 1), is how ComfyUI starts, and how samplers start that are written over
    sqrt(abar) x0 + sqrt(1 - abar) noise.
    """
    sigma, rule = float(schedule.sigmas[0]), parameters.conventions.initial_scale
    full = {
        "sqrt1p": True,
        "sigma": False,
        "scheduler": parameters.sampler in _OVER_ABAR
        or (parameters.compat == "diffusers" and parameters.sampler in _OVER_ABAR_IN_DIFFUSERS),
    }[rule]
    # diffusers' schedulers begin so at whatever timestep they are told to begin.
    whole = abs(levels.sigma_max - sigma) < _SAME_SIGMA * sigma
    whole |= rule == "scheduler" and parameters.timesteps is not None
    if full and levels.kind == "betas" and whole:
        return math.sqrt(sigma * sigma + 1.0)
    return sigma if rule == "sigma" else float(schedule.initial_scale)
