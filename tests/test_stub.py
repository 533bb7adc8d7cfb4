"""The committed stub describes the native module: the same names, and the same parameters in the same order."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sdengine import _core

STUB = Path(__file__).resolve().parents[1] / "python" / "sdengine" / "_core.pyi"
TREE = ast.parse(STUB.read_text(encoding="utf-8"))
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name: node for node in TREE.body if isinstance(node, ast.FunctionDef)}
# What Python itself adds to every extension class.
INHERITED = set(dir(type("Empty", (), {}))) | {"__module__", "__doc__", "_pybind11_conduit_v1_"}


def stub_parameters(node: ast.FunctionDef) -> list[str]:
    names = [argument.arg for argument in node.args.args if argument.arg != "self"]
    return names + ["*"] * bool(node.args.kwonlyargs) + [a.arg for a in node.args.kwonlyargs]


def native_parameters(function: object) -> list[str]:
    """Parameter names from the signature line that pybind11 writes into a docstring."""
    line = str(function.__doc__).splitlines()[0]
    inside = line[line.index("(") + 1 : line.rindex(")")]
    depth, parts, current = 0, [], ""
    for char in inside:
        depth += (char in "[(<{") - (char in "])>}")
        if char == "," and depth == 0:
            parts, current = [*parts, current], ""
        else:
            current += char
    parts = [part.strip() for part in [*parts, current] if part.strip()]
    names = [re.split(r"[:=]", part)[0].strip() for part in parts]
    return [name for name in names if name not in ("self", "/")]


def test_same_names() -> None:
    variables = {
        node.target.id
        for node in TREE.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    declared = set(CLASSES) | set(FUNCTIONS) | variables
    native = {name for name in dir(_core) if not name.startswith("_")} | {"__version__"}
    assert declared == native


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions(name: str) -> None:
    assert stub_parameters(FUNCTIONS[name]) == native_parameters(getattr(_core, name))


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_classes(name: str) -> None:
    native = getattr(_core, name)
    methods = {node.name: node for node in CLASSES[name].body if isinstance(node, ast.FunctionDef)}
    present = {member for member in vars(native) if member not in INHERITED} | (
        {"__init__"} & set(methods)
    )
    assert set(methods) - {"__iter__"} == present  # iteration goes through __getitem__
    for method, node in methods.items():
        kinds = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
        if "property" in kinds:
            assert isinstance(vars(native)[method], property), method
        elif method != "__iter__":
            assert stub_parameters(node) == native_parameters(getattr(native, method)), method
