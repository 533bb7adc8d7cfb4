"""Diffusers folders: as diffusers and transformers write them, and everything that can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdengine.errors import FormatError, ParameterError
from sdengine.formats import open_index

from .builders import assert_same_tensors

UNET = {"conv_in.weight": torch.arange(4.0), "mid.bias": torch.rand(3)}
VAE = {"decoder.weight": torch.rand(2, 2)}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A folder with unet, vae, scheduler, two tokenizers, and a component that was left out."""
    folder = tmp_path / "model"
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.0",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "safety_checker": [None, None],
            "requires_safety_checker": True,
        },
    )
    write_json(folder / "unet/config.json", {"in_channels": 4})
    write_json(folder / "vae/config.json", {"latent_channels": 4})
    write_json(folder / "scheduler/scheduler_config.json", {"prediction_type": "epsilon"})
    write_json(folder / "tokenizer/vocab.json", {})
    write_json(folder / "tokenizer_2/vocab.json", {})
    write_weights(folder / "unet/diffusion_pytorch_model.safetensors", UNET)
    write_weights(folder / "vae/diffusion_pytorch_model.safetensors", VAE)
    return folder


def prefixed(component: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{component}/{name}": tensor for name, tensor in tensors.items()}


def test_pipeline(pipeline: Path) -> None:
    index = open_index(pipeline)
    assert (index.format, index.path) == ("diffusers", pipeline)
    assert_same_tensors(index.tensors, prefixed("unet", UNET) | prefixed("vae", VAE))
    assert index.configs["unet"] == {"in_channels": 4}
    assert index.configs["scheduler"] == {"prediction_type": "epsilon"}
    assert index.configs["model_index"]["_class_name"] == "StableDiffusionPipeline"
    assert set(index.configs) == {"model_index", "unet", "vae", "scheduler"}
    components = ("unet", "vae", "scheduler", "tokenizer", "tokenizer_2")
    assert index.folders == {name: pipeline / name for name in components}
    assert index.metadata == {"unet": {"format": "pt"}, "vae": {"format": "pt"}}
    assert all(entry.name == name for name, entry in index.tensors.items())


def test_relative_path(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pipeline.parent)
    assert open_index("model").path == pipeline


def test_symbolic_links_of_the_hub_cache(pipeline: Path) -> None:
    weights = pipeline / "unet/diffusion_pytorch_model.safetensors"
    blob = pipeline.parent / "0123abcd"
    weights.rename(blob)
    weights.symlink_to(blob)
    assert open_index(pipeline).tensors["unet/mid.bias"].path == weights


OTHER = {"other": torch.ones(1)}


@pytest.mark.parametrize(
    ("files", "variant", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin"], None, "model.safetensors"),
        (["pytorch_model.bin"], None, "pytorch_model.bin"),
        (["model.fp16.safetensors"], None, "model.fp16.safetensors"),
        (["model.fp16.safetensors", "model.safetensors"], None, "model.safetensors"),
        (["model.fp16.safetensors", "model.safetensors"], "fp16", "model.fp16.safetensors"),
        (["model.fp16.safetensors", "pytorch_model.bin"], None, "pytorch_model.bin"),
        (["pytorch_model.fp16.bin", "model.safetensors"], "fp16", "pytorch_model.fp16.bin"),
        (["diffusion_pytorch_model.safetensors"], None, "diffusion_pytorch_model.safetensors"),
        (["model.non_ema.safetensors"], None, "model.non_ema.safetensors"),
        (["model.onnx", "flax_model.msgpack", "pytorch_model.bin"], None, "pytorch_model.bin"),
    ],
)
@pytest.mark.parametrize("single", [False, True])
def test_which_file(
    pipeline: Path, files: list[str], variant: str | None, expected: str, single: bool
) -> None:
    folder = pipeline / "text_encoder"
    for name in files:
        write_weights(folder / name, {name: torch.zeros(1)})
    index = open_index(folder if single else pipeline, variant=variant)
    found = {name for name in index.tensors if single or name.startswith("text_encoder/")}
    assert found == {expected if single else f"text_encoder/{expected}"}


def test_variant_falls_back_per_component(pipeline: Path) -> None:
    write_weights(pipeline / "vae/diffusion_pytorch_model.fp16.safetensors", OTHER)
    index = open_index(pipeline, variant="fp16")
    assert_same_tensors(index.tensors, prefixed("unet", UNET) | prefixed("vae", OTHER))


def test_variant_that_nothing_has(pipeline: Path) -> None:
    write_weights(pipeline / "vae/diffusion_pytorch_model.fp16.safetensors", OTHER)
    with pytest.raises(FormatError, match="variants: fp16; expected variant 'bf16'"):
        open_index(pipeline, variant="bf16")


@pytest.mark.parametrize("variant", ["", "../x", "a.b", "a/b"])
def test_variant_that_is_no_word(pipeline: Path, variant: str) -> None:
    with pytest.raises(ParameterError, match="not a word"):
        open_index(pipeline, variant=variant)


@pytest.mark.parametrize("infix", ["", ".fp16"])
def test_shards(pipeline: Path, infix: str) -> None:
    folder = pipeline / "transformer"
    names = [f"diffusion_pytorch_model{infix}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    write_weights(folder / names[0], {"a": torch.zeros(2)})
    write_weights(folder / names[1], {"b": torch.ones(2)})
    write_json(
        folder / f"diffusion_pytorch_model.safetensors.index{infix}.json",
        {"weight_map": {"a": names[0], "b": names[1]}},
    )
    assert_same_tensors(open_index(folder).tensors, {"a": torch.zeros(2), "b": torch.ones(2)})


def test_single_component(pipeline: Path) -> None:
    index = open_index(pipeline / "unet")
    assert index.format == "diffusers"
    assert_same_tensors(index.tensors, UNET)
    assert index.configs == {"config": {"in_channels": 4}}
    assert index.folders == {}


def test_single_component_without_config(pipeline: Path) -> None:
    (pipeline / "vae/config.json").unlink()
    assert_same_tensors(open_index(pipeline / "vae").tensors, VAE)


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/b", "a\\b", "..", ".", "c:x"])
def test_components_outside_the_folder(pipeline: Path, name: str) -> None:
    write_weights(pipeline.parent / "outside/model.safetensors", OTHER)
    content = json.loads((pipeline / "model_index.json").read_text())
    write_json(pipeline / "model_index.json", {**content, name: ["diffusers", "Evil"]})
    with pytest.raises(FormatError, match="Do not trust this folder"):
        open_index(pipeline)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a folder with nothing"):
        open_index(tmp_path)


def test_folder_of_checkpoints(tmp_path: Path) -> None:
    write_weights(tmp_path / "dream.safetensors", OTHER)
    (tmp_path / "readme.md").write_text("hello")
    with pytest.raises(FormatError, match=r"'dream\.safetensors'.*path of a weight file"):
        open_index(tmp_path)


def test_pipeline_without_weights(pipeline: Path) -> None:
    for path in pipeline.glob("*/*.safetensors"):
        path.unlink()
    with pytest.raises(FormatError, match="Download the model again"):
        open_index(pipeline)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"[]", "JSON list"),
        (b"{", "cannot be read"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_broken_json(pipeline: Path, name: str, content: bytes, message: str) -> None:
    (pipeline / name).write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        open_index(pipeline)
    assert str(pipeline / name) in str(caught.value)


def test_damaged_component_is_named(pipeline: Path) -> None:
    weights = pipeline / "unet/diffusion_pytorch_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(FormatError, match="Git LFS pointer") as caught:
        open_index(pipeline)
    assert str(weights) in str(caught.value)


def test_model_index_given_as_file(pipeline: Path) -> None:
    with pytest.raises(FormatError, match="the folder"):
        open_index(pipeline / "model_index.json")


def tiny_models() -> tuple[Any, Any]:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, sample_size=32)
    config = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=100,
    )
    return vae, CLIPTextModel(config)


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_as_the_libraries_write_them(tmp_path: Path) -> None:
    """diffusers and transformers, plain, as variant, and sharded."""
    vae, text_encoder = tiny_models()
    saves: dict[str, dict[str, Any]] = {
        "plain": {},
        "variant": {"variant": "fp16"},
        "sharded": {"max_shard_size": "20KB"},
        "sharded variant": {"max_shard_size": "20KB", "variant": "fp16"},
    }
    for name, arguments in saves.items():
        for component, model in (("vae", vae), ("text_encoder", text_encoder)):
            folder = tmp_path / name / component
            model.save_pretrained(folder, **arguments)
            index = open_index(folder)
            assert_same_tensors(index.tensors, model.state_dict())
            assert index.configs["config"]
            assert (len(list(folder.glob("*.safetensors"))) > 1) == ("sharded" in name)
