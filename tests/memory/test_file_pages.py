"""What a process holds of a file while a network runs on the CPU is what was planned; in processes of their own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdengine import _core

CONFIG: dict[str, Any] = {
    "vocab_size": 40_000,
    "hidden_size": 512,
    "intermediate_size": 32_768,
    "layers": 2,
    "heads": 8,
    "max_positions": 16,
    "activation": "quick_gelu",
    "eps": 1e-5,
    "projection_dim": 0,
    "eos_token_id": 2,
    "has_projection": False,
}
"""A text encoder with a table of 82 MB, of which it reads a few rows, and four matrices of 67 MB."""
MATRIX = 4 * 512 * 32_768

MEASURED = """
import json, re, sys
import numpy as np
from sdengine import _core

def read(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

asked = json.loads(sys.argv[1])
store, offset = _core.WeightStore(), 0
for name, shape in _core.parameters("clip_text", asked["config"]):
    nbytes = 4 * int(np.prod(shape))
    store.add(name, "f32", list(shape), asked["path"], offset, nbytes)
    offset += nbytes
network = _core.Network("clip_text", asked["config"], store, _core.Device.cpu(1))
ids = np.arange(8, dtype=np.int32).reshape(1, 8)
planned = network.planned({"ids": [1, 8]}, policy=asked["policy"], keep=asked["keep"])
network.set_residency(asked["policy"], keep=asked["keep"])
before = read("VmRSS")
for _ in range(2):
    network.run({"ids": ids})
print(json.dumps({**planned, "took": read("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of zeros that takes no room on the disk; its pages are memory like all others."""
    path = tmp_path_factory.mktemp("pages") / "weights"
    shapes = [shape for _, shape in _core.parameters("clip_text", CONFIG)]
    with path.open("wb") as file:
        file.truncate(sum(4 * math.prod(shape) for shape in shapes))
    return path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("policy", "keep", "matrices"), [("offload", 0, 4), ("disk", 0, 1), ("disk", 150 * 10**6, 3)]
)
def test_what_is_read_is_what_is_planned(
    weights: Path, policy: str, keep: int, matrices: int
) -> None:
    asked = {"config": CONFIG, "path": str(weights), "policy": policy, "keep": keep}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    planned = found["weights"] + found["activations"]
    assert found["took"] == pytest.approx(planned, rel=0.1)
    # A segment that is read ahead, or rows of a table that nobody looks up, would be another matrix.
    assert found["weights"] == pytest.approx(matrices * MATRIX, rel=0.2)
