"""Lay out a CUDA toolkit from PyPI: ``python toolchain.py FOLDER`` prints its root.

NVIDIA publishes compiler, headers and libraries as wheels that unpack into one tree. CMake expects three things that
wheels cannot hold: a ``lib64`` folder, libraries under their names without a version, and a ``libcuda.so``
to link with (the real one comes with the driver).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = (
    *("nvidia-cuda-nvcc==13.0.88", "nvidia-cuda-crt==13.0.88", "nvidia-nvvm==13.0.88"),
    *("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cccl==13.0.85", "nvidia-cuda-culibos==13.0.85"),
    "nvidia-cublas==13.1.0.3",
)


def install(folder: Path) -> Path:
    """Install the wheels below ``folder`` and return the toolkit's root."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    subprocess.run([*command, "--target", str(folder), *REQUIREMENTS], check=True)
    return folder / "nvidia" / "cu13"


def complete(root: Path) -> None:
    """Add what the wheels lack."""
    libraries = root / "lib"
    if not (root / "lib64").exists():
        (root / "lib64").symlink_to("lib")
    for library in libraries.glob("*.so.*"):
        plain = libraries / f"{library.name.split('.so')[0]}.so"
        if not plain.exists():
            plain.symlink_to(library.name)
    make_driver_stub(root / "include" / "cuda.h", libraries / "stubs")


def make_driver_stub(header: Path, folder: Path) -> None:
    """Make a ``libcuda.so`` with the driver's functions, empty.

    A library without them would do for the linker, but it would then not note that it needs ``libcuda.so.1``, and its
    functions would be missing where the driver is installed too.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("a C compiler is needed to make a stub of libcuda.so")
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+", header.read_text("utf-8"))))
    folder.mkdir(exist_ok=True)
    options = ["-shared", "-w", "-Wl,-soname,libcuda.so.1", "-x", "c", "-"]
    source = "".join(f"void {name}(void) {{}}\n" for name in names)
    command = [compiler, *options, "-o", str(folder / "libcuda.so")]
    subprocess.run(command, input=source, text=True, check=True)


def main() -> None:
    """Make the toolkit and print where it is."""
    root = install(Path(sys.argv[1]).resolve())
    complete(root)
    print(root)


if __name__ == "__main__":
    main()
