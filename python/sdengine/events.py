"""What a callback is told while a generation runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

    from .run import Run


@dataclass(frozen=True)
class StepEvent:
    """One finished sampling step.

    Attributes:
        step: 1 for the first.
        steps: how many there will be.
        sigma: noise level that the latents have now (0 after the last step).
        latents: float32 ``[N, C, H / 8, W / 8]``, the state of the sampler.
        denoised: float32, same shape: the picture that the denoiser believes in at this step, as latents.
        seconds: time since the first step began.
        run: the run itself, to be forked or pickled.
    """

    step: int
    steps: int
    sigma: float
    latents: NDArray[np.float32]
    denoised: NDArray[np.float32]
    seconds: float
    run: Run

    @classmethod
    def of(cls, run: Run, seconds: float) -> StepEvent:
        """The step that `run` has just done."""
        return cls(run.index, run.steps, run.sigma, run.latents, run.denoised, seconds, run)

    def preview(self) -> list[Image.Image]:
        """Small pictures of :attr:`denoised`; see :meth:`sdengine.Pipeline.preview`."""
        return self.run.preview()

    def cancel(self) -> None:
        """Stop after this step; ``generate`` raises :class:`sdengine.Cancelled`."""
        self.run.cancel()


Callback = Callable[[StepEvent], None]
"""Called after every step, in the thread that called ``generate``. An exception in it ends the run and comes out."""
