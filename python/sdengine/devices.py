"""The devices that networks can run on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from . import _core
from .errors import DeviceError, ParameterError

ROLES = ("denoiser", "text", "vae")
"""What may run on a device of its own."""

PORTABLE = "cpu:portable"
"""The CPU seen as a device with memory of its own, as a GPU is: to plan for one, and to test without one."""

PLUGINS = "sdengine_backends"
"""The namespace package whose portions hold the libraries of plugin wheels, one folder per backend."""


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: what ``device=`` takes.
        kind: ``"cpu"``, ``"cuda"``, ``"metal"`` or ``"vulkan"``.
        description: the maker's name for it.
        threads: CPU threads that are used by default (one per physical core); 0 for other devices.
        memory: bytes of memory in all, 0 where the system does not tell.
        free_memory: bytes that are free, 0 where the system does not tell.
        integrated: it shares the host's memory.
    """

    name: str
    kind: str
    description: str
    threads: int
    memory: int
    free_memory: int = 0
    integrated: bool = False


@dataclass(frozen=True)
class UnusableBackend:
    """A backend that is installed and cannot be used.

    Attributes:
        kind: ``"cuda"``, ``"metal"`` or ``"vulkan"``.
        library: the path of its library.
        reason: what the system, the driver or the library said.
        needs: what it needs to be used.
    """

    kind: str
    library: str
    reason: str
    needs: str


class Devices(NamedTuple):
    """A device for each part of a model; parts may share one."""

    denoiser: _core.Device
    text: _core.Device
    vae: _core.Device


def devices() -> list[Device]:
    """The devices of this machine: CUDA's, Metal's, Vulkan's, and the CPU last.

    Backends whose driver is missing are left out; :func:`unusable_backends` has them.
    """
    _find_plugins()
    return [_device(entry) for entry in _core.list_devices()]


def unusable_backends() -> list[UnusableBackend]:
    """Backends that are installed and cannot be used, with the reason."""
    devices()
    return [UnusableBackend(*failure) for failure in _core.backend_failures()]


def preferred_device() -> str:
    """What ``device="auto"`` takes: the first device with memory of its own, or Metal, else the CPU.

    A graphics unit that shares the CPU's memory is seldom quicker than our kernels; it is used when it is named.
    """
    for device in devices():
        if device.kind == "metal" or not device.integrated:
            return device.name
    return "cpu"


def open_device(name: str, threads: int = 0) -> _core.Device:
    """Open the device called ``name``.

    Args:
        name: a name from :func:`devices`, or ``"auto"``.
        threads: CPU threads; 0 takes the environment variable ``SDENGINE_THREADS``, or else one per
            physical core.

    Raises:
        DeviceError: there is no such device (the message says what there is and what is missing), or
            the environment variable ``SDENGINE_CPU`` asks for an instruction set that this
            processor lacks.
        ParameterError: ``threads`` is negative or more than 512, or ``SDENGINE_CPU`` is none of
            ``plain``, ``avx2`` and ``avx512``.
    """
    _core.kernels.chosen_isa()
    if not isinstance(threads, int) or not 0 <= threads <= 512:
        raise ParameterError(f"threads must be 0 (automatic) to 512, not {threads!r}")
    if threads == 0:
        threads = _threads_from_environment()
    if _checked_name(name) == "auto":
        name = preferred_device()
    if name in ("cpu", PORTABLE):
        return _core.Device.cpu(threads, portable=name == PORTABLE)
    _find_plugins()
    return _core.Device.open(name, threads)


def open_devices(spec: str | Mapping[str, str], threads: int = 0) -> Devices:
    """Open the devices of a model's parts; parts that name the same one share it.

    Args:
        spec: one name for all, or a mapping from ``"denoiser"``, ``"text"`` and ``"vae"``, where parts that are
            not named take ``"auto"``. Also the mapping as text: ``"denoiser=cuda:0,text=cpu"``.
        threads: CPU threads, see :func:`open_device`.

    Raises:
        DeviceError: there is no such device.
        ParameterError: a key that is no part of a model, or ``threads`` out of range.
    """
    names = parse_devices(spec)
    opened: dict[str, _core.Device] = {}
    for name in names.values():
        if name not in opened:
            opened[name] = open_device(name, threads)
    return Devices(*(opened[names[role]] for role in ROLES))


def parse_devices(spec: str | Mapping[str, str]) -> dict[str, str]:
    """The device's name for each part of a model; see :func:`open_devices`.

    Raises:
        DeviceError: what is no text where a device is named.
        ParameterError: a key that is no part of a model.
    """
    if isinstance(spec, str) and "=" in spec:
        parts = (part.partition("=") for part in spec.split(","))
        spec = {key.strip(): name.strip() for key, _, name in parts}
    if not isinstance(spec, Mapping):
        return dict.fromkeys(ROLES, _checked_name(spec))
    unknown = [key for key in spec if key not in ROLES]
    if unknown:
        raise ParameterError(
            f"device has no part {unknown[0]!r}; parts of a model are {', '.join(ROLES)}"
        )
    return {role: _checked_name(spec.get(role, "auto")) for role in ROLES}


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not name.isprintable():
        raise DeviceError(f"a device is named by a text, not {name!r}; see sdengine.devices()")
    return name


def _device(entry: dict[str, Any]) -> Device:
    name, kind, integrated = entry["name"], entry["kind"], entry["integrated"]
    if kind == "cpu":
        sizes = _total_memory(), available_memory()
        return Device(name, kind, _cpu_name(), _core.physical_cores(), *sizes, integrated)
    sizes = entry["memory_total"], entry["memory_free"]
    return Device(name, kind, entry["description"], 0, *sizes, integrated)


def _find_plugins() -> None:
    """Tell the core where plugin wheels put their libraries; nothing of theirs is imported."""
    spec = find_spec(PLUGINS)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        _core.add_backend_root(str(Path(folder).absolute()))


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
    status = Path("/proc/self/status")
    # What getrusage says begins, on Linux, with the memory of the program that started this one.
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
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
