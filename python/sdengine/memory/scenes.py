"""Stages of generations, each with the ways to run it, the fastest first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from sdengine.autoencoder import TILES, picture_bytes
from sdengine.upscalers.upscaler import TILES as SIDES

from .footprint import RESIDENT, Stage, part_of
from .rehearsal import Asked, Rehearsal, Work

if TYPE_CHECKING:
    from sdengine import _core
    from sdengine.autoencoder import Autoencoder
    from sdengine.run import RunInputs
    from sdengine.upscalers import Upscaler

_GIVEN_COPIES = 3
"""Times that a given picture is in memory while it is encoded: as it was read, centred, cut."""
_STATE_COPIES = 12
"""Times that latents are in memory during a step: the sampler's states and the network's inputs and outputs."""
_CONDITION_COPIES = 2
"""Times that what goes into a step beside the latents is in memory once more than when the step was rehearsed: as the
network's input, and as it was at the latest step, to see what has changed."""
_ENLARGED_BYTES = 2 * 3 * 4 + 4 + 3 * 3
"""Per pixel of an enlarged picture: twice in float32 (a tile or the whole from the network, and what it goes into), the
tiles' weights, and three times in bytes."""
_PLAIN: dict[str, int] = {"circular": 0}


@dataclass(frozen=True)
class Way:
    """One way to run a stage.

    Attributes:
        stage: what it takes.
        together: entries of a batch; None where the stage has no batches.
        tile: side of the autoencoder's tiles in latents, 0 for whole pictures; None where there are none.
        pieces: bytes of activations of the autoencoder.
    """

    stage: Stage
    together: int | None = None
    tile: int | None = None
    pieces: int | None = None


@dataclass
class Scene:
    """A stage that is to be run.

    Attributes:
        name: of the stage.
        components: whose weights it needs.
        device: where they run.
    """

    name: str
    components: tuple[str, ...]
    device: _core.Device
    known: dict[tuple[object, ...], Way] = field(default_factory=dict)

    def counts(self) -> Sequence[int | None]:
        """How finely it can be cut, coarsest first."""
        return (None,)

    def works(self, count: int | None) -> list[Work]:
        """What its networks are asked when it is cut so."""
        raise AssertionError(self.name)

    def repeats(self, count: int | None) -> bool:
        """Whether its networks run many times, so that it pays when weights stay that could come each time."""
        return False

    def way(self, policy: str, count: int | None, keep: int = 0) -> Way:
        """One way, `keep` bytes of whose weights stay where they would stream; figured out once."""
        key = policy, count, keep
        if key not in self.known:
            self.known[key] = self._way(policy, count, keep)
        return self.known[key]

    def ways(self, policies: Sequence[str]) -> Iterator[Way]:
        """All ways, the fastest first: cutting costs less than streaming."""
        for policy in policies:
            for count in self.counts():
                yield self.way(policy, count)

    @cached_property
    def weights(self) -> dict[str, int]:
        """Bytes on the device of each component when all of it is there."""
        stage = self.way(RESIDENT, self.counts()[0]).stage
        return {part.component: part.weights for part in stage.parts}

    def _stage(self, policy: str, count: int | None, keep: int, arrays: int) -> Stage:
        own = self.device.has_own_memory
        whole = self.weights if keep else {}
        parts = []
        for work in self.works(count):
            of_part = whole.get(work.component, 0)
            its = keep * of_part // max(sum(whole.values()), 1)  # the same share of each
            parts.append(part_of(work, policy, own, min(its, of_part), of_part))
        return Stage(self.name, tuple(parts), self.device.name, own, arrays)

    def _way(self, policy: str, count: int | None, keep: int) -> Way:
        return Way(self._stage(policy, count, keep, 0))


@dataclass
class Reading(Scene):
    """A text encoder or another network that reads what was given."""

    work: Work | None = None
    given: int = 0
    """Bytes of control pictures, with copies."""

    def works(self, count: int | None) -> list[Work]:
        """The one."""
        assert self.work is not None
        return [self.work]

    def _way(self, policy: str, count: int | None, keep: int) -> Way:
        return Way(self._stage(policy, count, keep, self.given))


@dataclass
class Denoising(Scene):
    """The steps of a pass."""

    rehearsal: Rehearsal | None = None
    inputs: RunInputs | None = None
    given: int = 0
    """Bytes of control pictures."""

    def repeats(self, count: int | None) -> bool:
        """At every step."""
        return True

    @cached_property
    def entries(self) -> int:
        """Pictures times branches of the largest batch that the run has by itself."""
        return max(asked.shapes["latents"][0] for work in self._denoiser(0) for asked in work.asked)

    def counts(self) -> Sequence[int | None]:
        """All entries in one batch; those of one branch; halves of them, down to single ones."""
        assert self.inputs is not None
        counts, size = [0], self.inputs.parameters.batch_size
        size = size if size < self.entries else -(-self.entries // 2)
        while size < self.entries:
            counts.append(size)
            if size == 1:
                break
            size = -(-size // 2)
        return counts

    def works(self, count: int | None) -> list[Work]:
        """The denoiser's and the control networks'."""
        return self._asked(count or 0)

    def _asked(self, count: int) -> list[Work]:
        assert self.rehearsal is not None
        assert self.inputs is not None
        if count not in self._all:
            self._all[count] = self.rehearsal.steps(self.inputs, count)
        return self._all[count]

    def _conditions(self, count: int) -> int:
        """Values that the denoiser is given at once, without its latents."""
        asked = [one for work in self._denoiser(count) for one in work.asked]
        return max(
            sum(math.prod(dims) for name, dims in one.shapes.items() if name != "latents")
            for one in asked
        )

    def _denoiser(self, count: int) -> list[Work]:
        return [work for work in self._asked(count) if work.component == self.components[0]]

    @cached_property
    def _all(self) -> dict[int, list[Work]]:
        return {}

    def _way(self, policy: str, count: int | None, keep: int) -> Way:
        assert self.inputs is not None
        arrays = _STATE_COPIES * 4 * self.inputs.start.x.size
        arrays += _CONDITION_COPIES * 4 * self._conditions(count or 0) + self.given
        return Way(self._stage(policy, count, keep, arrays), together=count)


@dataclass
class Coding(Scene):
    """Encoding or decoding of pictures, one after the other."""

    vae: Autoencoder | None = None
    shape: tuple[int, ...] = ()
    """Of the network's input for all pictures."""
    circular: int = 0
    tile: int | None = None
    """What the caller asked for."""
    held: int = 0
    """Bytes of the run's arrays: what its texts became, and latents."""

    def repeats(self, count: int | None) -> bool:
        """For every tile."""
        return bool(count)

    @property
    def _encodes(self) -> bool:
        return self.name == "encode"

    def counts(self) -> Sequence[int | None]:
        """Whole, and tiles of fewer latents; or the caller's."""
        scale = self.vae.factor if self.vae and self._encodes else 1
        most = max(self.shape[2:]) // scale
        if self.tile is not None:
            return (self.tile if self.tile < most else 0,)
        return (0, *(side for side in TILES if side < most))

    def works(self, count: int | None) -> list[Work]:
        """One half's, for a tile of `count` latents or a whole picture."""
        assert self.vae is not None
        scale = self.vae.factor if self._encodes else 1
        side = (count or max(self.shape[2:])) * scale
        shape = [1, self.shape[1], *(min(length, side) for length in self.shape[2:])]
        network = self.vae.encoder if self._encodes else self.vae.decoder
        name = "image" if self._encodes else "latents"
        asked = Asked({name: shape}, {"circular": self.circular}, (), 2)
        return [Work(self.components[0], network, (asked,))]

    def _way(self, policy: str, count: int | None, keep: int) -> Way:
        assert self.vae is not None
        pictures, _, height, width = self.shape
        if self._encodes:
            arrays = pictures * 3 * height * width * 4 * _GIVEN_COPIES
        else:
            bare = self._stage(policy, count, keep, 0)
            inside = 0 if bare.has_own_memory else bare.parts[0].activations
            factor = self.vae.factor
            arrays = self.held + picture_bytes(pictures, height * factor, width * factor, inside)
        stage = self._stage(policy, count, keep, arrays)
        # The autoencoder's own choice (autoencoder.TILES) goes by squares.
        square = self._square(count) if count else stage.parts[0].activations
        return Way(stage, tile=count, pieces=max(square, stage.parts[0].activations))

    def _square(self, side: int) -> int:
        work = self.works(side)[0]
        (name, shape), *_ = work.asked[0].shapes.items()
        scale = self.vae.factor if self.vae and self._encodes else 1
        dims = [1, shape[1], side * scale, side * scale]
        return work.network.planned_bytes({name: dims}, dict(work.asked[0].options))


@dataclass
class Enlarging(Scene):
    """A network that enlarges pictures between the passes, one after the other."""

    upscaler: Upscaler | None = None
    size: tuple[int, int] = (0, 0)
    """Width and height of what it is given."""
    pictures: int = 1

    def repeats(self, count: int | None) -> bool:
        """For every tile."""
        return bool(count)

    def counts(self) -> Sequence[int | None]:
        """Whole, and tiles of fewer pixels."""
        return (0, *(side for side in SIDES if side < max(self.size)))

    def works(self, count: int | None) -> list[Work]:
        """For a tile of `count` pixels or a whole picture."""
        return [self._work(count, *(min(length, count or length) for length in self.size))]

    def _work(self, count: int | None, width: int, height: int) -> Work:
        assert self.upscaler is not None
        grid = self.upscaler.plan.grid if count else 1
        high, wide = (-(-length // grid) * grid for length in (height, width))
        asked = Asked({"image": [1, self.upscaler.plan.channels, high, wide]}, _PLAIN, (), 2)
        return Work(self.components[0], self.upscaler.network, (asked,))

    def _way(self, policy: str, count: int | None, keep: int) -> Way:
        assert self.upscaler is not None
        width, height = self.size
        made = width * height * self.upscaler.scale**2
        arrays = made * _ENLARGED_BYTES + self.pictures * width * height * 3 * 2
        stage = self._stage(policy, count, keep, arrays)
        asked = self._work(count, count, count) if count else self.works(count)[0]
        shapes = asked.asked[0].shapes
        pieces = asked.network.planned_bytes({n: list(s) for n, s in shapes.items()}, {})
        return Way(stage, tile=count, pieces=max(pieces, stage.parts[0].activations))
