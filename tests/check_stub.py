"""Compares the committed stub of the native module with one made from the module: ``check_stub.py STUB [--write]``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path


def make_stub() -> str:
    """The stub that pybind11-stubgen writes for the installed native module."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "sdengine._core", "--output-dir", folder]
        subprocess.run([*command, "--exit-code"], check=True)
        found = sorted(Path(folder).rglob("*.pyi"))
        text = [f"# {path.name}\n{path.read_text(encoding='utf-8')}" for path in found]
    return "\n".join(text)


def main() -> None:
    stub = Path(sys.argv[1])
    made = make_stub()
    if "--write" in sys.argv:
        stub.write_text(made, encoding="utf-8")
    elif stub.read_text(encoding="utf-8") != made:
        sys.exit(f"{stub} does not describe the native module; rewrite it with: python {__file__} {stub} --write")


if __name__ == "__main__":
    main()
