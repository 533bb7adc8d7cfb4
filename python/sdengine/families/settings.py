"""How a model is sampled: latents, noise, prediction, and the values it was made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Prediction = Literal["epsilon", "v_prediction", "sample", "edm", "edm_v_prediction", "flow"]
"""What the denoiser predicts: the noise, the velocity, or the clean latents; what Karras et al. (arXiv 2206.00364,
table 1) mix with its input, with the sign of the noise or of the velocity; or the flow from clean latents to noise."""


@dataclass(frozen=True)
class LatentFormat:
    """What lies between pictures and the denoiser: model latents are (z - shift) * scale.

    With a mean and deviation per channel they are (z - mean) * scale / deviation.
    """

    channels: int
    scale: float
    shift: float
    factor: int
    """Pixels per latent along each axis."""
    mean: tuple[float, ...] = ()
    """Per channel; empty for none."""
    deviation: tuple[float, ...] = ()
    """Per channel; empty for none."""


@dataclass(frozen=True)
class Betas:
    """Noise variances of the training steps."""

    kind: Literal["scaled_linear", "linear", "squaredcos_cap_v2"]
    """As diffusers names them; "scaled_linear" are the squares of evenly spaced roots."""
    start: float
    end: float
    count: int = 1000
    """Number of training timesteps."""
    steps_offset: int = 0
    """What diffusers adds to timesteps with "leading" spacing."""


@dataclass(frozen=True)
class Flow:
    """How a flow model shifts its times, of 0 to 1, towards noise."""

    shift: float = 1.0
    """The same for every size: sigma = shift * t / (1 + (shift - 1) * t). Unused where it is dynamic."""
    dynamic: bool = False
    """mu, the logarithm of the shift, is linear in the number of image tokens."""
    base_shift: float = 0.5
    """mu at `base_tokens`."""
    max_shift: float = 1.15
    """mu at `max_tokens`."""
    base_tokens: int = 256
    max_tokens: int = 4096
    terminal: float | None = None
    """The last sigma above 0, to which the schedule is stretched."""
    multiplier: float = 1000.0
    """The denoiser is told sigma times this."""


@dataclass(frozen=True)
class References:
    """How the pictures that an editing model looks at are brought to size."""

    sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of the training pictures: the one of nearest shape is taken."""
    area: int = 1024 * 1024
    """Pixels, where there are no such sizes: the picture keeps its shape."""
    multiple: int = 16
    """Both sides are multiples of it."""
    most: int = 9
    """Pictures that the network takes."""


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
    strength: float = 0.75
    """How much of a given picture is changed (A1111, stable-diffusion.cpp); where a part of it is repainted it is 1."""
    timesteps: tuple[int, ...] | None = None
    """Training timesteps to visit, instead of the schedule's, when the steps are as many."""
    eta: float | None = None
    """Noise of the sampler; None is the sampler's own."""
    shift: float | None = None
    """Time shift of a flow model, the same for every size; None is the scheduler's."""
