"""The documentation is true: its links lead somewhere, its numbers are the code's; its examples are run by
test_docs_examples.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdengine.recipes import RECIPES
from sdengine.sampling import SAMPLERS, SCHEDULES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)
NOT_RUN = "python no-run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fences_are_of_known_kinds(page: Path) -> None:
    kinds = {match["kind"] for match in FENCE.finditer(page.read_text())}
    assert kinds <= {"", "sh", "bash", "console", "python", NOT_RUN}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", FENCE.sub("", page.read_text()))
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (page.parent / target).exists()]


def test_numbers_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert f"{len(SAMPLERS)} samplers, {len(SCHEDULES)} schedules" in text
    assert f"{len(SAMPLERS)} and {len(SCHEDULES)} of them" in text
    assert f"{len(RECIPES)} recipes" in text


def test_every_sampler_and_schedule_is_documented() -> None:
    text = (ROOT / "docs" / "sampling.md").read_text()
    assert not [name for name in (*SAMPLERS, *SCHEDULES) if f"`{name}`" not in text]


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "python" / "sdengine"
    modules = {path.stem for path in package.glob("[a-z]*.py")}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    assert not [name for name in sorted(modules | packages) if f"`{name}" not in text]
    rooms = {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()}
    assert not [name for name in sorted(rooms) if f"csrc/{name}" not in text]
