"""A model's scheduler settings as the native objects that a run needs."""

from __future__ import annotations

import math

from . import _core
from .loading import SchedulerSettings
from .sampling.schedules import RANGES, dynamic_mu

CONVERTED = ("karras", "exponential", "beta_sigmas")
"""Schedules whose ends diffusers takes from the model's timestep spacing."""


def noise_levels(
    settings: SchedulerSettings, tokens: int, *, nearest: bool = False
) -> _core.NoiseLevels:
    """The noise levels that the model was trained at.

    Args:
        settings: of the model.
        tokens: of the picture in the denoiser, at least 1; a dynamic shift depends on them.
        nearest: between training timesteps the network is told the nearest one, as ComfyUI does.

    Raises:
        ParameterError: a picture of so many tokens would be shifted beyond what a schedule can tell apart.
    """
    if settings.prediction == "flow":
        return _core.NoiseLevels.flow(
            _shift(settings, tokens), settings.train_steps, settings.multiplier
        )
    if settings.prediction in RANGES:
        low, high = RANGES[settings.prediction]
        return _core.NoiseLevels.edm(
            settings.sigma_min or low, settings.sigma_max or high, settings.train_steps
        )
    return _core.NoiseLevels(
        settings.beta_kind,
        settings.beta_start,
        settings.beta_end,
        settings.train_steps,
        settings.rescale_zero_snr,
        nearest,
    )


def make_schedule(
    settings: SchedulerSettings,
    name: str,
    steps: int,
    levels: _core.NoiseLevels,
    rho: float | None = None,
) -> _core.Schedule:
    """A named schedule over the model's levels; the publisher's own is made exactly as theirs.

    Raises:
        ParameterError: the schedule is not defined for the model or so many steps.
    """
    own = name == settings.schedule
    return _core.Schedule(
        name,
        steps,
        levels,
        rho if rho is not None or not own else settings.rho,
        settings.steps_offset,
        spacing=settings.spacing if own and name in CONVERTED and settings.spacing else "",
        terminal=settings.terminal if levels.kind == "flow" else None,
        multistep=own and settings.multistep,
    )


def make_prediction(
    settings: SchedulerSettings, boundary: _core.NoiseLevels | None = None
) -> _core.Prediction:
    """What the model's output means; `boundary` are the levels of a latent consistency model."""
    return _core.Prediction(settings.prediction, settings.sigma_data, boundary)


def _shift(settings: SchedulerSettings, tokens: int) -> float:
    if not settings.dynamic_shift:
        return 1.0 if settings.shift is None else settings.shift
    number = dynamic_mu(
        tokens,
        settings.base_shift,
        settings.max_shift,
        settings.base_tokens,
        settings.max_tokens,
    )
    return number if settings.shift_form == "linear" else math.exp(min(number, 100.0))
