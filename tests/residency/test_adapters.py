"""Adapters reach weights wherever these are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdengine import _core

from .conftest import Tiny, assert_same, new_device
from .test_policies import POLICIES

PAIR = "down_blocks.0.resnets.0.conv1.weight"
VECTOR = "down_blocks.0.resnets.0.conv1.bias"


def adapter(tiny: Tiny, path: Path) -> _core.Adapter:
    """A low-rank pair beside a matrix, and a change of a vector, which is merged."""
    shapes = dict(_core.parameters(tiny.kind, dict(tiny.plan.config)))
    out, *rest = shapes[PAIR]
    random = np.random.default_rng(5)
    arrays = {
        "down": random.standard_normal((2, *rest)).astype(np.float32) * 0.1,
        "up": random.standard_normal((out, 2, *[1] * (len(rest) - 1))).astype(np.float32) * 0.1,
        "value": random.standard_normal(shapes[VECTOR]).astype(np.float32),
    }
    path.write_bytes(b"".join(array.tobytes() for array in arrays.values()))
    tensors, offset = {}, 0
    for name, array in arrays.items():
        tensors[name] = ("f32", list(array.shape), path, offset, array.nbytes, None)
        offset += array.nbytes
    made = _core.Adapter()
    pair = {name: tensors[name] for name in ("down", "up")}
    made.add(PAIR, list(shapes[PAIR]), "low_rank", pair, 1.0)
    made.add(VECTOR, list(shapes[VECTOR]), "add", {"value": tensors["value"]}, 1.0)
    return made


@pytest.mark.parametrize("policy", POLICIES)
def test_on_and_off(
    tiny_models: dict[str, Tiny], device: _core.Device, tmp_path: Path, policy: str
) -> None:
    tiny = tiny_models["unet"]
    change = adapter(tiny, tmp_path / "adapter")
    reference = tiny.on(new_device())
    network = tiny.on(device)
    network.set_residency(policy)
    plain = reference.run(tiny.inputs)
    allocated = set()
    for _ in range(2):
        for uses in ([], [(change, 1.0)], [(change, 0.5)], [(change, 0.5), (change, 0.25)]):
            reference.release()
            reference.set_adapters(uses)
            network.set_adapters(uses)
            expected = reference.run(tiny.inputs)
            assert np.array_equal(expected["prediction"], plain["prediction"]) == (not uses)
            for _ in range(2):
                assert_same(network.run(tiny.inputs), expected)
        allocated.add(device.allocated_bytes)
    assert len(allocated) == 1  # nothing is left of adapters that have gone
    network.set_adapters([])
    assert_same(network.run(tiny.inputs), plain)
