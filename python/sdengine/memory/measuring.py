"""Pictures within limits, measured: seconds and peaks of memory against what was planned.

Every limit has a process of its own (``python -m sdengine.memory.measuring``), for a process's peak cannot be lowered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sdengine
from sdengine.devices import peak_memory
from sdengine.errors import OutOfMemoryError, ParameterError, SDEngineError

from .ground import resident_bytes
from .sizes import readable

SYNTHETIC = {"sd15": "q8_0", "sdxl": "q4_0", "sd35-medium": "q4_0", "flux-dev": "q4_0"}
"""Full-size models with random weights, which ``bench/synthetic.py`` writes, and their usual type of weights."""


@dataclass(frozen=True)
class Measured:
    """One picture within one limit.

    Attributes:
        limit: as it was given.
        placement: in words.
        planned: peak of the device in bytes, as it was planned.
        planned_host: the same of the process.
        peak: of the device, measured; on the CPU of the process.
        peak_host: of the process, measured.
        step: seconds of a step, the median.
        image: seconds of a picture with as many steps as the model takes by itself.
        refused: why there is none; then all figures are 0.
        peak_own: of the process, without pages of files that are only read (weights, libraries); looked at 20 times
            a second.
    """

    limit: str
    placement: str = ""
    planned: int = 0
    planned_host: int = 0
    peak: int = 0
    peak_host: int = 0
    step: float = 0.0
    image: float = 0.0
    refused: str = ""
    peak_own: int = 0


def synthetic_model(name: str) -> Path:
    """The file of a synthetic model: ``flux-dev`` or, of another type of weights, ``flux-dev-q8_0``.

    Raises:
        ParameterError: it was not written yet; the message says how it is.
    """
    model = next(
        (known for known in SYNTHETIC if name == known or name.startswith(f"{known}-")), ""
    )
    if not model:
        known = ", ".join(SYNTHETIC)
        raise ParameterError(
            f"there is no file {name!r}, and no synthetic model; those are {known}"
        )
    weight_type = name[len(model) + 1 :] or SYNTHETIC[model]
    given = os.environ.get("SDENGINE_BENCH_CACHE")
    folder = Path(given) if given else Path(tempfile.gettempdir()) / "sdengine-bench"
    for path in (folder / model, folder):
        if (file := path / f"{model}-{weight_type}.gguf").is_file():
            return file
    raise ParameterError(
        f"{name!r} is a synthetic model that is not in {folder} yet: write it with `python bench/synthetic.py"
        f" --model {model} --weight-type {weight_type}` in sdengine's repository"
    )


def measure(
    model: str, load: Mapping[str, Any], options: Mapping[str, Any], limit: str
) -> Measured:
    """One picture of a model within a limit, in this process.

    Args:
        model: path.
        load: arguments of :func:`sdengine.load`.
        options: of :meth:`sdengine.Pipeline.generate`; ``steps`` are those that are measured.
        limit: of the device's memory.
    """
    pipe = sdengine.load(model, **{"prompt_cache": False, **load}, memory_limit=limit)
    prompt = sdengine.pipeline.ORDINARY_PROMPT
    plan = pipe.plan(**{**options, "prompt": prompt})
    if not plan.fits:
        return Measured(limit, refused="; ".join(plan.needed))
    own = _OwnPeak()
    try:
        with own:
            result = pipe.generate(prompt, seed=1, **options)
    except OutOfMemoryError as error:
        return Measured(limit, refused=str(error))
    times = result.timings
    steps = pipe.model.defaults.steps
    host = peak_memory()
    return Measured(
        limit,
        _in_words(plan),
        plan.peak_memory,
        plan.peak_host_memory,
        max(device.peak_bytes for device in pipe.devices) if plan.has_own_memory else host,
        host,
        times["per_step"],
        times["encode"] + steps * times["per_step"] + times["decode"],
        peak_own=own.bytes,
    )


class _OwnPeak:
    """The largest memory of this process that is not pages of files, while it is open."""

    def __init__(self) -> None:
        self.bytes, self._done = 0, threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.bytes = max(self.bytes, resident_bytes()[0])

    def __enter__(self) -> None:
        self._watching.start()

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._watching.join()
        self.bytes = max(self.bytes, resident_bytes()[0])


def measured_apart(
    model: str, load: Mapping[str, Any], options: Mapping[str, Any], limit: str
) -> Measured:
    """As :func:`measure`, in a process of its own.

    Raises:
        SDEngineError: the process ended otherwise than it should; the message holds the end of what it said.
    """
    asked = json.dumps({"model": model, "load": load, "options": options, "limit": limit})
    done = subprocess.run(
        [sys.executable, "-m", "sdengine.memory.measuring", asked],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SDEngineError(f"measuring within {limit} failed: {done.stderr.strip()[-1000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def table(rows: Sequence[Measured]) -> str:
    """One line for each limit."""
    head = ("limit", "s/step", "s/image", "peak", "planned", "host peak", "planned", "placement")
    cells: list[tuple[str, ...]] = [head]
    for row in rows:
        if row.refused:
            cells.append((row.limit, *["-"] * 6, f"refused: {row.refused}"))
            continue
        sizes = (row.peak, row.planned, row.peak_host, row.planned_host)
        seconds = f"{row.step:.2f}", f"{row.image:.1f}"
        device, planned, host, planned_host = map(readable, sizes)
        cells.append((row.limit, *seconds, device, planned, host, planned_host, row.placement))
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for one in cells:
        padded = [cell.rjust(width) for cell, width in zip(one[:-1], widths, strict=False)]
        lines.append("  ".join([*padded, one[-1]]))
    return "\n".join(lines)


def plot(rows: Sequence[Measured], title: str, path: Path) -> None:
    """Seconds per step and the peak of memory over the limits, as SVG.

    Raises:
        ParameterError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ParameterError("plots are drawn by matplotlib: pip install matplotlib") from None
    from .sizes import parse_size

    done = [row for row in rows if not row.refused]
    limits = [(parse_size("memory_limit", row.limit) or 0) / 1e9 for row in done]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    memory, speed = figure.subplots(1, 2)
    memory.plot(limits, limits, "--", color="grey", label="limit")
    memory.plot(limits, [row.peak / 1e9 for row in done], "o-", label="measured")
    memory.plot(limits, [row.planned / 1e9 for row in done], "x", label="planned")
    memory.set(xlabel="limit, GB", ylabel="peak, GB", title=title)
    memory.legend()
    speed.plot(limits, [row.step for row in done], "o-")
    speed.set(xlabel="limit, GB", ylabel="seconds per step", ylim=(0, None))
    figure.savefig(path, format="svg")


def _in_words(plan: sdengine.Plan) -> str:
    parts = {part.component: part.residence for stage in plan.stages for part in stage.parts}
    policies = ", ".join(f"{name} {residence}" for name, residence in parts.items())
    together = plan.placement.together or plan.entries
    batch = "" if together == plan.entries else f", {together} of {plan.entries} at a time"
    tiles = f", tiles of {plan.tile}" if plan.tile else ""
    return policies + batch + tiles


def main() -> None:
    """Measure what the command line asks for, and print it as one line of JSON."""
    started = time.perf_counter()
    found = measure(**json.loads(sys.argv[1]))
    print(f"{time.perf_counter() - started:.1f} s", file=sys.stderr)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
