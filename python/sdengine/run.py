"""One generation, step by step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import _core, images, step_cache
from .adapters import Lora
from .branches import Phases
from .checks import check_number
from .control_options import ControlInput
from .devices import peak_memory
from .errors import ParameterError
from .hires import Plan
from .masks import pasted
from .options import checked_latents
from .params import SEAMLESS, GenerateParameters
from .results import Result
from .steps import Steps, plan_steps
from .tasks import Pictures, Start, noise_seeds

if TYPE_CHECKING:
    from .loading import ModelPlan
    from .pipeline import Pipeline

Array = NDArray[np.float32]

MAX_SIGMA = 1e6
"""More noise than any model knows."""


@dataclass(frozen=True)
class RunInputs:
    """All that a run depends on besides the model, in plain values and numpy."""

    parameters: GenerateParameters
    phases: Phases
    start: Start
    pictures: Pictures
    tile: int | None
    loras: tuple[Lora, ...] = ()
    controls: Sequence[ControlInput] = ()
    second: Plan | None = None
    """What a hires pass after this one needs."""
    described: Sequence[dict[str, object]] = ()
    """The generation parameters, where another run began."""
    together: int = 0
    """Entries (a picture under a condition) of the largest batch; 0 for any number."""


@dataclass
class Times:
    """Seconds spent so far."""

    encode: float = 0.0
    steps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class FirstPass:
    """What a hires pass goes on from.

    Attributes:
        described: the generation parameters of each picture.
        times: of the run so far.
        clean: float32 ``[N, C, h, w]``, the enlarged latents; None where the enlarged picture is given as ``image``.
    """

    described: Sequence[dict[str, object]]
    times: Times
    clean: Array | None


class Run:
    """One generation, made by :meth:`sdengine.Pipeline.start` and advanced by :meth:`step`.

    A run can be pickled between steps and goes on bit for bit where it is read, in another process too: the model is
    loaded again from where it was.

    Attributes:
        parameters: of the generation.
        times: seconds spent so far; in a hires pass those of the first pass too.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        inputs: RunInputs,
        times: Times | None = None,
        token: _core.CancelToken | None = None,
    ) -> None:
        self.parameters = inputs.parameters
        self._pipeline, self._inputs = pipeline, inputs
        self._token = token or _core.CancelToken()
        self.times = times or Times()
        self._native = self._made()

    def _made(self) -> _core.DenoiseRun:
        plan, parameters, start = self._pipeline.model, self.parameters, self._inputs.start
        steps: Steps = plan_steps(plan, parameters)
        blend = start.blend
        native = {
            id(branches): [branch.native() for branch in branches]
            for branches in {id(b): b for _, b in self._inputs.phases}.values()
        }
        return _core.DenoiseRun(
            self._pipeline.denoiser,
            sampler=parameters.sampler,
            x=start.x,
            schedule=steps.schedule,
            levels=steps.levels,
            prediction=steps.prediction,
            seeds=noise_seeds(parameters),
            noise=parameters.noise,
            noise_state=start.noise_state,
            phases=[(until, native[id(branches)]) for until, branches in self._inputs.phases],
            guidance=parameters.guidance.native(_token_side(plan, parameters)),
            blend=None
            if blend is None
            else (blend.original, blend.noise, blend.mask, blend.differential),
            eta=parameters.eta,
            s_noise=parameters.s_noise,
            brownian=parameters.brownian,
            order=parameters.order,
            churn=(parameters.s_churn, parameters.s_tmin, parameters.s_tmax),
            options={"circular": SEAMLESS[parameters.seamless]},
            together=self._inputs.together,
            controls=[
                self._pipeline.controls[control.net].native(
                    control, parameters.batch_size, SEAMLESS[parameters.seamless]
                )
                for control in self._inputs.controls
            ],
            tiles=None
            if parameters.tiled_diffusion is None
            else parameters.tiled_diffusion.figures,
            cache=step_cache.figures(
                *(parameters.cache, self._pipeline.denoiser.reuse),
                *(steps.schedule.steps, self._inputs.loras),
            ),
        )

    # ------------------------------------------------------------------------------------- steps
    def step(self) -> None:
        """Do one sampler step.

        Raises:
            NumericError: NaN or infinity appeared; the message names the step.
            Cancelled: the run was cancelled. It can go on after :meth:`fork` or pickling.
        """
        before = time.perf_counter()
        adapters, loras = self._pipeline.adapters, self._inputs.loras
        with self._pipeline.running(self._token), adapters.applied(loras, self.index, self.steps):
            self._native_step()
        self.times.steps.append(time.perf_counter() - before)

    def _native_step(self) -> None:
        """One step, in smaller batches where memory runs out; the state is as before until it is done."""
        memory = self._pipeline.memory
        while True:
            try:
                return self._native.step(self._token)
            except MemoryError:
                most = max(len(branches) for _, branches in self._inputs.phases)
                entries = most * self.parameters.batch_size
                networks = [self._pipeline.model.family.denoiser]
                networks += [f"control_{control.net}" for control in self._inputs.controls]
                together = None
                if memory is not None:
                    before = self._inputs.together
                    together = memory.smaller_steps(before, entries, tuple(networks))
                if together is None:
                    raise
                self._inputs = replace(self._inputs, together=together)
                state = self._native.save()
                self._native = self._made()
                self._native.restore(state)

    def cancel(self) -> None:
        """Stop the step that is running in another thread, and refuse further ones."""
        self._token.cancel()

    def fork(self) -> Run:
        """A copy that goes its own way from here."""
        return self._restored(self._pipeline, self._inputs, self._native.save(), self.times)

    @property
    def inputs(self) -> RunInputs:
        """All that it depends on besides the model."""
        return self._inputs

    @property
    def done(self) -> bool:
        """True after the last step."""
        return self._native.done

    @property
    def index(self) -> int:
        """Steps done."""
        return self._native.index

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self._native.steps

    @property
    def sigma(self) -> float:
        """Noise level that the latents have now."""
        return self._native.sigma

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser so far; branches in one batch count as one."""
        return self._native.evaluations

    @property
    def reused(self) -> float:
        """Part of these evaluations, 0 to 1, that took most over from an earlier one (the option ``cache``)."""
        pictures = max(1, self._native.evaluations * self.parameters.batch_size)
        return self._native.reused / pictures

    @property
    def latents(self) -> Array:
        """The sampler's state, float32 ``[N, C, h, w]``. May be set, to another state of this noise level."""
        return self._native.latents

    @latents.setter
    def latents(self, values: Array) -> None:
        given = checked_latents("latents", values)
        if given.shape != self._native.latents.shape:
            raise ParameterError(
                f"latents must have the shape {list(self._native.latents.shape)}, not {list(given.shape)}"
            )
        self._native.set_latents(given)

    @property
    def denoised(self) -> Array:
        """The last estimate of the clean latents, same shape."""
        return self._native.denoised

    def preview(self, method: str | None = None, *, noisy: bool = False) -> list[Image.Image]:
        """Pictures of :attr:`denoised`, one per picture of the batch; see :meth:`sdengine.Pipeline.preview`.

        Args:
            method: ``"linear"``, ``"tiny"`` or ``"full"``; None takes the best that is quick.
            noisy: of :attr:`latents` instead, the state of the sampler, scaled to the spread of clean latents.

        Raises:
            ParameterError: the model has no such preview.
        """
        if noisy:
            return self.preview_of(self.latents, method, sigma=self.sigma)
        return self.preview_of(self.denoised, method)

    def preview_of(
        self, latents: Array, method: str | None = None, *, sigma: float = 0.0
    ) -> list[Image.Image]:
        """Pictures of a state of this run, of an earlier step say; see :meth:`preview`.

        Args:
            latents: float32 ``[N, C, h, w]``, clean or with noise.
            method: as for :meth:`preview`.
            sigma: level of the noise in them.

        Raises:
            ParameterError: as :meth:`preview`; or `sigma` is negative.
        """
        check_number("sigma", sigma, 0.0, MAX_SIGMA)
        if sigma > 0.0:
            scale = plan_steps(self._pipeline.model, self.parameters).prediction.input_scale
            latents = latents * np.float32(scale(sigma) / scale(0.0))
        return self._pipeline.preview(
            latents, method, seamless=self.parameters.seamless, tile=self._inputs.tile
        )

    # ------------------------------------------------------------------------------------ passes
    def next_pass(self) -> Run | None:
        """The run that follows when this one is done: the hires pass, or None where none was asked for.

        ``generate`` is a loop over both. What :meth:`result` gives before is the small picture.

        Raises:
            ParameterError: this run is not done.
            SDEngineError: as those of :meth:`sdengine.Pipeline.start`, of the upscaler and the autoencoder.
        """
        plan = self._inputs.second
        if plan is None:
            return None
        if not self.done:
            raise ParameterError(
                f"{self.index} of {self.steps} steps are done; the hires pass begins after the last"
            )
        with self._pipeline.running(self._token) as token:
            return self._pipeline.second_pass(self, self._inputs, token)

    @property
    def is_hires(self) -> bool:
        """True for the second pass of a generation."""
        return self.parameters.in_hires

    # ------------------------------------------------------------------------------------ result
    def result(self) -> Result:
        """Decode the latents as they are now.

        Raises:
            NumericError: the autoencoder produced NaN or infinity.
        """
        before = time.perf_counter()
        latents = self.latents
        # Decoding is when most memory is taken; the denoiser's part of it is not needed now.
        self._pipeline.denoiser.rest()
        for control in self._pipeline.controls:
            control.rest()
        with self._pipeline.running(self._token):
            decoded = self._pipeline.vae.decode(
                latents,
                self._inputs.tile,
                self._token,
                circular=SEAMLESS[self.parameters.seamless],
            )
        pictures = images.to_pil(decoded)
        if self._inputs.pictures.frames:
            pictures = pasted(pictures, self._inputs.pictures.frames)
        decode, denoise = time.perf_counter() - before, sum(self.times.steps)
        return Result(
            images=pictures,
            seeds=self.parameters.seeds,
            latents=latents,
            timings={
                "encode": self.times.encode,
                "denoise": denoise,
                "decode": decode,
                "total": self.times.encode + denoise + decode,
                "per_step": denoise / max(1, len(self.times.steps)),
            },
            peak_memory=peak_memory(),
            metadata=self.metadata(),
        )

    def metadata(self) -> list[dict[str, object]]:
        """The generation parameters, one dict per picture; :mod:`sdengine.metadata` writes them as text.

        Before the hires pass they are those of the small picture, after it those of both passes.
        """
        if self._inputs.described:
            return [dict(one) for one in self._inputs.described]
        return self._described(replace(self.parameters, hires=None))

    @property
    def described(self) -> list[dict[str, object]]:
        """As :meth:`metadata`, with the hires pass that is to follow."""
        return self.metadata() if self.is_hires else self._described(self.parameters)

    def _described(self, parameters: GenerateParameters) -> list[dict[str, object]]:
        plan, pictures = self._pipeline.model, self._inputs.pictures
        of_each = parameters.metadata(
            plan.path.stem, pictures.task(plan.task), pictures.resize_mode
        )
        if pictures.frames and not self.parameters.only_masked:
            height, width = pictures.frames[0].mask.shape
            of_each = [{**one, "width": width, "height": height} for one in of_each]
        if self._pipeline.source.arithmetic == "fast":
            of_each = [{**one, "arithmetic": "fast"} for one in of_each]
        if not self._inputs.loras:
            return of_each
        named = ", ".join(str(lora) for lora in self._inputs.loras)
        return [{**one, "applied_loras": named} for one in of_each]

    # ---------------------------------------------------------------------------------- pickling
    @classmethod
    def _restored(cls, pipeline: Pipeline, inputs: RunInputs, state: bytes, times: Times) -> Run:
        run = cls(pipeline, inputs, Times(times.encode, [*times.steps]))
        run._native.restore(state)
        return run

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._pipeline.source, self._inputs, self._native.save(), self.times)


def _unpickled(source: Any, inputs: RunInputs, state: bytes, times: Times) -> Run:
    return Run._restored(source.open(), inputs, state, times)


def _token_side(plan: ModelPlan, parameters: GenerateParameters) -> int:
    """Side in latents of the tokens whose norms guidance keeps; 0 where it keeps none."""
    return plan.family.patch if parameters.guidance.norms == "token" else 0
