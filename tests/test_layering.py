"""Data flows one way: every include and import is read, and none may point back up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "sdengine"

# Which rooms of csrc each room may include. `base` is under all of them.
NATIVE = {
    "base": set(),
    "runtime": {"base"},
    "kernels": {"base"},
    "weights": {"base", "runtime"},
    "adapters": {"base", "runtime", "kernels", "weights"},
    "nn": {"base", "runtime", "kernels", "weights"},
    "networks": {"base", "runtime", "weights", "nn"},
    "sampling": {"base"},
    "stages": {"base", "runtime", "weights", "adapters", "networks", "sampling"},
    "bindings": {
        *("base", "runtime", "kernels", "weights", "adapters", "networks", "sampling", "stages")
    },
}

# Which parts of the package each part may import. Parts that are not listed stand on top and may import all.
PYTHON = {
    "errors": set(),
    "checks": {"errors"},
    "formats": {"errors", "checks"},
    "tokenizers": {"errors", "formats"},
    "prompt": {"errors", "tokenizers"},
    "output": {"errors"},
    "images": {"errors", "checks", "output"},
    "metadata_fields": {"errors"},
    "metadata": {"errors", "metadata_fields"},
    "random": {"errors", "_core"},
    "guidance": {"errors", "_core"},
    "sampling": {"errors", "_core", "random"},
    "keys": {"errors", "formats"},
    "families": {"errors", "formats", "keys"},
    "loading": {"errors", "checks", "formats", "keys", "families", "tokenizers", "_core"},
}


def native_includes() -> list[tuple[Path, str, str]]:
    found = []
    for path in sorted(CSRC.rglob("*")):
        if path.suffix not in {".h", ".cpp", ".inl"}:
            continue
        room = path.relative_to(CSRC).parts[0]
        for name in re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.M):
            target = name.split("/")[0]
            if target in NATIVE:
                found.append((path, room, target))
    return found


def python_imports(path: Path) -> set[str]:
    """The parts of sdengine that a file imports at its top level or inside functions."""
    parts = set()
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level]) if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{prefix}.{alias.name}" for alias in node.names]
        else:
            continue
        parts |= {n.split(".")[1] for n in names if n.startswith("sdengine.") and n.count(".") >= 1}
    return parts


def test_native_rooms_include_only_what_lies_below_them() -> None:
    includes = native_includes()
    assert len(includes) > 50, "the include scan found next to nothing: has csrc moved?"
    wrong = [
        f"{path.relative_to(ROOT)} includes {target}/"
        for path, room, target in includes
        if target != room and target not in NATIVE[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_native_room_is_listed() -> None:
    assert {p.name for p in CSRC.iterdir() if p.is_dir()} == set(NATIVE)


@pytest.mark.parametrize("part", sorted(PYTHON))
def test_python_parts_import_only_what_lies_below_them(part: str) -> None:
    folder = PACKAGE / part
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]
    assert files, f"{part} has no files"
    wrong = [
        f"{path.relative_to(ROOT)} imports sdengine.{target}"
        for path in files
        for target in python_imports(path)
        if target != part and target not in PYTHON[part]
    ]
    assert not wrong, "\n".join(wrong)


def test_networks_know_nothing_of_memory_devices_or_files() -> None:
    # A network file that mentions one of these is doing a layer's or the store's work.
    words = ("ggml_", "mmap", "GGML_TYPE", "device", "q8_0")
    for path in sorted((CSRC / "networks").rglob("*.cpp")):
        text = path.read_text()
        assert not [w for w in words if w in text], path
