"""Settings for every test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The networks of tests are so small that more threads only wait for each other; tests of threads name a number.
os.environ.setdefault("SDENGINE_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Tests of a device that is named, see noxfile.py; there is none by default.
collect_ignore = [] if "SDENGINE_TEST_DEVICE" in os.environ else ["device"]

made_by: dict[pytest.FixtureDef[Any], set[Path]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Iterator[None]:
    """Notes the temporary folders that a fixture of several tests makes."""
    if "tmp_path_factory" not in fixturedef.argnames or fixturedef.scope == "function":
        return (yield)
    base = request.getfixturevalue("tmp_path_factory").getbasetemp()
    before = set(base.iterdir())
    result = yield
    made_by[fixturedef] = set(base.iterdir()) - before
    return result


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Removes them with it: pytest would keep all models of all tests, gigabytes, until the end."""
    for folder in made_by.pop(fixturedef, ()):
        shutil.rmtree(folder, ignore_errors=True)
