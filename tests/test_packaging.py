"""What wheels are made of: the stub that the CUDA backend is linked with, and the licences of what is inside."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def toolchain() -> ModuleType:
    path = ROOT / "packaging" / "cuda13" / "toolchain.py"
    spec = importlib.util.spec_from_file_location("toolchain", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="toolkits are laid out on Linux only")
def test_what_is_linked_with_the_stub_asks_for_the_driver(
    toolchain: ModuleType, tmp_path: Path
) -> None:
    header = tmp_path / "cuda.h"
    header.write_text(
        "#define cuMemGetInfo cuMemGetInfo_v2\n"
        "CUresult CUDAAPI cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size);\n"
        "CUresult CUDAAPI cuMemGetInfo(size_t *free, size_t *total);\n"
    )
    toolchain.make_driver_stub(header, tmp_path / "stubs")
    stub = (tmp_path / "stubs" / "libcuda.so").read_bytes()
    for name in (b"libcuda.so.1", b"cuMemCreate", b"cuMemGetInfo", b"cuMemGetInfo_v2"):
        assert b"\0" + name + b"\0" in stub

    # --as-needed is the default of some systems' compilers: a library that brings no symbol is then left out.
    library = tmp_path / "backend.so"
    command = ["cc", "-shared", "-w", "-x", "c", "-", "-o", str(library), "-Wl,--as-needed"]
    command += ["-L", str(tmp_path / "stubs"), "-x", "none", "-lcuda"]
    source = "int cuMemCreate(); int backend(void) { return cuMemCreate(); }"
    subprocess.run([*command, "-fPIC"], input=source, text=True, check=True)
    with pytest.raises(OSError, match=r"libcuda\.so\.1: cannot open shared object file"):
        ctypes.CDLL(str(library))


@pytest.mark.parametrize("project", [".", "packaging/cuda13", "packaging/vulkan"])
def test_wheels_hold_the_licences_of_what_is_compiled_in(project: str) -> None:
    text = (ROOT / project / "pyproject.toml").read_text("utf-8")
    line = re.search(r"^license-files = \[(.*)\]$", text, re.M)
    assert line is not None
    files = [
        f for pattern in re.findall('"(.*?)"', line[1]) for f in (ROOT / project).glob(pattern)
    ]
    notices = "".join(file.read_text("utf-8") for file in files)
    owners = ["The sdengine authors", "The ggml authors", "Mozilla Foundation", "Jeffrey Quesnelle"]
    if project == ".":
        owners.append("Wenzel Jakob")  # pybind11
    assert [owner for owner in owners if owner not in notices] == []
