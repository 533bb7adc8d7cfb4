"""Samplers and schedules on their own: numpy in, numpy out, over any denoiser.

``x = x0 + sigma * noise`` throughout; a denoiser is a function ``(x, sigma) -> estimate of x0``. See docs/sampling.md.
"""

from sdengine.sampling.names import (
    SAMPLER_ALIASES,
    SAMPLERS,
    SCHEDULE_ALIASES,
    SCHEDULES,
    resolve_names,
)
from sdengine.sampling.samplers import Denoiser, sample
from sdengine.sampling.schedules import sigmas

__all__ = [
    "SAMPLERS",
    "SAMPLER_ALIASES",
    "SCHEDULES",
    "SCHEDULE_ALIASES",
    "Denoiser",
    "resolve_names",
    "sample",
    "sigmas",
]
