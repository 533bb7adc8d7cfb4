"""The environment variable that limits the instruction set, each time in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.kernels.conftest import kernels

# What a user does first; the choice is asked for before any network runs.
OPEN = """
from sdengine import _core
from sdengine.devices import open_device
from sdengine.errors import SDEngineError
try:
    open_device("cpu", 1)
    print(_core.kernels.chosen_isa())
except SDEngineError as error:
    print(type(error).__name__, error)
"""


def opened(choice: str) -> str:
    """What opening a device says with ``SDENGINE_CPU=choice``."""
    environment = os.environ | {"SDENGINE_CPU": choice}
    command = [sys.executable, "-c", OPEN]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.parametrize("choice", ["plain", "avx2", "avx512"])
def test_a_named_variant_runs_or_is_refused(choice: str) -> None:
    if choice in kernels.isas():
        assert opened(choice) == choice
    else:
        assert opened(choice).startswith(f"DeviceError SDENGINE_CPU asks for {choice}, which")


def test_the_widest_runs_by_default() -> None:
    assert opened("") == kernels.isas()[-1]


@pytest.mark.parametrize("choice", ["sse9", "AVX2", "reference"])
def test_an_unknown_word(choice: str) -> None:
    assert opened(choice).startswith(f"ParameterError SDENGINE_CPU is '{choice}'; it takes plain,")
