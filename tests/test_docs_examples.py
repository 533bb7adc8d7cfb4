"""The examples of the documentation run: Python against the demo model, command lines against the program.

The ```` ```python ```` blocks of a page run one after the other in an empty folder. Where a block needs a file that
cannot be here, a comment above it says so (``<!-- needs: model.safetensors -->``; or ```` ```python no-run ````);
of such a block every function and every keyword is looked up. Lines that begin with ``sdengine`` in any other block
are read by the program's own parser, and run where every file that they name is there.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import sdengine
from sdengine import GenerateOptions, Pipeline, Run, Upscaler
from sdengine.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>[^\n]+?) -->\n)?^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
WRITTEN = {"output", "sheet", "animate", "preview_dir", "prompt_cache", "destination"}
"""Parameters of commands that name files to be made."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    code: str
    line: int
    """Lines before its first one."""
    needs: str | None

    @property
    def is_python(self) -> bool:
        return self.kind.startswith("python")

    @property
    def runs(self) -> bool:
        return self.kind == "python" and self.needs is None


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(
            match["kind"], match["code"], text.count("\n", 0, match.start("code")), match["needs"]
        )
        for match in FENCE.finditer(text)
    ]


def having(which: Any) -> list[str]:
    return [page for page in PAGES if any(which(block) for block in blocks(page))]


# ------------------------------ Python
@pytest.mark.parametrize("page", having(lambda block: block.runs))
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    for block in blocks(page):
        if block.runs:
            # Blank lines in front make the line numbers of a traceback those of the page.
            exec(compile("\n" * block.line + block.code, page, "exec"), namespace)


METHODS = {
    name: function
    for owner in (Pipeline, Run, Upscaler, sdengine.StepEvent)
    for name, function in inspect.getmembers(owner, inspect.isfunction)
}
"""What an example may call on its objects."""


def keywords(function: Any) -> set[str] | None:
    """The names that a function takes; None if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names |= GenerateOptions.__annotations__.keys()
        names |= inspect.signature(Pipeline.generate).parameters.keys()
    return names


def faults(code: str) -> Iterator[str]:
    """What an example calls that is not there, or calls with keywords that are not known."""
    tree = ast.parse(code)
    known: dict[str, Any] = {"sdengine": sdengine}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), "imports", "exec"), known)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = called(node.func, known)
        if function is AttributeError:
            yield f"there is no {ast.unparse(node.func)}"
        elif function is not None:
            given = {keyword.arg for keyword in node.keywords if keyword.arg}
            if unknown := given - keywords(function):
                yield f"{ast.unparse(node.func)} takes no {', '.join(sorted(unknown))}"


def called(node: ast.expr, known: dict[str, Any]) -> Any:
    """The function; None where the example made it; AttributeError where there is none."""
    if isinstance(node, ast.Name):
        return known.get(node.id) if not hasattr(builtins, node.id) else None
    if not isinstance(node, ast.Attribute):
        return None
    owner = called(node.value, known) if isinstance(node.value, ast.Name | ast.Attribute) else None
    if owner is None or owner is AttributeError:
        return METHODS.get(node.attr)
    return getattr(owner, node.attr, AttributeError)


@pytest.mark.parametrize("page", having(lambda block: block.is_python and not block.runs))
def test_python_that_cannot_run_is_spelled_right(page: str) -> None:
    for block in blocks(page):
        if block.is_python and not block.runs:
            assert not list(faults(block.code)), f"{page}, line {block.line + 1}"


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("sdengine.lod('m')", "there is no sdengine.lod"),
        ("pipe.generate('a', stpes=3)", "pipe.generate takes no stpes"),
        ("sdengine.load('m').generate('a', model='x')", "takes no model"),
        ("sdengine.load('m', vea='x')", "sdengine.load takes no vea"),
        ("from sdengine.guidance import Guidance\nGuidance(skale=1)", "Guidance takes no skale"),
    ],
)
def test_what_is_misspelled_is_found(code: str, fault: str) -> None:
    assert any(fault in found for found in faults(code))
    right = "pipe.generate('a', steps=3, callback=f)\nsdengine.Lora('x', 0.5, end=0.5)\nmine(a=1)"
    assert not list(faults(right))


# ------------------------------ command lines
def commands(page: str) -> list[list[str]]:
    """The command lines of a page, as arguments of the program."""
    found = []
    for block in blocks(page):
        if block.is_python:
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s&&\s", line.strip().removeprefix("$ ")):
                words = shlex.split(part, comments=True)
                if words[:1] == ["sdengine"] and "|" not in words and "..." not in words:
                    found.append(words[1:])
    return found


def parsed(arguments: list[str]) -> click.Context:
    name, *rest = arguments
    parent = click.Context(main, info_name="sdengine", **main.context_settings)
    return main.commands[name].make_context(name, list(rest), parent=parent)


def missing(context: click.Context) -> list[str]:
    """The files and devices that a command line names and that are not there."""
    text = []
    for name, value in context.params.items():
        if name in WRITTEN or value is None:
            continue
        listed = value if isinstance(value, list | tuple) else [value]
        text += [str(getattr(item, "path", item)) for item in listed]
    files = [t for t in text if re.search(r"^[^\s=]*(\.(\w{3,5}|safetensors)|/)$", t)]
    known = {device.name for device in sdengine.devices()}
    devices = [t for t in text if re.search(r"^((cuda|vulkan):\d+|metal)$", t) and t not in known]
    return devices + [file for file in files if not Path(file).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_command_lines(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in commands(page):
        context = parsed(arguments)  # raises for an option that is not there
        if not missing(context):
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code == 0, (arguments, result.output, result.exception)


def test_command_lines_are_found_and_run() -> None:
    assert len(commands("README.md")) >= 6
    with pytest.raises(click.ClickException, match="stpes"):
        parsed(["generate", "a", "--stpes", "3"])
    assert missing(parsed(["generate", "a", "-m", "m.gguf", "--lora", "x.safetensors:0.5"])) == [
        "m.gguf",
        "x.safetensors",
    ]
    assert missing(parsed(["generate", "a", "--steps", "3", "-o", "new.png"])) == []
