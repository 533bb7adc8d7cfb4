"""Clocks, memory, machine facts, and the child processes in which everything is measured.

A measurement has a process of its own, because the peak of resident memory belongs to a process and
cannot be lowered again. A child prints one line of JSON, its last one; the parent reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import shapes
from numpy.typing import NDArray

Array = NDArray[np.float32]
Output = TypeVar("Output")
HERE = Path(__file__).resolve().parent
PROMPT = "a photograph of a lighthouse on a cliff at dusk, storm clouds, long exposure"
FACTOR = 8
"""Pixels per latent along a side."""
LATENT_SCALE = 0.18215
"""Latents as the denoiser sees them over latents as the autoencoder does (Rombach et al. 2022)."""
TIMESTEP = 500.0
PROBED = 512


class Laps:
    """Wall and processor seconds between calls of :meth:`lap`.

    Processor seconds (of all threads together) are what remains comparable on a machine with other
    work; on an idle one, wall seconds are the truth.
    """

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.restart()

    def restart(self) -> None:
        """The next lap begins now."""
        self._began = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        """A lap ends and the next one begins."""
        wall, cpu = self._began
        self.restart()
        self.wall.append(self._began[0] - wall)
        self.cpu.append(self._began[1] - cpu)

    def summary(self, warm_ups: int = 0) -> dict[str, Any]:
        """Seconds of every lap after `warm_ups`, their medians, and the first lap's."""
        return {
            "first": round(self.wall[0], 4),
            "seconds": [round(s, 4) for s in self.wall[warm_ups:]],
            "median": round(statistics.median(self.wall[warm_ups:]), 4),
            "cpu_median": round(statistics.median(self.cpu[warm_ups:]), 4),
        }


def timed(
    work: Callable[[], Output], repeats: int, warm_ups: int = 1
) -> tuple[dict[str, Any], Output]:
    """Call `work` ``warm_ups + repeats`` times: :meth:`Laps.summary`, and what it returned last."""
    laps = Laps()
    for _ in range(warm_ups + repeats):
        output = work()
        laps.lap()
    return laps.summary(warm_ups), output


def denoiser_inputs(size: int, batch: int = 1) -> tuple[Array, Array]:
    """Latents ``[batch, 4, size / 8, size / 8]`` and context ``[batch, 77, 768]``, fixed."""
    random = np.random.default_rng(0)
    side = size // FACTOR
    latents = random.standard_normal((1, shapes.FULL.latent_channels, side, side), np.float32)
    context = random.standard_normal((1, shapes.FULL.positions, shapes.FULL.text_width), np.float32)
    return latents.repeat(batch, axis=0), context.repeat(batch, axis=0)


def probe(output: Array) -> list[float]:
    """Evenly spaced values of a network's output, to see that contenders did the same work."""
    flat = output.reshape(-1)
    return [round(float(value), 6) for value in flat[:: max(1, flat.size // PROBED)]]


def relative_error(found: Sequence[float], expected: Sequence[float]) -> float:
    """L2 norm of the difference over that of what was expected."""
    difference = np.subtract(found, expected)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes; weights mapped and read count."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> dict[str, int]:
    """The model is loaded: the peak of that, and :func:`evaluating_peak` tells the one from now on (Linux)."""
    peak = peak_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return {"load_peak_memory": peak}


def evaluating_peak() -> dict[str, int]:
    """Peak of resident memory in bytes since :func:`forget_peak`, or since the start where it cannot be forgotten."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return {"peak_memory": 1024 * int(found[1]) if found else peak_memory()}


class UnmappedPeak:
    """The most memory that this process held besides mapped files, seen every few milliseconds (Linux).

    Mapped weights that have been read count as resident, and leave when memory is wanted; what remains is
    what a run truly takes.
    """

    EVERY = 0.01
    """Seconds."""

    def __init__(self) -> None:
        self.highest = 0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> UnmappedPeak:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        status = Path("/proc/self/status")
        while not self._ended.wait(self.EVERY) and status.exists():
            found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
            self.highest = max(self.highest, 1024 * int(found[1]) if found else 0)


def warm(path: Path) -> None:
    """Read a file once, so that the next reader finds it in the operating system's cache."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def bind_to_cores(threads: int) -> list[int]:
    """Keep this process and its children on the first `threads` cores it may use, where it can."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return cores


def child(
    script: str,
    arguments: Sequence[str],
    threads: int,
    variables: Mapping[str, str] | None = None,
    limit: float | None = None,
) -> Any:
    """Run ``bench/<script>`` in a process of its own and return the JSON it prints last.

    Args:
        script: a file of this folder.
        arguments: its command line.
        threads: for libraries that take the number of threads from the environment.
        variables: further environment variables.
        limit: seconds after which it is stopped.

    Raises:
        RuntimeError: the child failed; the message holds the end of what it said.
        subprocess.TimeoutExpired: it ran longer than `limit`.
    """
    settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env={**os.environ, **settings, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise RuntimeError(f"{script} {' '.join(arguments)} ended with {done.returncode}:\n{said}")
    return json.loads(lines[-1])


def load_average() -> float | None:
    """Runnable processes over the last minute; above the cores in use, times say little."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def machine() -> dict[str, Any]:
    """What a reader must know of the machine to place the numbers."""
    return {
        "processor": _processor(),
        "cores": os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count(),
        "features": _features(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": _first_line(["c++", "--version"]),
        "python": platform.python_version(),
    }


def slug(facts: Mapping[str, Any]) -> str:
    """A file name for a machine, such as ``amd-epyc-4-cores``."""
    name = f"{facts['processor']} {facts['cores']} cores".lower()
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report that people and diffs can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _cpu_info(field: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else ""


def _processor() -> str:
    if sys.platform == "darwin":
        return _first_line(["sysctl", "-n", "machdep.cpu.brand_string"])
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _features() -> list[str]:
    """The instruction sets that matter for matrix products."""
    wanted = (
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx_vnni",
        "amx_int8",
    )
    present = set(_cpu_info("flags").split())
    return [name for name in wanted if name in present]


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _first_line(command: Sequence[str]) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.splitlines()[0] if said else "unknown"
