"""How a model is sampled: latents, noise, prediction, and the values it was made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Prediction = Literal["epsilon", "v_prediction", "sample"]
"""What the denoiser predicts: the noise, the velocity, or the clean latents."""


@dataclass(frozen=True)
class LatentFormat:
    """What lies between pictures and the denoiser: model latents are (z - shift) * scale."""

    channels: int
    scale: float
    shift: float
    factor: int
    """Pixels per latent along each axis."""


@dataclass(frozen=True)
class Betas:
    """Noise variances of the training steps."""

    kind: Literal["scaled_linear", "linear", "squaredcos_cap_v2"]
    """As diffusers names them; "scaled_linear" are the squares of evenly spaced roots."""
    start: float
    end: float
    count: int = 1000
    """Number of training timesteps."""


@dataclass(frozen=True)
class Defaults:
    """What a model uses where the caller says nothing."""

    width: int
    height: int
    """Pixels."""
    steps: int
    guidance: float
    sampler: str
    schedule: str
