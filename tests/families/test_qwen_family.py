"""Full-size Qwen-Image in every published naming: what it is found to be, and every tensor maps."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sdengine import _core
from sdengine.errors import UnsupportedModelError, WeightsError
from sdengine.families import FAMILIES
from sdengine.families.qwen_image import QWEN_IMAGE
from sdengine.formats import TensorIndex
from sdengine.keys import NameMap
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of, detect
from sdengine.loading.locate import locate
from sdengine.loading.networks import NETWORKS
from sdengine.sampling import SAMPLERS, SCHEDULES
from tests.inventories import index_of, with_prefix
from tests.renaming_qwen import text_to_llama_cpp, vae_to_wan, vision_to_llama_cpp

State = dict[str, torch.Tensor]

# Qwen/Qwen2.5-VL-7B-Instruct, config.json.
VISION = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}


@cache
def denoiser() -> State:
    from diffusers import QwenImageTransformer2DModel

    # Its sixty blocks are alike.
    with torch.device("meta"):
        one = QwenImageTransformer2DModel(num_layers=1).state_dict()
    block = "transformer_blocks.0."
    state = {name: tensor for name, tensor in one.items() if not name.startswith(block)}
    for name in one.keys() - state.keys():
        for i in range(60):
            state[name.replace(block, f"transformer_blocks.{i}.")] = one[name]
    return state


@cache
def autoencoder() -> State:
    from diffusers import AutoencoderKLQwenImage

    with torch.device("meta"):
        return dict(AutoencoderKLQwenImage().state_dict())


@cache
def text_encoder() -> State:
    """Names of transformers 5."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4}
    config = Qwen2_5_VLConfig(
        text_config={**text, **heads, "vocab_size": 152064, "rope_theta": 1e6},
        vision_config=VISION,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return dict(Qwen2_5_VLForConditionalGeneration(config).state_dict())


def published(state: State) -> State:
    """Names of the files that are published: from before transformers 4.52."""
    names = {n: n.replace("model.language_model.", "model.") for n in state}
    return {names[n].replace("model.visual.", "visual."): t for n, t in state.items()}


# Component -> layout -> its tensors.
LAYOUTS: dict[str, dict[str, Any]] = {
    "transformer": {
        "diffusers folder": lambda: with_prefix("transformer/", denoiser()),
        "single file": lambda: with_prefix("model.diffusion_model.", denoiser()),
        "GGUF": denoiser,
    },
    "vae": {
        "diffusers folder": lambda: with_prefix("vae/", autoencoder()),
        "single file": lambda: vae_to_wan(autoencoder()),
        "all in one": lambda: with_prefix("vae.", vae_to_wan(autoencoder())),
    },
    "text_encoder": {
        "diffusers folder": lambda: with_prefix("text_encoder/", published(text_encoder())),
        "newer folder": lambda: with_prefix("text_encoder/", text_encoder()),
        "single file": lambda: published(text_encoder()),
        "all in one": lambda: with_prefix(
            "text_encoders.qwen25_7b.transformer.", published(text_encoder())
        ),
        "GGUF": lambda: text_to_llama_cpp(text_encoder()),
    },
}
LAYOUTS["vision_encoder"] = {
    **{name: make for name, make in LAYOUTS["text_encoder"].items() if name != "GGUF"},
    "GGUF": lambda: vision_to_llama_cpp(text_encoder()),
}
CASES = [(part, layout) for part, layouts in LAYOUTS.items() for layout in layouts]


@pytest.mark.parametrize(("part", "layout"), CASES)
def test_every_tensor_maps(part: str, layout: str) -> None:
    found = locate(index_of(LAYOUTS[part][layout]()), QWEN_IMAGE.component(part))
    assert found is not None
    config = config_of(found, QWEN_IMAGE)
    bindings, left = bind(found, _core.parameters(found.component.kind, config))
    assert left == ()
    first = locate(index_of(next(iter(LAYOUTS[part].values()))()), QWEN_IMAGE.component(part))
    assert first is not None
    assert config == config_of(first, QWEN_IMAGE)
    names = NameMap.of_network(found.table, config)
    for binding in bindings:
        assert names.to_file(binding.name)[0].name == found.sources[binding.name].name
    if part in ("transformer", "vision_encoder"):
        elements = sum(entry.elements for entry in found.entries.values())
        assert sum(binding.entry.elements for binding in bindings) == elements


def test_figures_are_read_off_the_tensors() -> None:
    def config(part: str) -> dict[str, Any]:
        found = locate(
            index_of(LAYOUTS[part]["GGUF" if part != "vae" else "single file"]()),
            QWEN_IMAGE.component(part),
        )
        assert found is not None
        return config_of(found, QWEN_IMAGE)

    model = config("transformer")
    assert (model["layers"], model["width"], model["head_dim"]) == (60, 3072, 128)
    assert (model["context_width"], model["rope_axes"]) == (3584, [16, 56, 56])
    vae = config("vae")
    assert vae["block_out_channels"] == [96, 192, 384, 384]
    assert (vae["norm_groups"], vae["upsampling_halves"], vae["layers_per_block"]) == (0, True, 2)
    words = config("text_encoder")
    assert (words["layers"], words["heads"], words["kv_heads"]) == (28, 28, 4)
    assert (words["rope_theta"], words["rope_sections"], words["eps"]) == (1e6, [16, 24, 24], 1e-6)
    eyes = config("vision_encoder")
    assert (eyes["layers"], eyes["heads"], eyes["whole_layers"]) == (32, 16, [7, 15, 23, 31])
    assert (eyes["hidden_size"], eyes["out_width"], eyes["window_cells"]) == (1280, 3584, 4)


def test_wan_names_are_those_that_diffusers_imports() -> None:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    assert convert_wan_vae_to_diffusers(vae_to_wan(autoencoder())).keys() == autoencoder().keys()


# ------------------------------ which member it is
def called(name: str, state: State | None = None, **configs: dict[str, Any]) -> TensorIndex:
    index = index_of(state or with_prefix("model.diffusion_model.", denoiser()))
    return replace(index, path=Path(name), configs=configs)


@pytest.mark.parametrize(
    ("name", "title", "task"),
    [
        ("qwen-image-Q4_K_M.gguf", "Qwen-Image", "text"),
        ("qwen_image_bf16.safetensors", "Qwen-Image", "text"),
        ("Qwen-Image-2512", "Qwen-Image", "text"),
        ("qwen_image_edit_fp8_e4m3fn.safetensors", "Qwen-Image-Edit", "reference"),
        ("Qwen_Image_Edit-Q4_0.gguf", "Qwen-Image-Edit", "reference"),
        ("Qwen-Image-Edit-2509-Q8_0.gguf", "Qwen-Image-Edit-Plus", "reference"),
        ("qwen_image_edit_2511_bf16.safetensors", "Qwen-Image-Edit-Plus", "reference"),
    ],
)
def test_members_are_told_by_their_names(name: str, title: str, task: str) -> None:
    found = detect(called(name))
    assert found.family is QWEN_IMAGE
    assert found.title == title
    assert (found.variant.task if found.variant else "text") == task


@pytest.mark.parametrize(
    ("pipeline", "title"),
    [
        ("QwenImagePipeline", "Qwen-Image"),
        ("QwenImageEditPipeline", "Qwen-Image-Edit"),
        ("QwenImageEditPlusPipeline", "Qwen-Image-Edit-Plus"),
    ],
)
def test_members_are_told_by_their_pipelines(pipeline: str, title: str) -> None:
    state = with_prefix("transformer/", denoiser())
    assert detect(called("folder", state, model_index={"_class_name": pipeline})).title == title


def test_2511_is_told_by_its_mark() -> None:
    state = with_prefix("model.diffusion_model.", denoiser())
    state["model.diffusion_model.__index_timestep_zero__"] = torch.empty(1, device="meta")
    found = detect(called("model.safetensors", state))
    assert found.title == "Qwen-Image-Edit-Plus"
    assert found.configs["transformer"]["still_references"] is True
    folder = with_prefix("transformer/", denoiser())
    found = detect(called("folder", folder, transformer={"zero_cond_t": True}))
    assert found.title == "Qwen-Image-Edit-Plus"


def test_layered_is_refused_by_name() -> None:
    name = "time_text_embed.addition_t_embedding.weight"
    found = detect(called("m", {**denoiser(), name: torch.empty(2, 3072, device="meta")}))
    assert found.family is None
    assert found.title == "Qwen-Image-Layered"


def test_defaults_are_known_names() -> None:
    assert QWEN_IMAGE in FAMILIES
    assert QWEN_IMAGE.defaults.sampler in SAMPLERS
    assert QWEN_IMAGE.defaults.schedule in SCHEDULES
    assert (QWEN_IMAGE.defaults.width, QWEN_IMAGE.defaults.height) in QWEN_IMAGE.resolutions


# ------------------------------ what is refused
def hostile(part: str, **change: Any) -> None:
    found = locate(index_of(LAYOUTS[part]["single file"]()), QWEN_IMAGE.component(part))
    assert found is not None
    NETWORKS[found.component.kind].check({**config_of(found, QWEN_IMAGE), **change})


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("transformer", {"head_dim": 100}, "head_dim = 100 does not divide"),
        ("transformer", {"rope_axes": [16, 56, 57]}, "three even numbers whose sum is 128"),
        ("transformer", {"out_channels": 0}, "less than one latent channel"),
        ("vision_encoder", {"heads": 0}, "heads = 0"),
        ("vision_encoder", {"heads": 7}, "does not divide 1280"),
        ("vision_encoder", {"patch_size": 0}, "patch_size = 0"),
        ("vision_encoder", {"window_cells": 0}, "window_cells = 0"),
        ("vision_encoder", {"whole_layers": "all"}, "whole_layers = 'all'"),
        ("text_encoder", {"rope_sections": [16, -24, 24]}, "rope_sections = "),
        ("vae", {"latents_std": [0.0] * 16}, "latents_std = 0"),
    ],
)
def test_impossible_figures(part: str, change: dict[str, Any], words: str) -> None:
    hostile(part)
    with pytest.raises(WeightsError, match=words):
        hostile(part, **change)


@pytest.mark.parametrize(
    ("part", "json", "error", "words"),
    [
        ("transformer", {"num_layers": 30}, WeightsError, "num_layers = 30, the tensors show 60"),
        ("transformer", {"guidance_embeds": True}, UnsupportedModelError, "guidance_embeds"),
        ("transformer", {"use_layer3d_rope": True}, UnsupportedModelError, "use_layer3d_rope"),
        ("transformer", {"zero_cond_t": "yes"}, WeightsError, "expected true or false"),
        ("vae", {"z_dim": 4}, WeightsError, "z_dim = 4, the tensors show 16"),
        ("vae", {"base_dim": 96, "dim_mult": [1, 2]}, WeightsError, "the tensors show"),
        ("vae", {"attn_scales": [0.5]}, UnsupportedModelError, "attn_scales"),
        ("vision_encoder", {"vision_config": {"depth": 3}}, WeightsError, "depth = 3"),
        (
            "vision_encoder",
            {"vision_config": {"spatial_merge_size": 4}},
            UnsupportedModelError,
            "spatial_merge_size",
        ),
    ],
)
def test_contradicting_configs(
    part: str, json: dict[str, Any], error: type[Exception], words: str
) -> None:
    index = called("model.file", LAYOUTS[part]["single file"](), config=json)
    found = locate(index, QWEN_IMAGE.component(part))
    assert found is not None
    with pytest.raises(error, match=words):
        config_of(found, QWEN_IMAGE)
