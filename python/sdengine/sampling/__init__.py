"""Samplers and schedules on their own: numpy in, numpy out, over any denoiser.

``x = x0 + sigma * noise``, or ``(1 - sigma) * x0 + sigma * noise`` for a flow; a denoiser is a function
``(x, sigma) -> estimate of x0``. See docs/sampling.md.
"""

from sdengine._core import NoiseLevels, Prediction, Schedule
from sdengine.sampling.names import (
    SAMPLER_ALIASES,
    SAMPLERS,
    SCHEDULE_ALIASES,
    SCHEDULES,
    resolve_names,
)
from sdengine.sampling.samplers import Denoiser, sample
from sdengine.sampling.schedules import (
    PartialRun,
    dynamic_mu,
    ensemble_part,
    partial_run,
    sigmas,
)

__all__ = [
    "SAMPLERS",
    "SAMPLER_ALIASES",
    "SCHEDULES",
    "SCHEDULE_ALIASES",
    "Denoiser",
    "NoiseLevels",
    "PartialRun",
    "Prediction",
    "Schedule",
    "dynamic_mu",
    "ensemble_part",
    "partial_run",
    "resolve_names",
    "sample",
    "sigmas",
]
