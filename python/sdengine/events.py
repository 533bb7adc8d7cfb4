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
        hires: True in the hires pass, whose steps are counted from 1 again.
    """

    step: int
    steps: int
    sigma: float
    latents: NDArray[np.float32]
    denoised: NDArray[np.float32]
    seconds: float
    run: Run
    hires: bool = False

    @classmethod
    def of(cls, run: Run, seconds: float) -> StepEvent:
        """The step that `run` has just done."""
        return cls(
            run.index, run.steps, run.sigma, run.latents, run.denoised, seconds, run, run.is_hires
        )

    def preview(self, method: str | None = None, *, noisy: bool = False) -> list[Image.Image]:
        """Pictures of this step, made when this is called, also later; see :meth:`sdengine.Run.preview`."""
        if noisy:
            return self.run.preview_of(self.latents, method, sigma=self.sigma)
        return self.run.preview_of(self.denoised, method)

    def cancel(self) -> None:
        """Stop after this step; ``generate`` raises :class:`sdengine.Cancelled`."""
        self.run.cancel()


Callback = Callable[[StepEvent], None]
"""Called after every step, in the thread that called ``generate``. An exception in it ends the run and comes out."""
