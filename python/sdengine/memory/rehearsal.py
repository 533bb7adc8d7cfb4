"""A generation gone through without computing, to learn what its networks will be asked.

The rehearsal is the generation's own code over networks that build graphs and answer with noise
(``Network.rehearsal``), so that control networks, tiles, references, kinds of guidance and further passes are all in
it. No weight is read.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sdengine import _core
from sdengine.adapters import Lora, Loras
from sdengine.errors import NumericError, UnwiseWarning
from sdengine.hires import LATENT
from sdengine.memory.kept import plainly
from sdengine.options import Texts
from sdengine.run import Run, RunInputs

if TYPE_CHECKING:
    from sdengine.pipeline import Pipeline

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Asked:
    """One evaluation.

    Attributes:
        shapes: of its inputs.
        options: of its graph.
        steady: inputs that are the same at every step.
        kept: graphs that the network was to keep.
    """

    shapes: Shapes
    options: Mapping[str, int]
    steady: Sequence[str]
    kept: int

    @property
    def key(self) -> tuple[object, ...]:
        """The same for evaluations that one graph can do."""
        shapes = tuple((name, tuple(dims)) for name, dims in sorted(self.shapes.items()))
        return shapes, tuple(sorted(self.options.items())), tuple(self.steady)


@dataclass(frozen=True)
class Work:
    """What one network is asked during a stage, in order; equal neighbours are told once."""

    component: str
    network: _core.Network
    asked: tuple[Asked, ...]


class _AppliedOutside(Loras):
    """The pipeline's adapters during a rehearsal: at its steps those of the first one stay."""

    def __init__(self, real: Loras) -> None:
        self.__dict__ = real.__dict__

    @contextmanager
    def applied(
        self, loras: Sequence[Lora], step: int | None = None, steps: int = 1
    ) -> Iterator[None]:
        """As :meth:`Loras.applied`; nothing at a step."""
        with super().applied(loras) if step is None else nullcontext():
            yield


class Rehearsal:
    """A pipeline whose networks only tell what they were asked."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.real = pipeline
        self._networks: dict[str, tuple[_core.Network, _core.Network]] = {}
        self.pipeline = self._twin(pipeline)

    def begin(
        self, prompt: Texts | None, negative_prompt: Texts | None, options: Mapping[str, Any]
    ) -> RunInputs:
        """A generation rehearsed up to its first step.

        Raises:
            ParameterError: as those of :meth:`sdengine.Pipeline.generate`.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnwiseWarning)
            return self.pipeline.start(prompt, negative_prompt, **options).inputs

    def before_steps(self) -> list[Work]:
        """What texts, given pictures and hints asked of their networks, in order."""
        return self._works({})

    def hints(self, inputs: RunInputs) -> list[Work]:
        """What control networks make of their pictures before the first step of a run."""
        marks = self._marks()
        Run(self.pipeline, inputs)
        return self._works(marks)

    def steps(self, inputs: RunInputs, together: int = 0) -> list[Work]:
        """What the denoiser and the control networks are asked in all steps of a run.

        Args:
            inputs: of the run.
            together: entries that a batch may hold at most; 0 for any number.
        """
        run = Run(self.pipeline, replace(inputs, together=together))
        marks = self._marks()
        self._stepped(run)
        return self._works(marks)

    def second(self, inputs: RunInputs) -> RunInputs | None:
        """The inputs of the pass that follows a run; None where none does."""
        if inputs.second is None:
            return None
        run = self._stepped(Run(self.pipeline, replace(inputs, together=1)))
        wanted = run.parameters.hires
        assert wanted is not None
        if wanted.upscaler not in LATENT:
            # A network that enlarges is a scene of its own.
            run.parameters = replace(run.parameters, hires=replace(wanted, upscaler="lanczos"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnwiseWarning)
            following = run.next_pass()
        return None if following is None else following.inputs

    def _stepped(self, run: Run) -> Run:
        """The run, done."""
        with self.real.adapters.applied(run.inputs.loras, 0, run.steps):
            try:
                while not run.done:
                    run.step()
            except NumericError:  # noise led the sampler astray; every shape was asked for by then
                pass
        return run

    def _marks(self) -> dict[str, int]:
        """How much every network was asked so far."""
        return {name: len(twin.rehearsed) for name, (_, twin) in self._networks.items()}

    def _works(self, marks: Mapping[str, int]) -> list[Work]:
        """What was asked of every network from its mark on."""
        works = []
        for component, (real, twin) in self._networks.items():
            asked = [Asked(*one) for one in twin.rehearsed[marks.get(component, 0) :]]
            changed = [
                now for before, now in zip([None, *asked], asked, strict=False) if before != now
            ]
            if changed:
                works.append(Work(component, real, tuple(changed)))
        return works

    def _twin(self, real: Pipeline) -> Pipeline:
        """A copy of the pipeline over rehearsed networks."""
        twin = copy.copy(real)
        twin.memory = None
        twin.adapters = _AppliedOutside(real.adapters)
        twin.text_encoders = copy.copy(real.text_encoders)
        twin.text_encoders.cache = None
        twin.text_encoders.encoders = tuple(map(self._encoder, real.text_encoders.encoders))
        if real.image_prompt is not None:
            twin.image_prompt = copy.copy(real.image_prompt)
            twin.image_prompt.encoder = self._rehearsed("image_encoder", real.image_prompt.encoder)
            projection = real.image_prompt.projection
            twin.image_prompt.projection = self._rehearsed("image_projection", projection)
        twin.vae = copy.copy(real.vae)
        twin.vae.kept = twin.text_encoders.kept = plainly
        twin.vae.most_encoding = sys.maxsize  # its tiles are chosen later
        twin.vae.encoder = self._rehearsed("vae_encoder", real.vae.encoder)
        twin.vae.decoder = self._rehearsed("vae_decoder", real.vae.decoder)
        twin.controls = [copy.copy(control) for control in real.controls]
        for i, control in enumerate(twin.controls):
            control.network = self._rehearsed(f"control_{i}", control.network)
        twin.denoiser = self._rehearsed(real.model.family.denoiser, real.denoiser)
        return twin

    def _encoder(self, encoder: Any) -> Any:
        twin = copy.copy(encoder)
        eyes = getattr(encoder, "eyes", None)
        if eyes is not None:
            twin.eyes = copy.copy(eyes)
            twin.eyes.network = self._rehearsed(encoder.use.sight.component, eyes.network)
        if encoder.network is not None:
            twin.network = self._rehearsed(encoder.use.component, encoder.network)
        return twin

    def _rehearsed(self, component: str, network: _core.Network) -> _core.Network:
        twin = network.rehearsal()
        self._networks[component] = network, twin
        return twin
