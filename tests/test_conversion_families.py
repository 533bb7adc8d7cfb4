"""`sdengine.convert` for every family: the file that comes out is the same model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from sdengine.conversion import convert
from sdengine.errors import ParameterError, WeightsError
from sdengine.formats import open_index
from sdengine.loading import ModelPlan, plan_model
from sdengine.previews import METADATA_KEY
from sdengine.recipes import as_published
from tests import models, unet_models
from tests.parity.conftest import relative_error
from tests.parity.reference_autoencoders import original_names, tiny_reference
from tests.parity.test_unet_families import Network, conditions, native_inputs
from tests.unet_models import TINY, single_file, write_gguf, write_safetensors

FAMILIES = ("sd1", "sd2", "sdxl", "refiner", "kolors")
# Of the denoiser's output, from the loss of the weights alone (measured; tiny networks have no redundancy).
LOSS = {"f16": 2e-3, "q8_0": 4e-2, "q4_k": 0.2, "q4_0": 0.3}
TEXTS = ("", "a red circle, on 2 blue squares", "an oil painting of a city at night", "日本 🙂")


class Folders:
    """Tiny members as diffusers folders, each written once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, name: str) -> Path:
        path = self.root / name
        if path.exists():
            return path
        if name == "kolors":
            return unet_models.tiny_kolors_folder(path, seed=8)
        return unet_models.tiny_folder(path, name, seed=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("members"))


def loaded_plan(path: Path) -> ModelPlan:
    """As `sdengine.load` makes it."""
    return as_published(plan_model(path))[0]


def assert_same_model(found: ModelPlan, expected: ModelPlan) -> None:
    """Everything but the place, the dialect and the types of the parameters."""
    assert found.unused == ()
    for name in ("title", "task", "family", "latents", "scheduler", "defaults", "reads_guidance"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.components.keys() == expected.components.keys()
    for name, part in expected.components.items():
        mine = found.components[name]
        assert (mine.kind, mine.config, mine.parameters) == (
            part.kind,
            part.config,
            part.parameters,
        )
    assert found.tokenizers.keys() == expected.tokenizers.keys()
    for name, source in expected.tokenizers.items():
        assert found.tokenizers[name].path == found.path
        assert token_ids(found, name) == token_ids(expected, name), source


def token_ids(plan: ModelPlan, encoder: str) -> list[list[int]]:
    source = plan.tokenizers[encoder]
    if source.kind == "clip":
        tokenizer = source.open(download=False)
        return [[tokenizer.pad, *tokenizer.encode(text)] for text in TEXTS]
    words = source.open_text()
    return [words.encode(text) for text in TEXTS]


def prediction(path: Path, name: str) -> np.ndarray:
    return Network(path, "unet")(native_inputs(conditions(name, 1, 8, 8)))["prediction"]


def picture(path: Path, **given: Any) -> dict[str, np.ndarray]:
    """The latents and the picture of two steps; `given` goes to `sdengine.load`."""
    pipe = sdengine.load(path, threads=1, **given)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    result = pipe.generate("a red circle", "blue", image=image, steps=2, strength=0.9, seed=1)
    return {"latents": result.latents, "image": np.asarray(result.image)}


# ------------------------------ every member
@pytest.mark.parametrize("name", TINY)
def test_float32_changes_nothing(folders: Folders, tmp_path: Path, name: str) -> None:
    path = convert(folders[name], tmp_path / "m.gguf", "f32").path
    assert_same_model(loaded_plan(path), loaded_plan(folders[name]))
    assert np.array_equal(prediction(path, name), prediction(folders[name], name))


# ------------------------------ every family, every kind of type
@pytest.mark.parametrize("weight_type", ["f32", *LOSS])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_every_kind_of_type(
    folders: Folders, tmp_path: Path, name: str, weight_type: str
) -> None:
    result = convert(folders[name], tmp_path / "m.gguf", weight_type)
    assert weight_type in result.histogram
    assert_same_model(loaded_plan(result.path), loaded_plan(folders[name]))
    error = relative_error(prediction(result.path, name), prediction(folders[name], name))
    assert error <= LOSS.get(weight_type, 0.0)
    if name == "kolors":
        return
    found = picture(result.path)
    # Quantizing while loading takes another way to the same values.
    expected = picture(folders[name], weight_type=None if weight_type == "f32" else weight_type)
    for part in expected:
        assert np.array_equal(found[part], expected[part]), part


# ------------------------------ what a file cannot show
def test_a_recipe_outlives_the_name(folders: Folders, tmp_path: Path) -> None:
    source = tmp_path / "Hyper-SDXL-1step-Unet"
    shutil.copytree(folders["sdxl"], source)
    plan = loaded_plan(source)
    assert plan.defaults.timesteps == (800,)
    first = convert(source, tmp_path / "a.gguf", "q8_0").path
    second = convert(first, tmp_path / "b.gguf", "q4_0").path
    for path in (first, second):
        pipe = sdengine.load(path, threads=1)
        assert pipe.model.defaults == plan.defaults
        assert pipe.recipe is not None
        assert pipe.recipe.name == "hyper-sdxl-unet-1"


def test_a_prediction_that_a_recipe_or_the_caller_knows(folders: Folders, tmp_path: Path) -> None:
    source = tmp_path / "sdxl_lightning_1step_x0"
    shutil.copytree(folders["sdxl"], source)
    found = convert(source, tmp_path / "a.gguf", "q8_0").path
    assert loaded_plan(found).scheduler.prediction == "sample"
    # The caller's word outlives the name, too.
    told = convert(source, tmp_path / "b.gguf", "q8_0", prediction="v_prediction").path
    assert loaded_plan(told).scheduler.prediction == "v_prediction"
    with pytest.raises(ParameterError, match="prediction = 'noise'"):
        convert(source, tmp_path / "c.gguf", prediction="noise")


def test_a_family_of_the_caller_s_choice(folders: Folders, tmp_path: Path) -> None:
    path = convert(folders["sd1"], tmp_path / "m.gguf", "q8_0", family="sd1").path
    assert plan_model(path).family.name == "sd1"
    with pytest.raises(ParameterError, match="no family 'sd9'"):
        convert(folders["sd1"], tmp_path / "n.gguf", family="sd9")


def test_a_variant_that_only_markers_tell(folders: Folders, tmp_path: Path) -> None:
    marks = {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}
    state = {**single_file(folders["sdxl"], "sdxl"), **marks}
    source = write_safetensors(state, tmp_path / "aesthetic.safetensors")
    expected = plan_model(source)
    assert (expected.scheduler.prediction, len(expected.latents.mean)) == ("edm", 4)
    words = folders["sdxl"] / "tokenizer"
    found = plan_model(convert(source, tmp_path / "m.gguf", "q8_0", tokenizer=words).path)
    for name in ("title", "latents", "scheduler", "defaults"):
        assert getattr(found, name) == getattr(expected, name)


@pytest.mark.parametrize("zeros", [False, True])
def test_what_stands_for_no_text(folders: Folders, tmp_path: Path, zeros: bool) -> None:
    source = tmp_path / "model"
    shutil.copytree(folders["sdxl"], source)
    index = json.loads((source / "model_index.json").read_text("utf-8"))
    index["force_zeros_for_empty_prompt"] = zeros
    (source / "model_index.json").write_text(json.dumps(index), "utf-8")
    found = plan_model(convert(source, tmp_path / "m.gguf", "q8_0").path)
    assert found.family.empty_negative_is_zeros is zeros


def test_scheduler_settings(folders: Folders, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(folders["sd2"], source)
    config = {
        "_class_name": "UniPCMultistepScheduler",
        "beta_schedule": "linear",
        "beta_start": 0.001,
        "beta_end": 0.02,
        "num_train_timesteps": 1100,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "use_karras_sigmas": True,
    }
    (source / "scheduler" / "scheduler_config.json").write_text(json.dumps(config), "utf-8")
    expected, found = plan_model(source), plan_model(convert(source, tmp_path / "m.gguf").path)
    assert (expected.scheduler.train_steps, expected.scheduler.rescale_zero_snr) == (1100, True)
    assert found.scheduler == expected.scheduler
    assert found.defaults == expected.defaults


def test_colours_of_the_preview(folders: Folders, tmp_path: Path) -> None:
    import gguf

    source, numbers = tmp_path / "m.gguf", [0.25] * 15
    writer = gguf.GGUFWriter(str(source), "sd")
    writer.add_array(METADATA_KEY, numbers)
    for key, tensor in single_file(folders["sd1"], "sd1").items():
        writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path = convert(source, tmp_path / "n.gguf", tokenizer=folders["sd1"] / "tokenizer").path
    assert open_index(path).metadata[METADATA_KEY] == numbers


# ------------------------------ parts from elsewhere
def test_two_text_encoders_given_apart(folders: Folders, tmp_path: Path) -> None:
    folder = folders["sdxl"]
    unet = write_gguf(models.component_state_dict(folder, "unet"), tmp_path / "unet.gguf")
    encoders = {
        "text_encoder": folder / "text_encoder",
        "text_encoder_2": folder / "text_encoder_2",
    }
    parts = {"vae": folder / "vae", "text_encoders": encoders}
    result = convert(unet, tmp_path / "m.gguf", "f32", **parts)
    expected, found = picture(unet, **parts), picture(result.path)
    assert all(np.array_equal(found[part], expected[part]) for part in expected)
    # A list, each where its width belongs, gives the same file.
    parts["text_encoders"] = list(encoders.values())[::-1]
    again = convert(unet, tmp_path / "n.gguf", "f32", **parts)
    assert read_tensors(again.path) == read_tensors(result.path)


def read_tensors(path: Path) -> Mapping[str, bytes]:
    data = path.read_bytes()
    entries = open_index(path).tensors.values()
    return {e.name: data[e.offset : e.offset + e.nbytes] for e in entries}


@pytest.mark.parametrize("layout", ["folder", "two files", "decoder"])
def test_tiny_autoencoders(folders: Folders, tmp_path: Path, layout: str) -> None:
    module = tiny_reference(seed=5)
    encoder, decoder = (
        write_safetensors(state, tmp_path / f"taesd_{number}.safetensors")
        for number, state in enumerate(original_names(module))
    )
    module.save_pretrained(tmp_path / "taesd")
    vae = {"folder": tmp_path / "taesd", "two files": [encoder, decoder], "decoder": decoder}
    source = vae[layout]
    path = convert(folders["sd1"], tmp_path / "m.gguf", "q4_0", vae=source).path
    before, after = (
        sdengine.load(folders["sd1"], vae=source, threads=1),
        sdengine.load(path, threads=1),
    )
    assert after.config["vae"] == before.config["vae"]
    latents = np.random.default_rng(0).standard_normal((1, 4, 6, 5)).astype(np.float32)
    found, expected = (
        pipe.decode_latents(latents, output_type="numpy") for pipe in (after, before)
    )
    assert relative_error(found, expected) <= 2e-3  # f16, as every autoencoder in a quantized file
    if layout == "decoder":
        with pytest.raises(WeightsError, match="only the decoder"):
            after.encode_image(np.zeros((64, 64, 3), np.uint8))


def test_stored_timesteps_must_be_whole_numbers(folders: Folders, tmp_path: Path) -> None:
    import gguf

    path = convert(folders["sd1"], tmp_path / "m.gguf", "f16").path
    index = open_index(path)
    plan = plan_model(path)
    damaged = tmp_path / "damaged.gguf"
    writer = gguf.GGUFWriter(str(damaged), "sd")
    writer.add_string("sdengine.defaults", json.dumps(asdict(plan.defaults)))
    writer.add_array("sdengine.timesteps", [1.5, 2.5])
    for key, tensor in single_file(folders["sd1"], "sd1").items():
        writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "sdengine.timesteps" not in index.metadata
    with pytest.raises(WeightsError, match=r"sdengine\.timesteps is not a list"):
        plan_model(damaged)
