"""A backend that gives up in the middle of a graph: a typed error, not a dead process; and what it takes for itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sdengine import _core
from sdengine.errors import DeviceError, OutOfMemoryError

THROWN = {
    "vk::Device::allocateMemory: ErrorOutOfDeviceMemory": OutOfMemoryError,
    "vk::Queue::submit: ErrorDeviceLost": DeviceError,
}
ABORTED = {"CUDA error: out of memory": OutOfMemoryError, "CUDA error: bad launch": DeviceError}


@pytest.mark.parametrize("message", THROWN)
def test_what_a_backend_throws(message: str) -> None:
    with pytest.raises(THROWN[message], match=f"in the middle of a graph: {message}"):
        _core.fail_in_graph(False, message)


@pytest.mark.parametrize("message", ABORTED)
def test_where_a_backend_gives_up(message: str) -> None:
    """ggml ends the process then; its callback throws through it, again and again."""
    for _ in range(3):
        with pytest.raises(ABORTED[message], match=message):
            _core.fail_in_graph(True, message)


def test_elsewhere_the_process_ends_with_a_message() -> None:
    """On the CPU other threads wait for the one that fails: nothing can be saved there."""
    program = """
import ctypes
from sdengine import _core
try:
    _core.fail_in_graph(True, "first")
except Exception:
    pass
path = next(line.split()[-1] for line in open("/proc/self/maps") if "ggml-base" in line)
abort = ctypes.CDLL(path).ggml_abort
abort(b"some.cpp", 7, b"second")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode < 0
    assert "some.cpp:7: second" in done.stderr


def test_scratch_of_products() -> None:
    """Figures of ggml 0.25.3's sources; see csrc/runtime/scratch.cpp."""
    shape, rows = (1024, 512), 4096
    weights, inputs, results = 1024 * 512, 512 * rows, 1024 * rows
    mib = 1 << 20
    quantized = _core.product_scratch("cuda:0", "q4_0", shape, rows)
    assert inputs * 9 // 8 <= quantized - 32 * mib <= 1.05 * inputs * 9 / 8 + 2 * mib
    half = _core.product_scratch("cuda:1", "f16", shape, rows)
    exact = 4 * weights + 2 * inputs + 2 * results
    assert exact <= half - 32 * mib <= 1.05 * exact + 2 * mib
    on_vulkan = _core.product_scratch("vulkan:0", "q8_0", shape, rows)
    assert on_vulkan == 2 * (inputs + 256 * 512)
    assert _core.product_scratch("vulkan:0", "f32", shape, rows) == on_vulkan + 2 * weights
    few, deep = 512 * 8, 4096
    assert _core.product_scratch("vulkan:0", "q8_0", shape, 8) == 4 * few
    found = _core.product_scratch("vulkan:0", "q8_0", (1024, deep), rows)
    assert found == 2 * deep * (rows + 256) + 64 * mib
    for device in ("cpu", "cpu:portable", "metal"):
        assert _core.product_scratch(device, "q8_0", shape, rows) == 0
