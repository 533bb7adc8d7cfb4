"""The devices that networks can run on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from . import _core
from .errors import DeviceError, ParameterError


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: what ``device=`` takes.
        kind: ``"cpu"``.
        description: the maker's name for it.
        threads: threads that are used by default (one per physical core).
        memory: bytes of memory in all, 0 where the system does not tell.
    """

    name: str
    kind: str
    description: str
    threads: int
    memory: int


def devices() -> list[Device]:
    """The devices of this machine, the one that ``device="auto"`` takes first."""
    return [Device("cpu", "cpu", _cpu_name(), _core.physical_cores(), _total_memory())]


def open_device(name: str, threads: int = 0) -> _core.Device:
    """Open the device called ``name``.

    Args:
        name: a name from :func:`devices`, or ``"auto"``.
        threads: CPU threads; 0 takes the environment variable ``SDENGINE_THREADS``, or else one per
            physical core.

    Raises:
        DeviceError: there is no such device.
        ParameterError: ``threads`` is negative or more than 512.
    """
    if not isinstance(threads, int) or not 0 <= threads <= 512:
        raise ParameterError(f"threads must be 0 (automatic) to 512, not {threads!r}")
    if threads == 0:
        threads = _threads_from_environment()
    names = [device.name for device in devices()]
    if not isinstance(name, str) or name not in ("auto", *names):
        raise DeviceError(f"there is no device {name!r}; this build knows auto, {', '.join(names)}")
    return _core.Device.cpu(threads)


def _threads_from_environment() -> int:
    text = os.environ.get("SDENGINE_THREADS", "0")
    if not text.isdecimal():
        raise ParameterError(f"SDENGINE_THREADS must be a whole number, not {text!r}")
    return int(text)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def available_memory() -> int:
    """Bytes of memory that this process may still take; 0 where the system does not tell.

    On Linux what is free or can be freed without swapping, within the limits of its control group.
    """
    info = Path("/proc/meminfo")
    if not info.is_file():
        return 0
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    free = int(fields.get("MemAvailable", "0 kB").split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # File pages in the group's cache are given up when they are needed.
        return min(free, max(0, limit - used + int(counts.get("file", "0"))))
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return free
