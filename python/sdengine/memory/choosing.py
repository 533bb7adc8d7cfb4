"""The fastest way to run a generation within limits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from .footprint import DISK, OFFLOAD, RESIDENT, STREAM, Stage
from .ground import Ground, growth
from .plan import Placement, Plan
from .scenes import Coding, Denoising, Scene, Way
from .sizes import readable, rounded_up

if TYPE_CHECKING:
    from sdengine.params import GenerateParameters

_SPARED = 0.05
"""Share of a limit that weights which stay leave alone where bytes are not counted but predicted: of a process, whose
pages come in groups, and of what a device has free, where backends take buffers of their own."""
_DRIFT = 3 * 10**6
"""Bytes by which a process differs from the next one, or from itself after it has planned once or twice (1.5 to 2.4 MB
measured): a smallest limit that is told must work there, too."""
_WORTH_KEEPING = 1 << 20
"""Bytes of weights; for less there is no further search."""
_TRIES = 8

_LADDERS = {True: (OFFLOAD, STREAM, DISK), False: (OFFLOAD, DISK)}
"""Policies of a component that does not stay on the device, fastest first, by whether the device has its own memory."""
_PIECES = {
    "encode": "encoding",
    "decode": "decoding",
    "preview": "previewing",
    "upscale": "upscaling",
}
"""Scenes that are cut into tiles, and what :class:`Placement` calls the bytes of a piece."""


@dataclass(frozen=True)
class Limits:
    """What a generation may take.

    Attributes:
        device: bytes on the device; on the CPU of the process.
        host: bytes of the process.
    """

    device: int | None = None
    host: int | None = None

    @property
    def are_set(self) -> bool:
        """True where somebody asked for one."""
        return self.device is not None or self.host is not None


class Choice:
    """The ways in which the scenes of a generation are run.

    Args:
        scenes: in their order.
        ground: what was there before.
        limits: that were asked for.
    """

    def __init__(self, scenes: Sequence[Scene], ground: Ground, limits: Limits) -> None:
        self.scenes, self.limits = scenes, limits
        largest = max((size for scene in scenes for size in scene.weights.values()), default=0)
        threads = max((scene.device.threads for scene in scenes), default=1)
        self.ground = replace(ground, process=ground.process + growth(largest, threads))
        self.has_own_memory = any(scene.device.has_own_memory for scene in scenes)
        self.kept, self.ways = self._choose(_LADDERS)
        if self.has_own_memory and not self.fits:
            # The file's pages that are copied from add up in the host's memory; "disk" gives them back.
            first = self.kept, self.ways
            self.kept, self.ways = self._choose(dict.fromkeys(_LADDERS, (DISK,)))
            if not self.fits:
                self.kept, self.ways = first

    def _choose(self, ladders: Mapping[bool, Sequence[str]]) -> tuple[frozenset[str], list[Way]]:
        """What stays on the devices all the time, and the way of each scene."""
        ladder_of = {s.name: ladders[s.device.has_own_memory] for s in self.scenes}
        for kept in self._kept():
            found = self._in_order(
                lambda scene, kept=kept: self._fastest(  # type: ignore[misc]
                    scene, kept, ladder_of[scene.name][:1], whole=True
                )
            )
            if len(found) == len(self.scenes):
                return kept, found
        if not self.limits.are_set and not self.has_own_memory:
            # Mapped weights leave by themselves where memory is short.
            ladder_of = dict.fromkeys(ladder_of, (OFFLOAD,))
        nothing: frozenset[str] = frozenset()
        return nothing, self._in_order(
            lambda scene: (
                self._fastest(scene, nothing, ladder_of[scene.name])
                or self._smallest(scene, ladder_of[scene.name])
            )
        )

    def _in_order(self, choose: Callable[[Scene], Way | None]) -> list[Way]:
        """The ways of the scenes up to the first that has none."""
        ways: list[Way] = []
        for scene in self.scenes:
            way = choose(scene)
            if way is None:
                break
            ways.append(way)
        return ways

    def _kept(self) -> Iterator[frozenset[str]]:
        """Sets of components that may stay on the device, the fastest first."""
        if self.has_own_memory:
            everything = frozenset(
                c for s in self.scenes if s.device.has_own_memory for c in s.components
            )
            steps = {c for s in self.scenes if isinstance(s, Denoising) for c in s.components}
            yield everything
            yield frozenset(c for c in everything if c in steps or c.startswith("vae_"))
            yield everything & steps
        yield frozenset()

    def _fastest(
        self, scene: Scene, kept: Collection[str], ladder: Sequence[str], *, whole: bool = False
    ) -> Way | None:
        """The first way within the limits; in one piece if `whole`."""
        for policy in ladder:
            stays = set(scene.components) <= set(kept)
            policy = RESIDENT if stays else policy
            for count in scene.counts()[: 1 if whole else None]:
                way = scene.way(policy, count)
                if self.excess(self._placed(scene, way, kept)) <= 0:
                    return self._fullest(scene, way, policy, count, kept)
        return None

    def _fullest(
        self, scene: Scene, way: Way, policy: str, count: int | None, kept: Collection[str]
    ) -> Way:
        """A way within the limits, with as many weights staying as they allow.

        What stays makes slots smaller, so that there is room for more; but what an operator needs at once has its own
        size, so that a little more may make a slot larger. It is approached in a few tries.
        """
        most, keep = sum(scene.weights.values()), 0
        if policy not in (STREAM, DISK) or not scene.repeats(count):
            return way
        tried = self._room(self._placed(scene, way, kept))
        for _ in range(_TRIES):
            if tried - keep < _WORTH_KEEPING or keep >= most:
                break
            fuller = scene.way(policy, count, tried)
            placed = self._placed(scene, fuller, kept)
            if self._room(placed) >= 0 and self.excess(placed) <= 0:
                way, keep = fuller, tried
                tried += self._room(placed)
            else:
                tried = (keep + tried) // 2
        return way

    def _room(self, stage: Stage) -> int:
        """Bytes of weights that may stay beside a stage's."""
        room = []
        if stage.has_own_memory:
            taken = self.device_bytes(stage) + stage.scratch
            if self.limits.device is not None:
                room.append(self.limits.device - taken)
            if free := self.ground.free[stage.device]:
                room.append(int((1 - _SPARED) * free) - taken)
        else:
            taken = self.process_bytes(stage)
            limits = filter(None, (self.limits.device, self.limits.host))
            room += [int((1 - _SPARED) * limit) - taken for limit in limits]
        return min(room, default=0)

    def _smallest(self, scene: Scene, ladder: Sequence[str]) -> Way:
        ways = list(scene.ways(ladder))
        return min(ways, key=lambda way: self.excess(self._placed(scene, way, ())))

    def _placed(self, scene: Scene, way: Way, kept: Collection[str]) -> Stage:
        """A stage with what is beside it."""
        there = [other for other in self.scenes if other.device.name == scene.device.name]
        whole = _whole((other, other.weights) for other in there)
        own = {part.component: part.weights for part in way.stage.parts}
        beside = sum(size - own.get(name, 0) for name, size in whole.items() if name in kept)
        return replace(way.stage, beside=beside)

    @cached_property
    def preview_beside(self) -> bool:
        """Whether tiny previews fit beside what the denoiser takes in its steps."""
        pairs = zip(self.scenes, self.ways, strict=True)
        preview = next(((s, w) for s, w in pairs if s.name == "preview"), None)
        if preview is None:
            return False
        stage = self._placed(*preview, self.kept)
        return self.excess(replace(stage, beside=stage.beside + self._of_steps(preview[0]))) <= 0

    def _of_steps(self, preview: Scene) -> int:
        """Bytes of the denoiser and its control networks that a preview finds on its device."""
        most = 0
        for scene, way in zip(self.scenes, self.ways, strict=True):
            if isinstance(scene, Denoising) and scene.device.name == preview.device.name:
                parts = way.stage.parts
                left = [
                    p.activations + (0 if p.component in self.kept else p.weights) for p in parts
                ]
                most = max(most, sum(left))
        return most

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is in memory, one after the other."""
        pairs = list(zip(self.scenes, self.ways, strict=True))
        pages = _whole(
            (scene, {part.component: part.pages for part in way.stage.parts})
            for scene, way in pairs
        )
        stages = []
        for scene, way in pairs:
            stage = self._placed(scene, way, self.kept)
            beside = stage.beside
            if scene.name == "preview" and self.preview_beside:
                beside += self._of_steps(scene)
            pages_beside = sum(pages.values()) - sum(part.pages for part in stage.parts)
            stages.append(replace(stage, beside=beside, host_beside=pages_beside))
        return tuple(stages)

    # ------------------------------------------------------------------------------------ limits
    def process_bytes(self, stage: Stage) -> int:
        """What the process holds during a stage."""
        held = self.ground.process + stage.arrays
        held += stage.host_beside
        if stage.has_own_memory:
            return held + sum(part.host + part.pages for part in stage.parts)
        return held + stage.beside + stage.networks

    def device_bytes(self, stage: Stage) -> int:
        """What is on the device during a stage; 0 for a part on the CPU beside parts on others."""
        if stage.has_own_memory:
            return stage.beside + stage.networks
        return 0 if self.has_own_memory else self.process_bytes(stage)

    def excess(self, stage: Stage) -> int:
        """Bytes over the limit that is exceeded most; 0 or less where none is."""
        over = [-1]
        if self.limits.device is not None:
            over.append(self.device_bytes(stage) + stage.scratch - self.limits.device)
        if self.limits.host is not None:
            over.append(self.process_bytes(stage) - self.limits.host)
        if free := self.ground.free[stage.device]:
            over.append(self.taken(stage) - free)
        return max(over)

    def taken(self, stage: Stage) -> int:
        """Bytes that must be free for a stage: without mapped weights, which leave where memory is short."""
        if stage.has_own_memory:
            return stage.beside + stage.networks + stage.scratch
        return stage.arrays + sum(part.activations for part in stage.parts)

    @property
    def fits(self) -> bool:
        """True if every stage stays within every limit."""
        return all(self.excess(stage) <= 0 for stage in self.stages)

    def smallest(self) -> tuple[int, int]:
        """The smallest limits of device and process that work, each with the other left open."""
        device, host = 0, 0
        for scene in self.scenes:
            ladder = _LADDERS[scene.device.has_own_memory]
            stages = [self._placed(scene, way, ()) for way in scene.ways(ladder)]
            own = scene.device.has_own_memory
            least = min(self.device_bytes(s) + s.scratch for s in stages)
            device = max(device, least if own or not least else least + _DRIFT)
            host = max(host, min(map(self.process_bytes, stages)) + _DRIFT)
        return device, host

    # ------------------------------------------------------------------------------------ results
    @property
    def placement(self) -> Placement:
        """How the pipeline is set."""
        policies: dict[str, str] = {}
        keep: dict[str, int] = {}
        together = 0
        pieces: dict[str, int | None] = {}
        for scene, way in zip(self.scenes, self.ways, strict=True):
            for part in way.stage.parts:
                known = policies.get(part.component)
                policy = policies[part.component] = _slower(known, part.policy)
                if policy != known:
                    keep[part.component] = part.keep
                elif policy == part.policy:
                    keep[part.component] = min(keep[part.component], part.keep)
            if isinstance(scene, Denoising):
                together = min(filter(None, (together, way.together or 0)), default=0)
            elif scene.name in _PIECES:
                pieces[_PIECES[scene.name]] = way.pieces
        keep = {name: size for name, size in keep.items() if size}
        beside = self.preview_beside
        return Placement(policies, together, **pieces, keep=keep, preview_beside=beside)

    def plan(self, title: str, parameters: GenerateParameters) -> Plan:
        """All of it in plain values."""
        smallest_device, smallest_host = self.smallest()
        steps = next(scene for scene in self.scenes if isinstance(scene, Denoising))
        tile = next(
            w.tile for s, w in zip(self.scenes, self.ways, strict=True) if s.name == "decode"
        )
        largest = parameters if parameters.hires is None else parameters.hires
        return Plan(
            title=title,
            device=", ".join(dict.fromkeys(stage.device for stage in self.stages)),
            width=largest.width,
            height=largest.height,
            batch_size=parameters.batch_size,
            has_own_memory=self.has_own_memory,
            placement=self.placement,
            entries=steps.entries,
            tile=tile or 0,
            stages=self.stages,
            ground=self.ground.process,
            memory_limit=self.limits.device,
            host_memory_limit=self.limits.host,
            free=min(self.ground.free.values()),
            fits=self.fits,
            needed=() if self.fits else self.advice(parameters),
            smallest_limit=smallest_device,
            smallest_host_limit=smallest_host,
        )

    def advice(self, parameters: GenerateParameters) -> tuple[str, ...]:
        """What would have to change to fit, in words."""
        device, host = self.smallest()
        worst, _ = self.worst
        advice = []
        if self.limits.device is not None and device > self.limits.device:
            advice.append(f"memory_limit={rounded_up(device)!r} is the smallest that works")
        if self.limits.host is not None and host > self.limits.host:
            advice.append(f"host_memory_limit={rounded_up(host)!r} is the smallest that works")
        smaller = "a smaller size or batch_size"
        if worst.name.startswith("steps"):
            if parameters.tiled_diffusion is None:
                smaller += ", or tiled_diffusion=True"
        elif isinstance(worst, Coding) and worst.tile == 0:
            smaller = f"tile=64, or {smaller}"
        return (*advice, f"use {smaller}")

    @property
    def worst(self) -> tuple[Scene, Stage]:
        """The scene that exceeds a limit most."""
        pairs = list(zip(self.scenes, self.stages, strict=True))
        return max(pairs, key=lambda pair: self.excess(pair[1]))

    def refusal(self, parameters: GenerateParameters) -> str:
        """Why it does not fit, and what would."""
        scene, stage = self.worst
        size = f"{parameters.width}x{parameters.height} (batch_size {parameters.batch_size})"
        if parameters.hires is not None and scene.name != "steps":
            wanted = parameters.hires
            size = f"{wanted.width}x{wanted.height} (batch_size {parameters.batch_size})"
        doing = {"decode": f"decoding {size}", "encode": "encoding the given picture"}
        what = doing.get(scene.name, f"a step at {size}")
        if not scene.name.startswith("steps"):
            what = doing.get(scene.name, f"running {scene.name}")
        advice = "; ".join(self.advice(parameters))
        over_limit = [
            (self.device_bytes(stage) + stage.scratch, self.limits.device, "memory_limit"),
            (self.process_bytes(stage), self.limits.host, "host_memory_limit"),
        ]
        for taken, limit, name in over_limit:
            if limit is not None and taken > limit:
                return (
                    f"{what} takes {readable(taken)} of memory at least, and {name} is"
                    f" {readable(limit)}; {advice}"
                )
        return (
            f"{what} takes {readable(self.taken(stage))} of memory, and {readable(self.ground.free[stage.device])} are"
            f" free; {advice}"
        )


def _slower(first: str | None, second: str) -> str:
    """Of two policies for one component the one that takes less."""
    order = ("resident", "offload", "stream", "disk")
    return second if first is None else max(first, second, key=order.index)


def _whole(bytes_of: Iterable[tuple[Scene, Mapping[str, int]]]) -> dict[str, int]:
    """Bytes of each component after all scenes: a control network reads its picture by other weights than it steps."""
    most: dict[tuple[str, type[Scene]], int] = {}
    for scene, sizes in bytes_of:
        for name, size in sizes.items():
            kind = name, type(scene)
            most[kind] = max(most.get(kind, 0), size)
    whole: dict[str, int] = {}
    for (name, _), size in most.items():
        whole[name] = whole.get(name, 0) + size
    return whole
