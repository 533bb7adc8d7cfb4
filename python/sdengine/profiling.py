"""Where the time of a generation goes: by kind of operator, by block, and as a trace.

::

    with sdengine.profiling.profiled(pipe) as profile:
        pipe.generate("a red circle")
    print(profile.table("kind"))
    profile.write_trace("trace.json")
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import _core
from .errors import ParameterError
from .output import new_file

if TYPE_CHECKING:
    from .pipeline import Pipeline

Grouping = Literal["kind", "block", "network"]
_TO_SECOND_NUMBER = re.compile(r"^(?:[^.]+\.)*?\d+(?:\.[^.\d]+\.\d+)?(?=\.)")
"""``down_blocks.0.attentions.1`` of ``down_blocks.0.attentions.1.proj_in.weight``."""


@dataclass(frozen=True)
class Operator:
    """One operator of one evaluation."""

    network: str
    """The component."""
    kind: str
    """``"conv2d"``, ``"linear"``, ``"attention"``, ..., or ggml's name for its own."""
    block: str
    """The block of the parameter that it reads, or that was read last before it."""
    begin: float
    """Seconds of a steady clock, the same for all."""
    seconds: float
    multiply_adds: int
    """0 for operators that are bound by memory."""
    nbytes: int
    """Of operands and result."""


@dataclass(frozen=True)
class Share:
    """What one group of operators took."""

    name: str
    count: int
    seconds: float
    part: float
    """0..1 of all that was recorded."""
    gflops: float
    """10^9 operations a second, a multiply-add counted as two."""
    of_peak: float
    """0..1 of the peak; above 1 where a convolution needs fewer operations than its direct sum (Winograd)."""


@dataclass
class Profile:
    """What was recorded while a block of :func:`profiled` ran.

    Attributes:
        peak_gflops: what the threads can do at most, measured on this machine: multiply-adds in registers.
        operators: in the order in which they ran.
    """

    peak_gflops: float
    operators: list[Operator] = field(default_factory=list)

    def shares(self, by: Grouping) -> list[Share]:
        """The operators in groups, the longest first.

        Raises:
            ParameterError: there is no such grouping.
        """
        if by not in ("kind", "block", "network"):
            raise ParameterError(f"a profile is grouped by kind, block or network, not by {by!r}")
        groups: dict[str, list[Operator]] = {}
        for operator in self.operators:
            name: str = getattr(operator, by)
            name = f"{operator.network} {name}" if by == "block" else name
            groups.setdefault(name, []).append(operator)
        whole = sum(operator.seconds for operator in self.operators)
        return sorted(
            (self._share(name, group, whole) for name, group in groups.items()),
            key=lambda share: -share.seconds,
        )

    def _share(self, name: str, group: list[Operator], whole: float) -> Share:
        seconds = sum(operator.seconds for operator in group)
        operations = 2e-9 * sum(operator.multiply_adds for operator in group)
        gflops = operations / seconds if seconds else 0.0
        part = seconds / whole if whole else 0.0
        return Share(name, len(group), seconds, part, gflops, gflops / self.peak_gflops)

    def table(self, by: Grouping) -> str:
        """The shares as lines of text."""
        lines = [f"{by:<44}{'count':>8}{'ms':>12}{'share':>8}{'GFLOP/s':>10}{'of peak':>9}"]
        for share in self.shares(by):
            rate = f"{share.gflops:10.1f}{share.of_peak:9.0%}" if share.gflops else ""
            lines.append(
                f"{share.name:<44}{share.count:8d}{share.seconds * 1e3:12.2f}{share.part:8.1%}{rate}"
            )
        return "\n".join(lines)

    def write_trace(self, path: str | PathLike[str]) -> None:
        """Write the operators as a trace that Chrome (``chrome://tracing``) and Perfetto show.

        Raises:
            OutputError: the file could not be written; there is none then.
        """
        events = [
            {
                "name": operator.kind,
                "cat": operator.block,
                "ph": "X",
                "ts": operator.begin * 1e6,
                "dur": operator.seconds * 1e6,
                "pid": 1,
                "tid": operator.network,
                "args": {
                    "block": operator.block,
                    "multiply_adds": operator.multiply_adds,
                    "bytes": operator.nbytes,
                },
            }
            for operator in self.operators
        ]
        text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
        with new_file(Path(path), len(text)) as part:
            part.write_text(text, encoding="utf-8")


@contextmanager
def profiled(pipeline: Pipeline) -> Iterator[Profile]:
    """Record every operator that the pipeline's networks compute while the block runs.

    Operators run one by one for it, with the same results; that costs a few microseconds for each. Meant for one
    thread at a time.
    """
    peak = _core.kernels.peak_gflops() * pipeline.threads
    profile = Profile(peak)
    recording = {name: _core.Profile() for name in pipeline.networks}
    try:
        for name, native in recording.items():
            pipeline.networks[name].set_profile(native)
        yield profile
    finally:
        for name, native in recording.items():
            pipeline.networks[name].set_profile(None)
            profile.operators += [
                Operator(name, kind, block_of(parameter), begin, seconds, work, nbytes)
                for kind, parameter, begin, seconds, work, nbytes in native.take()
            ]
        profile.operators.sort(key=lambda operator: operator.begin)


def block_of(parameter: str) -> str:
    """The block that a parameter belongs to: its name up to the second number, or the first dot where it has none."""
    found = _TO_SECOND_NUMBER.match(parameter)
    return found[0] if found else parameter.split(".")[0]
