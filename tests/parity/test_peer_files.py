"""GGUF files that stable-diffusion.cpp's own converter writes, where its Python package is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sdengine
from tests import unet_models
from tests.unet_models import TINY, dequantized, tiny_folder, write_safetensors

from .conftest import relative_error
from .test_unet_families import (
    Network,
    clip_inputs,
    conditions,
    native_inputs,
    token_ids,
)

peer = pytest.importorskip("stable_diffusion_cpp.stable_diffusion_cpp")

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}  # ggml's numbers
# Of outputs, from the loss of the weights alone (measured; the tiny networks have no redundancy).
LOSS = {"f16": 2e-3, "q8_0": 2e-2, "q4_0": 0.3}
MEMBERS = ("sd1", "sd2", "sdxl", "refiner")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny members as single files."""
    root = tmp_path_factory.mktemp("peer")
    return {
        name: write_safetensors(
            unet_models.single_file(tiny_folder(root / name, name, seed=9), name),
            root / f"{name}.safetensors",
        )
        for name in MEMBERS
    }


def convert(original: Path, target: Path, weight_type: str) -> Path:
    arguments = (str(original).encode(), b"", str(target).encode(), TYPES[weight_type], b"", True)
    assert peer.convert(*arguments)
    return target


def outputs(path: Path, name: str) -> dict[str, np.ndarray]:
    """What every network of a file but the autoencoder computes."""
    inputs = native_inputs(conditions(name, 1, 8, 8))
    found = {"prediction": Network(path, "unet")(inputs)["prediction"]}
    for component in TINY[name].encoders:
        network = Network(path, component)
        ids = clip_inputs(token_ids(network.config["vocab_size"]))
        found |= {f"{component} {key}": value for key, value in network(ids).items()}
    return found


@pytest.mark.parametrize("name", MEMBERS)
def test_float32_files_give_identical_results(
    originals: dict[str, Path], tmp_path: Path, name: str
) -> None:
    expected = outputs(originals[name], name)
    found = outputs(convert(originals[name], tmp_path / "peer.gguf", "f32"), name)
    assert found.keys() == expected.keys()
    for key in expected:
        assert np.array_equal(found[key], expected[key]), key


@pytest.mark.parametrize("weight_type", LOSS)
@pytest.mark.parametrize("name", MEMBERS)
def test_quantized_files_lose_no_more_than_their_weights(
    originals: dict[str, Path], tmp_path: Path, name: str, weight_type: str
) -> None:
    path = convert(originals[name], tmp_path / "peer.gguf", weight_type)
    found = outputs(path, name)
    same_values = outputs(dequantized(path, tmp_path / "values.safetensors"), name)
    expected = outputs(originals[name], name)
    for key in expected:
        assert relative_error(found[key], same_values[key]) <= 1e-4, key
        assert relative_error(found[key], expected[key]) <= LOSS[weight_type], key


@pytest.mark.parametrize("name", MEMBERS)
def test_the_peer_reads_converted_files(tmp_path: Path, name: str) -> None:
    """Under the names that `sdengine convert` writes; it copies what it read into a file of its own."""
    folder = tiny_folder(tmp_path / "model", name, seed=9)
    rules = {
        "kind:kernel": "f16"
    }  # quantized kernels are matrices, whose true shape it does not know
    mine = sdengine.convert(folder, tmp_path / "mine.gguf", "q8_0", rules).path
    expected, found = (
        outputs(mine, name),
        outputs(convert(mine, tmp_path / "peer.gguf", "f32"), name),
    )
    assert found.keys() == expected.keys()
    for key in expected:
        assert relative_error(found[key], expected[key]) <= 1e-4, key
