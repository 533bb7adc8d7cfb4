"""Control networks as GGUF: `convert` writes them, and they steer as the file they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sdengine
from sdengine.control import LoadedControl
from sdengine.errors import ParameterError, UnsupportedModelError
from sdengine.loading import plan_model
from tests.parity.test_unet_families import native_inputs

from .conftest import Folders, device, noise, relative_error
from .models import build_adapter, build_union
from .test_control_lora import control_lora, write
from .test_controlnet import inputs_of
from .test_pipelines import FIRST, generate


def residuals(path: Path, model: Path, family: str) -> dict[str, np.ndarray]:
    loaded = LoadedControl(path, plan_model(model), device())
    return loaded.network.run(native_inputs(inputs_of(family)))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_controlnet_in_f32_is_the_same(family: str, folders: Folders, tmp_path: Path) -> None:
    source, model = folders[f"{family}-control"], folders[family]
    done = sdengine.convert(source, tmp_path / "control.gguf", "f32")
    assert not done.needs_tokenizer
    expected = residuals(source, model, family)
    for name, value in residuals(done.path, model, family).items():
        assert np.array_equal(value, expected[name]), name


def test_a_quantized_controlnet_steers_a_pipeline(folders: Folders, tmp_path: Path) -> None:
    done = sdengine.convert(folders["sd1-control"], tmp_path / "control.gguf", "q8_0")
    assert done.histogram["q8_0"] > 50
    assert done.nbytes < 0.5 * done.source_nbytes
    found, expected = (
        generate(sdengine.load(folders["sd1"], controlnets=[path]), 5.0, control_images=[FIRST])
        for path in (done.path, folders["sd1-control"])
    )
    assert relative_error(found, expected) <= 0.05
    plain = generate(sdengine.load(folders["sd1"]), 5.0)
    assert relative_error(plain, expected) > 0.1


def test_a_union_and_its_type(folders: Folders, tmp_path: Path) -> None:
    build_union("sdxl").save_pretrained(tmp_path / "union")
    done = sdengine.convert(tmp_path / "union", tmp_path / "union.gguf", "f32")
    nets = [sdengine.ControlNet(path, type="canny") for path in (tmp_path / "union", done.path)]
    first, second = (LoadedControl(net, plan_model(folders["sdxl"]), device()) for net in nets)
    assert first.plan.config == second.plan.config
    assert dict(first.plan.config)["tasks"] == 6


def test_an_adapter(folders: Folders, tmp_path: Path) -> None:
    build_adapter((64, 128)).save_pretrained(tmp_path / "adapter")
    done = sdengine.convert(tmp_path / "adapter", tmp_path / "adapter.gguf", "f32")
    hint = {"hint": noise(1, 192, 8, 8)}
    found, expected = (
        LoadedControl(path, plan_model(folders["sd1"]), device()).network.run(hint)
        for path in (done.path, tmp_path / "adapter")
    )
    for name, value in expected.items():
        assert np.array_equal(found[name], value)


def test_one_for_shuffled_pictures_stays_one(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "control_shuffle").symlink_to(folders["sd1-control"])
    done = sdengine.convert(tmp_path / "control_shuffle", tmp_path / "c.gguf", "f16")
    assert LoadedControl(done.path, plan_model(folders["sd1"]), device()).pooled


def test_what_cannot_be_converted(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no options of a model"):
        sdengine.convert(folders["sd1-control"], tmp_path / "a.gguf", vae=folders["sd1"])
    state, _ = control_lora("sd1")
    path = write(tmp_path / "control.safetensors", state)
    with pytest.raises(UnsupportedModelError, match="no network by itself"):
        sdengine.convert(path, tmp_path / "a.gguf")
