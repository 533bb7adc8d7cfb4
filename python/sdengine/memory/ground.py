"""What a process and a device hold and have free, before a generation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdengine.devices import available_memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sdengine import _core

_GROWTH = 7 * 10**6
"""What a generation adds to the process besides weights, activations, arrays and operators' buffers: descriptions of
graphs, Python's objects, the libraries' code that runs for the first time. Measured: 2 to 7 MB, of the smallest model
as of the largest."""
_SCRATCH = 10**6, 2_600_000
_SCRATCH_BY_WEIGHTS = 1 / 40
"""Operators' buffers of each thread, which it keeps (csrc/kernels/scratch.h): for networks of few channels and, from
256 channels on, the most; and how they grow with the largest network's weights in between. Measured: 0.9 to 1.7 MB
(6 MB of weights), 2.56 MB (Stable Diffusion 1.5, SDXL, FLUX.1)."""
_ASSUMED_GROUND = 120 * 10**6
"""Of Python with numpy, Pillow and the native libraries, for systems that do not tell."""


@dataclass(frozen=True)
class Ground:
    """Memory before a generation.

    Attributes:
        process: bytes that this process holds besides mapped weights and the networks' activations.
        free: bytes that each device can still give, by its name; 0 where nobody tells.
    """

    process: int
    free: Mapping[str, int]


def resident_bytes() -> tuple[int, int]:
    """Memory of this process: its own, and pages of files; zeros where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0, 0
    found = dict(re.findall(r"^(Rss\w+):\s+(\d+) kB", status.read_text(), re.MULTILINE))
    return 1024 * int(found.get("RssAnon", 0)), 1024 * int(found.get("RssFile", 0))


def ground(
    devices: Iterable[_core.Device], networks: Iterable[_core.Network], libraries: int
) -> Ground:
    """Memory as it is now.

    Args:
        devices: that are used.
        networks: whose activations are left out, for they are used again or given back.
        libraries: bytes of mapped files that are no weights, measured when the model was loaded.
    """
    own, _ = resident_bytes()
    held = sum(network.activation_bytes for network in networks)
    host_free, free = available_memory(), {}
    in_process = 0
    for device in devices:
        if device.has_own_memory:
            free[device.name] = device.memory()[0] + device.allocated_bytes
        else:
            free[device.name] = host_free + held if host_free else 0
            in_process = held
    process = max(own - in_process, 0) + libraries if own else _ASSUMED_GROUND
    return Ground(process, free)


def growth(weights: int, threads: int) -> int:
    """Bytes that a generation adds to the process besides weights, activations and arrays.

    Args:
        weights: bytes of the largest network.
        threads: that compute on the CPU; 0 where none does.
    """
    least, most = _SCRATCH
    return _GROWTH + threads * min(least + int(_SCRATCH_BY_WEIGHTS * weights), most)
