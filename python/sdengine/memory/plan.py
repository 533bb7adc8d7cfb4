"""What a generation takes, stage by stage, and whether that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .footprint import Stage
from .sizes import readable, rounded_up


@dataclass(frozen=True)
class Placement:
    """How a generation is run: what :class:`Plan` chose, and what a pipeline is set to.

    Attributes:
        policies: ``"resident"``, ``"offload"``, ``"stream"`` or ``"disk"`` by component.
        together: entries (a picture under a condition) that the denoiser evaluates in one batch; 0 for all.
        encoding: bytes of activations that encoding a picture may take, before it is done in tiles.
        decoding: the same for decoding.
        previewing: the same for previews by a tiny autoencoder.
        upscaling: the same for the upscaler of a hires pass.
        preview_beside: tiny previews are drawn beside the denoiser, which else leaves memory for each of them.
        keep: bytes of weights that stay, by component, where its policy is ``"stream"`` or ``"disk"``.
    """

    policies: Mapping[str, str] = field(default_factory=dict)
    together: int = 0
    encoding: int | None = None
    decoding: int | None = None
    previewing: int | None = None
    upscaling: int | None = None
    preview_beside: bool = False
    keep: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Whether a generation fits into memory, and how; made by :meth:`sdengine.Pipeline.plan`.

    ``str(plan)`` is a table. All sizes are bytes.

    Attributes:
        title: of the model.
        device: names of the devices.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        batch_size: pictures.
        has_own_memory: False on the CPU alone, whose device memory is that of the process.
        placement: how it is run.
        entries: pictures times branches (conditions) of a step.
        tile: side of the autoencoder's tiles in latents; 0 where pictures are decoded whole.
        stages: what is in memory, one after the other.
        ground: what the process held before: interpreter, libraries, tokenizers, converted weights.
        memory_limit: of the device; None where it is only what is free.
        host_memory_limit: of the process.
        free: bytes that the devices had free, the least of them.
        fits: whether every stage stays within the limits.
        needed: what would have to change to fit; empty where it fits.
        smallest_limit: the smallest `memory_limit` that works for this picture.
        smallest_host_limit: the same of `host_memory_limit`.
    """

    title: str
    device: str
    width: int
    height: int
    batch_size: int
    has_own_memory: bool
    placement: Placement
    entries: int
    tile: int
    stages: tuple[Stage, ...]
    ground: int
    memory_limit: int | None
    host_memory_limit: int | None
    free: int
    fits: bool
    needed: tuple[str, ...]
    smallest_limit: int
    smallest_host_limit: int

    @property
    def peak_memory(self) -> int:
        """The most bytes on the device; on the CPU of the process, with mapped weights that were read."""
        return max(self.device_bytes(stage) for stage in self.stages)

    @property
    def peak_host_memory(self) -> int:
        """The most bytes of the process."""
        return max(self.host_bytes(stage) for stage in self.stages)

    @property
    def scratch(self) -> int:
        """Bytes of the device that its backend may take for itself besides, at most; kept free within a limit."""
        return max(stage.scratch for stage in self.stages)

    def device_bytes(self, stage: Stage) -> int:
        """What a stage takes on the device; 0 for a part on the CPU beside parts on others."""
        if stage.has_own_memory:
            return stage.beside + stage.networks
        return 0 if self.has_own_memory else self.host_bytes(stage)

    def host_bytes(self, stage: Stage) -> int:
        """What the process holds during a stage."""
        held = self.ground + stage.arrays + stage.host_beside
        if not stage.has_own_memory:
            return held + stage.beside + stage.networks
        return held + sum(part.host + part.pages for part in stage.parts)

    def as_dict(self) -> dict[str, Any]:
        """All of it in plain values, with the sums; for JSON."""
        stages = [
            {**asdict(stage), "device": self.device_bytes(stage), "host": self.host_bytes(stage)}
            for stage in self.stages
        ]
        return {
            **asdict(self),
            "placement": asdict(self.placement),
            "stages": stages,
            "peak_memory": self.peak_memory,
            "peak_host_memory": self.peak_host_memory,
        }

    def __str__(self) -> str:
        limits = [
            f"{name} {readable(size)}"
            for name, size in (("limit", self.memory_limit), ("host limit", self.host_memory_limit))
            if size is not None
        ]
        of_batch = f", batch of {self.batch_size}" if self.batch_size > 1 else ""
        lines = [
            f"{self.title}, {self.width}x{self.height}{of_batch} on {self.device}"
            + (f" ({', '.join(limits)})" if limits else ""),
            "",
            *self._table(),
            "",
            *self._choices(),
            *self._sums(),
        ]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        rows = [("stage", "network", "weights are", "weights", "activations", "beside", "arrays")]
        for stage in self.stages:
            name, beside, arrays = stage.name, readable(stage.beside), readable(stage.arrays)
            for part in stage.parts:
                own = part.residence, readable(part.weights), readable(part.activations)
                rows.append((name, part.component, *own, beside, arrays))
                name = beside = arrays = ""
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        for row in rows:
            left = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
            right = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
            lines.append("  ".join([*left, *right]).rstrip())
        return lines

    def _choices(self) -> list[str]:
        together, entries = self.placement.together, self.entries
        batch = "all in one batch" if not 0 < together < entries else f"{together} at a time"
        tiles = f"in tiles of {self.tile} latents" if self.tile else "whole"
        return [
            f"steps      {entries} picture{'s' * (entries > 1)} x conditions, {batch}; attention in pieces",
            f"decoding   {tiles}",
        ]

    def _sums(self) -> list[str]:
        largest = max(self.stages, key=self.device_bytes)
        lines = [f"peak       {self._sum(largest)}"]
        if self.has_own_memory:
            largest = max(self.stages, key=self.host_bytes)
            lines.append(f"host peak  {readable(self.host_bytes(largest))} ({largest.name})")
        if self.scratch:
            lines.append(f"besides    up to {readable(self.scratch)} for the backend's own ends")
        verdict = "it fits" if self.fits else "it does not fit; " + "; ".join(self.needed)
        return [*lines, f"smallest   memory_limit={rounded_up(self.smallest_limit)!r}", verdict]

    def _sum(self, stage: Stage) -> str:
        terms = {
            "process before": 0 if stage.has_own_memory else self.ground,
            "weights": sum(part.weights for part in stage.parts),
            "activations": sum(part.activations for part in stage.parts),
            "beside": stage.beside,
            "arrays": 0 if stage.has_own_memory else stage.arrays,
        }
        told = " + ".join(f"{readable(size)} {name}" for name, size in terms.items() if size)
        return f"{readable(self.device_bytes(stage))} ({stage.name}: {told})"
