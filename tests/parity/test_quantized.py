"""Every weight type against the reference run on the dequantized weights.

Bounds: 2e-2 for quantized types, 2e-3 for f16. Weights are turned into float32 tile by tile and activations stay
float32, so what is found is near 1e-6 for all of them; LIMIT holds that.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

import sdengine
from sdengine.loading import Binding
from tests.models import UNET_CONFIG, randomise, tiny_sd1_folder

from .conftest import relative_error

LIMIT = 1e-5
TYPES = "f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k".split()


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are long enough for blocks of 256."""
    folder = tiny_sd1_folder(tmp_path_factory.mktemp("wide") / "model", seed=6)
    config = {**UNET_CONFIG, "block_out_channels": (256, 256), "layers_per_block": 1}
    unet = UNet2DConditionModel(in_channels=4, **config)
    randomise(unet, 7, spread=0.02)
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")
    return folder


def dequantized(binding: Binding) -> torch.Tensor:
    entry = binding.entry
    blob = np.fromfile(entry.path, np.uint8, count=entry.nbytes, offset=entry.offset)
    kind = gguf.GGMLQuantizationType[entry.dtype.upper()]
    values = gguf.quants.dequantize(blob, kind).reshape(entry.shape)
    return torch.tensor(values.astype(np.float32))


@pytest.mark.parametrize("weight_type", TYPES)
def test_unet(wide_folder: Path, tmp_path: Path, weight_type: str) -> None:
    path = tmp_path / "model.gguf"
    # Without the default rules: every tensor that can have the type gets it, convolutions too.
    sdengine.convert(wide_folder, path, weight_type=weight_type, rules=[f"*={weight_type}"])
    pipe = sdengine.load(path)
    plan = pipe.model.components["unet"]
    used = {binding.entry.dtype for binding in plan.bindings if len(binding.entry.shape) > 1}
    assert weight_type in used

    reference = UNet2DConditionModel.from_pretrained(wide_folder / "unet").eval()
    reference.load_state_dict({b.name: dequantized(b) for b in plan.bindings})
    latents = np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)
    cond = pipe.encode_prompt(["a red circle", "a fox"])
    with torch.no_grad():
        expected = reference(
            torch.tensor(latents), 300.0, torch.tensor(cond.context)
        ).sample.numpy()
    assert relative_error(pipe.predict(latents, 300.0, cond), expected) <= LIMIT


@pytest.mark.parametrize("weight_type", ["f16", "q8_0"])
def test_whole_model_stays_close_to_float32(
    wide_folder: Path, tmp_path: Path, weight_type: str
) -> None:
    path = tmp_path / "model.gguf"
    sdengine.convert(wide_folder, path, weight_type=weight_type)
    options = {"width": 64, "height": 64, "steps": 4, "sampler": "euler", "seed": 3}
    expected = sdengine.load(wide_folder).generate("a red circle", **options).latents
    found = sdengine.load(path).generate("a red circle", **options).latents
    assert relative_error(found, expected) <= {"f16": 2e-3, "q8_0": 5e-2}[weight_type]


@pytest.mark.parametrize("weight_type", ["f16", "q8_0", "q4_k"])
def test_quantizing_while_loading_equals_converting(
    wide_folder: Path, tmp_path: Path, weight_type: str
) -> None:
    path = tmp_path / "model.gguf"
    sdengine.convert(wide_folder, path, weight_type=weight_type)
    options = {"width": 64, "height": 64, "steps": 2, "seed": 3}
    expected = sdengine.load(path).generate("a red circle", **options).latents
    pipe = sdengine.load(wide_folder, weight_type=weight_type)
    assert np.array_equal(pipe.generate("a red circle", **options).latents, expected)
    with pytest.raises(sdengine.ParameterError, match="weight type 'q9'"):
        sdengine.load(wide_folder, weight_type="q9")
