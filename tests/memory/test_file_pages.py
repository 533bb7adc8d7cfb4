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
TABLE: dict[str, Any] = {
    "layer": "position_table",
    "side": 192,
    "out": 1024,
    "height": 48,
    "width": 48,
}
"""A table of 151 MB, of which 48 rows side by side are read in 48 places: 9.4 MB."""
ROWS = 4 * 1024 * 48 * 48

MEASURED = """
import json, re, sys
import numpy as np
from sdengine import _core

def read(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

asked = json.loads(sys.argv[1])
store, offset = _core.WeightStore(), 0
for name, shape in _core.parameters(asked["network"], asked["config"]):
    nbytes = 4 * int(np.prod(shape))
    store.add(name, "f32", list(shape), asked["path"], offset, nbytes)
    offset += nbytes
network = _core.Network(asked["network"], asked["config"], store, _core.Device.cpu(1))
inputs = {"ids": np.arange(8, dtype=np.int32).reshape(1, 8)}
if "layer" in asked["config"]:
    inputs = {"x": np.zeros((1, 48 * 48, 1024), np.float32)}
shapes = {name: list(value.shape) for name, value in inputs.items()}
planned = network.planned(shapes, policy=asked["policy"], keep=asked["keep"])
network.set_residency(asked["policy"], keep=asked["keep"])
before = read("VmRSS")
for _ in range(2):
    network.run(inputs)
took = read("VmHWM") - before
maps = open("/proc/self/smaps").read()
mapped = re.search(re.escape(asked["path"]) + r".*?\\nRss:\\s+(\\d+) kB", maps, re.DOTALL)
print(json.dumps({**planned, "took": took, "mapped": mapped and 1024 * int(mapped[1])}))
"""


def zeros(path: Path, network: str, config: dict[str, Any]) -> Path:
    """A file of zeros that takes no room on the disk; its pages are memory like all others."""
    shapes = [shape for _, shape in _core.parameters(network, config)]
    with path.open("wb") as file:
        file.truncate(sum(4 * math.prod(shape) for shape in shapes))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zeros(tmp_path_factory.mktemp("pages") / "weights", "clip_text", CONFIG)


def measured(network: str, config: dict[str, Any], path: Path, **asked: Any) -> dict[str, int]:
    """What a plan says, what a process ``took`` for two runs, and what is still ``mapped`` of the file then."""
    asked |= {"network": network, "config": config, "path": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("policy", "keep", "matrices"), [("offload", 0, 4), ("disk", 0, 1), ("disk", 150 * 10**6, 3)]
)
def test_what_is_read_is_what_is_planned(
    weights: Path, policy: str, keep: int, matrices: int
) -> None:
    found = measured("clip_text", CONFIG, weights, policy=policy, keep=keep)
    planned = found["weights"] + found["activations"]
    assert found["took"] == pytest.approx(planned, rel=0.1)
    # A segment that is read ahead, or rows of a table that nobody looks up, would be another matrix.
    assert found["weights"] == pytest.approx(matrices * MATRIX, rel=0.2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_rows_side_by_side_are_one_piece(tmp_path: Path) -> None:
    path = zeros(tmp_path / "weights", "layer", TABLE)
    found = measured("layer", TABLE, path, policy="offload", keep=0)
    assert found["weights"] == pytest.approx(found["mapped"], rel=0.1)
    assert ROWS < found["weights"] < 1.5 * ROWS
