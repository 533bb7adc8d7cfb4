"""Every kind of network in plain ggml operators, against the kernels of the CPU.

`networks.json` has tiny instances of every kind: configuration, input shapes and options, as the tests of parity with
other implementations build them.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdengine import _core
from sdengine.device_checks import relative_error

INSTANCES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "networks.json").read_text())
# Sums in another order.
LIMIT = 5e-6
# ggml's CPU backend takes GELU's tanh and sigmoid forms from a table in half precision; no device but it does.
GELU_TABLE = 1e-3
WITH_GELU_TABLE = {
    "clip_text", "controlnet_union", "decoder_text", "flux", "flux_controlnet", "hunyuan_dit", "mmdit",
    "mmdit_controlnet", "pixart", "qwen_image", "siglip_vision", "t5_text",
}  # fmt: skip
# With quantized weights it rounds the other operand of a product to 8 bits, as CUDA does: 3e-3 in one layer.
QUANTIZED = 5e-2


@cache
def devices() -> tuple[_core.Device, _core.Device]:
    return _core.Device.cpu(1), _core.Device.cpu(1, portable=True)


def values_of(name: str, shape: list[int], rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return values / np.float32(math.sqrt(math.prod(shape[1:])))
    return np.float32(0.1) * values + np.float32(name.endswith("weight"))


def store_of(kind: str, config: dict[str, Any], path: Path, held: str = "f32") -> _core.WeightStore:
    """Random parameters, matrices of whole blocks in the type `held`."""
    rng = np.random.default_rng(0)
    store, places, end = _core.WeightStore(), [], 0
    with path.open("wb") as file:
        for name, shape in _core.parameters(kind, config):
            data = values_of(name, list(shape), rng).tobytes()
            places.append((name, list(shape), end, len(data)))
            file.write(data)
            end += len(data)
    for name, shape, offset, nbytes in places:
        fits = len(shape) > 1 and math.prod(shape[1:]) % 32 == 0
        converted = held if fits and held != "f32" else None
        store.add(name, "f32", shape, str(path), offset, nbytes, convert_to=converted)
    return store


def inputs_of(instance: dict[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    given = {}
    for name, about in instance["inputs"].items():
        if "most" in about:
            given[name] = rng.integers(0, about["most"] + 1, about["shape"]).astype(np.int32)
            if name == "mask":
                given[name][:, 0] = 1
        else:
            given[name] = rng.standard_normal(about["shape"], dtype=np.float32)
            if name.endswith("mask"):
                given[name] = (given[name] > 0).astype(np.float32)
    return given


def compared(instance: dict[str, Any], path: Path, held: str = "f32") -> float:
    """The largest relative error of an output."""
    kind, config = instance["kind"], instance["config"]
    given = inputs_of(instance)
    expected, found = (
        _core.Network(kind, config, store_of(kind, config, path, held), device).run(
            given, instance["options"]
        )
        for device in devices()
    )
    assert found.keys() == expected.keys()
    assert all(np.abs(array).max() > 1e-6 for array in expected.values())
    return max(relative_error(found[name], expected[name]) for name in expected)


def title(instance: dict[str, Any]) -> str:
    return instance["kind"]


@pytest.mark.parametrize("instance", INSTANCES, ids=title)
def test_a_network(instance: dict[str, Any], tmp_path: Path) -> None:
    limit = GELU_TABLE if instance["kind"] in WITH_GELU_TABLE else LIMIT
    assert compared(instance, tmp_path / "weights.bin") <= limit


@pytest.mark.parametrize("held", ["q8_0", "q4_0"])
@pytest.mark.parametrize("kind", ["unet", "autoencoder_kl_decoder", "flux", "clip_text"])
def test_quantized(kind: str, held: str, tmp_path: Path) -> None:
    instance = next(instance for instance in INSTANCES if instance["kind"] == kind)
    assert compared(instance, tmp_path / "weights.bin", held) <= QUANTIZED


def test_every_kind_has_an_instance() -> None:
    with pytest.raises(Exception, match="known are") as unknown:
        _core.parameters("no such kind", {})
    known = set(str(unknown.value).partition("known are ")[2].split(", ")) - {"layer"}
    assert known == {instance["kind"] for instance in INSTANCES}
