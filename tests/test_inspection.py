"""`sdengine.inspect`: what a file is, also where sdengine does not run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdengine.errors import FormatError, ParameterError
from sdengine.inspection import ModelInfo, inspect
from tests import models


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
