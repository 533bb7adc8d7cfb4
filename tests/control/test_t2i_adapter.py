"""T2I adapters against diffusers: their features, whole pipelines, every layout alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sdengine
from sdengine.errors import ParameterError
from tests.unet_models import write_gguf, write_safetensors

from .conftest import Folders, control_network, noise, picture, relative_error
from .models import adapter_to_tencent, build_adapter
from .test_pipelines import FIRST, LIMIT, generate, reference

CHANNELS = {"sd1": (64, 128), "vega": (64, 128, 128, 128), "light": (64, 128), "grey": (64, 128)}
KINDS = {"vega": "full_adapter_xl", "light": "light_adapter"}


def make(name: str, seed: int = 0) -> torch.nn.Module:
    kind = KINDS.get(name, "full_adapter")
    return build_adapter(CHANNELS[name], seed, kind, 1 if name == "grey" else 3)


def model_of(folders: Folders, name: str) -> Path:
    return folders[{"vega": "vega", "light": "small-sd"}.get(name, "sd1")]


@pytest.fixture
def saved(tmp_path: Path):
    def save(name: str, seed: int = 0) -> Path:
        make(name, seed).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_features(folders: Folders, saved, name: str, size: tuple[int, int]) -> None:
    adapter, side = make(name), 16 if name == "vega" else 8
    colours, (height, width) = 1 if name == "grey" else 3, size
    hint = torch.tensor(noise(2, colours, height, width))
    with torch.no_grad():
        expected = adapter(hint)
    network = control_network(saved(name), model_of(folders, name))
    found = network.run({"hint": torch.nn.functional.pixel_unshuffle(hint, side).numpy()})
    assert len(found) == len(expected)
    for i, features in enumerate(expected):
        assert relative_error(found[f"feature_{i}"], features.numpy()) <= 1e-4


@pytest.mark.parametrize("name", CHANNELS)
def test_pipelines(folders: Folders, saved, name: str) -> None:
    model = model_of(folders, name)
    kind = (
        "StableDiffusionXLAdapterPipeline" if name == "vega" else "StableDiffusionAdapterPipeline"
    )
    image = FIRST.convert("L") if name == "grey" else FIRST
    expected = reference(
        kind,
        model,
        image=image,
        parts={"adapter": make(name)},
        guidance_scale=6.0,
        adapter_conditioning_scale=0.7,
    )
    pipe = sdengine.load(model, controlnets=[saved(name)])
    found = generate(pipe, 6.0, control_images=[FIRST], control_scales=0.7)
    assert relative_error(found, expected) <= LIMIT
    assert relative_error(generate(pipe, 6.0, control_scales=0), expected) > 10 * LIMIT


def test_beside_a_controlnet(folders: Folders, saved) -> None:
    """Both add up: their inputs to the denoiser are apart."""
    nets = [folders["sd1-control"], saved("sd1")]
    both = generate(
        sdengine.load(folders["sd1"], controlnets=nets), 4.0, control_images=[FIRST] * 2
    )
    one = generate(
        sdengine.load(folders["sd1"], controlnets=nets), 4.0, control_images=[FIRST, None]
    )
    alone = generate(sdengine.load(folders["sd1"], controlnets=nets[:1]), 4.0, control_images=FIRST)
    assert np.array_equal(one, alone)
    assert relative_error(both, alone) > LIMIT


@pytest.mark.parametrize("name", ["sd1", "vega", "light"])
def test_layouts_give_identical_results(folders: Folders, saved, name: str, tmp_path: Path) -> None:
    model, folder = model_of(folders, name), saved(name)
    state = adapter_to_tencent(make(name).state_dict())
    path = write_safetensors(state, tmp_path / "adapter.safetensors")
    hint = {"hint": noise(1, 768 if name == "vega" else 192, 8, 8)}
    expected = control_network(folder, model).run(hint)
    found = control_network(path, model).run(hint)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    if name == "sd1":
        write_gguf(state, tmp_path / "adapter.gguf")
        assert control_network(tmp_path / "adapter.gguf", model).run(hint).keys() == expected.keys()


def test_bad_input(folders: Folders, saved) -> None:
    with pytest.raises(ParameterError, match="its features have"):
        sdengine.load(folders["vega"], controlnets=[saved("sd1")])
    with pytest.raises(ParameterError, match="64, 128, 128, 128"):
        sdengine.load(folders["sd1"], controlnets=[saved("vega")])
    pipe = sdengine.load(folders["vega"], controlnets=[saved("vega")])
    with pytest.raises(ParameterError, match="multiples of 16, not 72x64"):
        pipe.generate(
            "a", steps=1, width=72, height=64, control_images=Image.fromarray(picture(72, 64))
        )
    network = control_network(saved("sd1"), folders["sd1"])
    with pytest.raises(ParameterError, match="reads 192 channels"):
        network.run({"hint": noise(1, 3, 8, 8)})
