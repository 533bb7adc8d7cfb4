"""`sdengine.inspect`: what a file is, also where sdengine does not run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdengine.errors import FormatError, ParameterError
from sdengine.inspection import ModelInfo, inspect
from tests import models, unet_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_sd1_folder(tmp_path_factory.mktemp("inspect") / "model", seed=5)


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    return models.write_ldm_safetensors(folder, folder.parent / "m.safetensors", torch.float16)


def counted(info: ModelInfo) -> int:
    return sum(part.parameters for part in info.components)


def test_a_whole_model(folder: Path, single: Path) -> None:
    expected = sum(t.numel() for t in models.ldm_state_dict(folder).values())
    for path, file_format in [(folder, "diffusers"), (single, "safetensors")]:
        info = inspect(path)
        assert (info.family, info.reason, info.missing) == ("sd1", "", ())
        assert (info.title, info.format) == ("Stable Diffusion 1.x", file_format)
        assert counted(info) == expected
        assert info.not_understood == ()
        assert [part.name for part in info.components] == ["unet", "text_encoder", "vae"]
        assert info.components[0].config["block_out_channels"] == [32, 64]


def test_types_and_sizes(folder: Path, tmp_path: Path) -> None:
    info = inspect(models.write_allinone_gguf(folder, tmp_path / "m.gguf", "q8_0"))
    assert set(info.types) == {"f32", "f16", "q8_0"}
    assert sum(info.types.values()) == info.tensors == 536
    assert info.nbytes == sum(part.nbytes for part in info.components)


def test_a_denoiser_alone(folder: Path, tmp_path: Path) -> None:
    info = inspect(models.write_city96_gguf(folder, tmp_path / "m.gguf", "q8_0"))
    assert info.family == "sd1"
    assert info.missing == ("text_encoder", "vae")
    assert "needs from elsewhere: text_encoder, vae" in str(info)
    assert not any(key.startswith("comfy.gguf.orig_shape") for key in info.metadata)


def test_a_part_alone(folder: Path) -> None:
    info = inspect(folder / "vae")
    assert info.family is None
    assert "KL autoencoder" in info.title
    assert "vae=..." in str(info)


def test_what_sdengine_does_not_run(tmp_path: Path) -> None:
    save_file(
        {"x.lora_up.weight": torch.zeros(4, 2), "x.lora_down.weight": torch.zeros(2, 4)},
        tmp_path / "l.safetensors",
    )
    info = inspect(tmp_path / "l.safetensors")
    assert (info.family, info.title) == (None, "a LoRA or a related adapter")
    assert "not run by sdengine" in str(info)
    assert info.types == {"f32": 2}


def test_tensors_that_nothing_explains(single: Path, tmp_path: Path) -> None:
    state = load_file(single)
    for i in range(7):
        state[f"mystery.{i}"] = torch.zeros(1)
    save_file(state, tmp_path / "m.safetensors")
    info = inspect(tmp_path / "m.safetensors")
    assert info.not_understood == tuple(f"mystery.{i}" for i in range(7))
    assert "not understood (7): mystery.0, " in str(info)
    assert "mystery.4, ..." in str(info)


def test_a_damaged_model_still_tells_what_it_holds(single: Path, tmp_path: Path) -> None:
    state = load_file(single)
    del state["model.diffusion_model.input_blocks.1.0.out_layers.3.bias"]
    save_file(state, tmp_path / "m.safetensors")
    info = inspect(tmp_path / "m.safetensors")
    assert info.family is None
    assert "input_blocks" in info.reason or "down_blocks.0.resnets.0.conv2.bias" in info.reason
    assert info.tensors == len(state)


def test_the_dictionary_is_json(folder: Path, single: Path) -> None:
    for path in (folder, single, folder / "text_encoder"):
        info = inspect(path)
        again = json.loads(json.dumps(info.to_dict()))
        assert again["family"] == info.family
        assert again["path"] == str(path)
        assert len(again["components"]) == len(info.components)


def test_the_table(single: Path) -> None:
    lines = str(inspect(single)).splitlines()
    assert lines[1].strip() == "Stable Diffusion 1.x"
    header = lines.index(next(line for line in lines if "component" in line))
    assert lines[header + 1].split()[:4] == ["unet", "LDM", "304", "1,149,220"]
    assert all(len(line) <= 100 for line in lines[1:])


def test_no_such_file_and_no_model(tmp_path: Path) -> None:
    with pytest.raises(ParameterError):
        inspect(tmp_path / "absent")
    (tmp_path / "text.safetensors").write_text("no weights at all")
    with pytest.raises(FormatError):
        inspect(tmp_path / "text.safetensors")


def test_how_a_model_is_read_and_sampled(folder: Path, tmp_path: Path) -> None:
    path = models.write_ldm_safetensors(folder, tmp_path / "Hyper-SD15-4steps.safetensors")
    info = inspect(path)
    assert (info.prediction, info.size_conditioning) == ("epsilon", ())
    assert info.text_encoders == {"text_encoder": "a CLIP text encoder"}
    assert "\n  predicts epsilon\n  reads text with a CLIP text encoder\n" in str(info)
    assert "recipe: Hyper-SD, 4 steps: 4 steps of ddim, schedule trailing, guidance 1 (" in str(
        info
    )
    assert inspect(folder).recipe is None


def test_what_an_sdxl_is_told(tmp_path: Path) -> None:
    folder = unet_models.tiny_folder(tmp_path / "sdxl_lightning_4step", "sdxl")
    info = inspect(folder)
    assert list(info.text_encoders) == ["text_encoder", "text_encoder_2"]
    assert info.size_conditioning[:2] == ("original_height", "original_width")
    assert "is told original_height, original_width, crop_top" in str(info)
    assert info.recipe is not None
    assert info.recipe.startswith("SDXL-Lightning, 4 steps: 4 steps of euler, schedule trailing")


def test_a_recipe_may_say_what_is_predicted(tmp_path: Path) -> None:
    folder = unet_models.tiny_folder(tmp_path / "sdxl_lightning_1step_x0", "sdxl")
    assert inspect(folder).prediction == "sample"


def test_a_part_predicts_nothing(folder: Path) -> None:
    info = inspect(folder / "vae")
    assert (info.prediction, info.recipe, info.text_encoders) == (None, None, {})
