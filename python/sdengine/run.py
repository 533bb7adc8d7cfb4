"""One generation's denoising, step by step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import _core
from .conditioning import Conditioning
from .errors import ParameterError
from .loading import ModelPlan
from .params import GenerateParameters

Array = NDArray[np.float32]


class Run:
    """Noise to latents: made from parameters and conditioning, advanced by :meth:`step`."""

    def __init__(
        self,
        denoiser: _core.Network,
        plan: ModelPlan,
        parameters: GenerateParameters,
        cond: Conditioning,
        latents: Array | None,
        token: _core.CancelToken,
    ) -> None:
        self._token = token
        settings = plan.scheduler
        levels = _core.NoiseLevels(
            settings.beta_kind,
            settings.beta_start,
            settings.beta_end,
            settings.train_steps,
            settings.rescale_zero_snr,
        )
        schedule = _core.Schedule(
            parameters.schedule, parameters.steps, levels, steps_offset=settings.steps_offset
        )
        noise = _core.NormalSource(parameters.seeds)
        factor = plan.latents.factor
        shape = [
            parameters.batch_size,
            plan.latents.channels,
            parameters.height // factor,
            parameters.width // factor,
        ]
        if latents is None:
            latents = noise.normal(shape)
        elif list(latents.shape) != shape:
            raise ParameterError(f"latents must have the shape {shape}, not {list(latents.shape)}")
        negative = {} if cond.negative_context is None else {"context": cond.negative_context}
        if parameters.guidance_scale == 1.0:
            negative = {}  # one evaluation a step instead of two
        self._run = _core.DenoiseRun(
            denoiser,
            sampler=parameters.sampler,
            x=latents * np.float32(schedule.initial_scale),
            schedule=schedule,
            levels=levels,
            prediction=settings.prediction,
            seeds=parameters.seeds,
            noise_state=noise.save(),
            positive={"context": cond.context},
            negative=negative,
            guidance_scale=parameters.guidance_scale,
            guidance_rescale=parameters.guidance_rescale,
            eta=parameters.eta,
        )

    def step(self) -> None:
        """Do one sampler step.

        Raises:
            NumericError: NaN or infinity appeared.
            Cancelled: the run was cancelled.
        """
        self._run.step(self._token)

    @property
    def done(self) -> bool:
        """True after the last step."""
        return self._run.done

    @property
    def index(self) -> int:
        """Steps done."""
        return self._run.index

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self._run.steps

    @property
    def sigma(self) -> float:
        """Noise level that the latents have now."""
        return self._run.sigma

    @property
    def latents(self) -> Array:
        """The sampler's state, float32 ``[N, C, h, w]``."""
        return self._run.latents

    @property
    def denoised(self) -> Array:
        """The last estimate of the clean latents, same shape."""
        return self._run.denoised
