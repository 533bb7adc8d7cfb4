"""What ggml's Vulkan backend says itself about the memory that it takes, beside our counters and plans."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

NAME = os.environ["SDENGINE_TEST_DEVICE"]

GENERATED = """
import json, sys
import sdengine
load = {"device": sys.argv[1], "prompt_cache": False}
options = {"width": 128, "height": 128, "steps": 1, "guidance_scale": 4.0}
pipe = sdengine.load(sdengine.api.DEMO_MODEL, **load, memory_limit="8GB")
plan = pipe.plan(prompt="a circle", **options)
if sys.argv[2] == "least":
    pipe = sdengine.load(sdengine.api.DEMO_MODEL, **load, memory_limit=plan.smallest_limit)
    plan = pipe.plan(prompt="a circle", **options)
pipe.generate("a circle", seed=1, **options)
print(json.dumps({"planned": plan.peak_memory, "counted": pipe.devices.denoiser.peak_bytes}))
"""
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@pytest.mark.parametrize("limit", ["none", "least"])
def test_the_backend_counts_what_was_planned(limit: str) -> None:
    """All but what the backend takes for its own ends: 0.4 MB here, 1 % of small pictures."""
    done = subprocess.run(
        [sys.executable, "-c", GENERATED, NAME, limit],
        env={**os.environ, "GGML_VK_MEMORY_LOGGER": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    told = re.findall(r"Total device: ([\d.]+) ([KMG]?i?B)", done.stderr)
    most = max(float(number) * UNITS[unit] for number, unit in told)
    assert found["counted"] == pytest.approx(most, rel=0.05)
    assert found["planned"] == pytest.approx(most, rel=0.1)
