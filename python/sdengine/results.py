"""What a generation gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Result:
    """Pictures, and the parameters that made them.

    Attributes:
        images: one PIL picture per batch entry.
        seeds: the seed of each picture.
        latents: float32 ``[N, C, H / 8, W / 8]``, scaled as the denoiser sees them.
        timings: seconds per stage: ``encode``, ``denoise``, ``decode``, ``total``, and the mean
            ``per_step``.
        peak_memory: largest resident memory of the process so far, in bytes (0 where the system does not tell).
        metadata: the generation parameters, one dict per picture; ``sdengine.metadata`` writes them as text.
    """

    images: list[Image.Image]
    seeds: list[int]
    latents: NDArray[np.float32]
    timings: dict[str, float]
    peak_memory: int
    metadata: list[dict[str, object]] = field(default_factory=list)

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]
