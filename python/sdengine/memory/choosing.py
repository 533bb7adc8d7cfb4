"""The fastest way to run a generation within limits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .footprint import DISK, OFFLOAD, RESIDENT, Stage
from .ground import Ground
from .plan import Placement, Plan
from .scenes import LADDERS, Coding, Denoising, Scene, Way
from .sizes import readable, rounded_up

if TYPE_CHECKING:
    from sdengine.params import GenerateParameters

_KEPT_ACTIVATIONS = 64 << 20
"""Graphs with smaller activations keep them when they are released (csrc/runtime/graph.cpp)."""


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
        self.scenes, self.ground, self.limits = scenes, ground, limits
        self.has_own_memory = any(scene.device.has_own_memory for scene in scenes)
        self.kept, self.ways = self._choose(LADDERS)
        if self.has_own_memory and not self.fits:
            # The file's pages that are copied from add up in the host's memory; "disk" gives them back.
            first = self.kept, self.ways
            self.kept, self.ways = self._choose(dict.fromkeys(LADDERS, (DISK,)))
            if not self.fits:
                self.kept, self.ways = first

    def _choose(self, ladders: Mapping[bool, Sequence[str]]) -> tuple[frozenset[str], list[Way]]:
        """What stays on the devices all the time, and the way of each scene."""
        ladder_of = {s.name: ladders[s.device.has_own_memory] for s in self.scenes}
        for kept in self._kept():
            found = [
                self._fastest(scene, kept, ladder_of[scene.name][:1], whole=True)
                for scene in self.scenes
            ]
            if all(way is not None for way in found):
                return kept, [way for way in found if way is not None]
        if not self.limits.are_set and not self.has_own_memory:
            # Mapped weights leave by themselves where memory is short.
            ladder_of = dict.fromkeys(ladder_of, (OFFLOAD,))
        nothing: frozenset[str] = frozenset()
        return nothing, [
            self._fastest(scene, nothing, ladder_of[scene.name])
            or self._smallest(scene, ladder_of[scene.name])
            for scene in self.scenes
        ]

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
                    return way
        return None

    def _smallest(self, scene: Scene, ladder: Sequence[str]) -> Way:
        ways = list(scene.ways(ladder))
        return min(ways, key=lambda way: self.excess(self._placed(scene, way, ())))

    def _placed(self, scene: Scene, way: Way, kept: Collection[str]) -> Stage:
        """A stage with what is beside it."""
        there = [other for other in self.scenes if other.device.name == scene.device.name]
        others = {name: size for other in there for name, size in other.weights.items()}
        beside = sum(
            size for name, size in others.items() if name in kept and name not in scene.components
        )
        return replace(way.stage, beside=beside + self._left_over(scene))

    def _left_over(self, scene: Scene) -> int:
        """Activations of networks that ran before, and that are too small to be given back."""
        if scene.device.has_own_memory:
            return 0
        before = self.scenes[: self.scenes.index(scene)]
        left: dict[str, int] = {}
        for earlier in before:
            if earlier.device.has_own_memory:
                continue
            for part in earlier.way(OFFLOAD, earlier.counts()[0]).stage.parts:
                if part.component not in scene.components and part.activations < _KEPT_ACTIVATIONS:
                    left[part.component] = part.activations
        return sum(left.values())

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is in memory, one after the other."""
        pairs = list(zip(self.scenes, self.ways, strict=True))
        pages = {p.component: p.pages for way in self.ways for p in way.stage.parts}
        return tuple(
            replace(
                self._placed(scene, way, self.kept),
                host_beside=sum(n for name, n in pages.items() if name not in scene.components),
            )
            for scene, way in pairs
        )

    # ------------------------------------------------------------------------------------ limits
    def process_bytes(self, stage: Stage) -> int:
        """What the process holds during a stage."""
        held = self.ground.process + stage.arrays
        held += stage.host_beside
        if stage.has_own_memory:
            return held + sum(part.host + part.pages for part in stage.parts)
        return held + stage.beside + stage.networks

    def device_bytes(self, stage: Stage) -> int:
        """What is on the device during a stage."""
        return stage.beside + stage.networks if stage.has_own_memory else self.process_bytes(stage)

    def excess(self, stage: Stage) -> int:
        """Bytes over the limit that is exceeded most; 0 or less where none is."""
        over = [-1]
        if self.limits.device is not None:
            over.append(self.device_bytes(stage) - self.limits.device)
        if self.limits.host is not None:
            over.append(self.process_bytes(stage) - self.limits.host)
        if free := self.ground.free[stage.device]:
            over.append(self.taken(stage) - free)
        return max(over)

    def taken(self, stage: Stage) -> int:
        """Bytes that must be free for a stage: without mapped weights, which leave where memory is short."""
        if stage.has_own_memory:
            return stage.beside + stage.networks
        return stage.arrays + sum(part.activations for part in stage.parts)

    @property
    def fits(self) -> bool:
        """True if every stage stays within every limit."""
        return all(self.excess(stage) <= 0 for stage in self.stages)

    def smallest(self) -> tuple[int, int]:
        """The smallest limits of device and process that work, each with the other left open."""
        device, host = 0, 0
        for scene in self.scenes:
            ladder = LADDERS[scene.device.has_own_memory]
            stages = [self._placed(scene, way, ()) for way in scene.ways(ladder)]
            device = max(device, min(map(self.device_bytes, stages)))
            host = max(host, min(map(self.process_bytes, stages)))
        return device, host

    # ------------------------------------------------------------------------------------ results
    @property
    def placement(self) -> Placement:
        """How the pipeline is set."""
        policies: dict[str, str] = {}
        together, encoding, decoding = 0, None, None
        for scene, way in zip(self.scenes, self.ways, strict=True):
            for part in way.stage.parts:
                policies[part.component] = _slower(policies.get(part.component), part.policy)
            if isinstance(scene, Denoising):
                together = min(filter(None, (together, way.together or 0)), default=0)
            elif scene.name == "encode":
                encoding = way.pieces
            elif scene.name == "decode":
                decoding = way.pieces
        return Placement(policies, together, encoding, decoding)

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
            (self.device_bytes(stage), self.limits.device, "memory_limit"),
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
