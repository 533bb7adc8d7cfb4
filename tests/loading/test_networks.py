"""Hyper-parameters from shapes; the native networks' parameters against the references'."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine import _core
from sdengine.errors import SDEngineError, WeightsError
from sdengine.families import SD1
from sdengine.keys import NameMap, unet
from sdengine.loading import detect
from sdengine.loading.networks import NETWORKS, Shapes
from tests import inventories

SD15 = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": [2, 2, 2, 2],
    "down_transformer_layers": [[1, 1], [1, 1], [1, 1], [0, 0]],
    "mid_block": "cross_attention",
    "mid_transformer_layers": 1,
    "up_transformer_layers": [[0, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]],
    "attention_heads": [8, 8, 8, 8],
    "cross_attention_dim": 768,
    "linear_projection": False,
    "norm_groups": 32,
    "norm_eps": 1e-5,
    "class_embed_dim": 0,
    "addition_time_embed_dim": 0,
    "time_cond_proj_dim": 0,
    "encoder_hid_dim": 0,
    "only_cross_attention": [False] * 4,
}
SD15_VAE = {
    "in_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_groups": 32,
    "upsampling_halves": False,
    "norm_eps": 1e-6,
    "use_quant_conv": True,
    "mid_attention": True,
    "scaling_factor": 0.18215,
    "shift_factor": 0.0,
    "latents_mean": [],
    "latents_std": [],
}
CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layers": 12,
    "heads": 12,
    "max_positions": 77,
    "activation": "quick_gelu",
    "eps": 1e-5,
    "projection_dim": 0,
    "eos_token_id": 49407,
    "has_projection": False,
}


def config_of(kind: str, state: inventories.State) -> dict[str, Any]:
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in state.items()})
    return NETWORKS[kind].from_shapes(shapes, SD1)


def test_stable_diffusion_1_5() -> None:
    assert config_of("unet", inventories.sd15_unet()) == SD15
    assert config_of("autoencoder_kl", inventories.sd15_vae()) == SD15_VAE
    assert config_of("clip_text", inventories.clip_l()) == CLIP_L


def test_config_json_of_stable_diffusion_1_5_changes_nothing() -> None:
    """diffusers' quirk: attention_head_dim 8 are 8 heads."""
    assert (
        NETWORKS["unet"].refine(
            SD15, {**_listed(inventories.SD15_UNET), "num_attention_heads": None}
        )
        == SD15
    )
    assert NETWORKS["autoencoder_kl"].refine(SD15_VAE, _listed(inventories.SD15_VAE)) == SD15_VAE
    legacy = inventories.CLIP_L | {"eos_token_id": 2}  # as published
    assert NETWORKS["clip_text"].refine(CLIP_L, legacy) == CLIP_L


def _listed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}


UNETS = {
    "sd1.5": inventories.SD15_UNET,
    "inpaint": inventories.SD15_UNET | {"in_channels": 9},
    "linear": inventories.SD15_UNET | {"use_linear_projection": True},
    "lcm": inventories.SD15_UNET | {"time_cond_proj_dim": 256},
    "small": inventories.SMALL_SD_UNET,
    "tiny": inventories.TINY_SD_UNET,
    "sdxs": inventories.SDXS_UNET,
}


@pytest.mark.parametrize("name", UNETS)
def test_native_unets_have_the_reference_s_parameters(name: str) -> None:
    state = inventories.unet_state(UNETS[name])
    found = _core.parameters("unet", config_of("unet", state))
    assert dict(found) == {n: tuple(t.shape) for n, t in state.items()}
    assert len(found) == len(state)


@pytest.mark.parametrize("name", UNETS)
def test_every_parameter_can_be_written_under_a_name_of_its_own(name: str) -> None:
    state = inventories.unet_state(UNETS[name])
    names = NameMap.of_network(unet.LDM, config_of("unet", state))
    found = [names.to_file(canonical) for canonical in state]
    assert all(len(spellings) == 1 for spellings in found)
    assert len({spelling[0].name for spelling in found}) == len(state)


@pytest.mark.parametrize(
    ("kind", "state"),
    [("autoencoder_kl", inventories.sd15_vae), ("clip_text", inventories.clip_l)],
)
def test_native_parts_have_the_reference_s_parameters(kind: str, state: Any) -> None:
    found = _core.parameters(kind, config_of(kind, state()))
    assert dict(found) == {n: tuple(t.shape) for n, t in state().items()}


def test_folded_shapes_tell_the_same() -> None:
    """Converters that fold tensors to rows of 256 leave vectors alone."""
    state = {
        name: t.reshape(-1, 256) if t.ndim > 1 and t.numel() % 256 == 0 else t
        for name, t in inventories.sd15_unet().items()
    }
    config = config_of("unet", state)
    assert {**config, "linear_projection": False} == SD15


def test_wider_encoders_use_erf() -> None:
    state = {
        "text_model.embeddings.token_embedding.weight": (49408, 1024),
        "text_model.embeddings.position_embedding.weight": (77, 1024),
        "text_model.final_layer_norm.weight": (1024,),
        "text_model.encoder.layers.0.mlp.fc1.bias": (4096,),
        "text_projection.weight": (512, 1024),
    }
    config = NETWORKS["clip_text"].from_shapes(Shapes(state), SD1)
    assert (config["activation"], config["heads"]) == ("gelu", 16)
    assert (config["has_projection"], config["projection_dim"]) == (True, 512)


def test_learned_words_do_not_move_the_end_token() -> None:
    state = {n: tuple(t.shape) for n, t in inventories.clip_l().items()}
    state["text_model.embeddings.token_embedding.weight"] = (49411, 768)
    config = NETWORKS["clip_text"].from_shapes(Shapes(state), SD1)
    assert (config["vocab_size"], config["eos_token_id"]) == (49411, 49407)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("conv_in.weight", (320, 4, 3)), ("conv_out.bias", (0,)), ("conv_in.weight", None)],
)
def test_tensors_that_tell_nothing(name: str, shape: tuple[int, ...] | None) -> None:
    shapes = {n: tuple(t.shape) for n, t in inventories.sd15_unet().items()}
    if shape is None:
        del shapes[name]
    else:
        shapes[name] = shape
    with pytest.raises(WeightsError, match=name):
        NETWORKS["unet"].from_shapes(Shapes(shapes), SD1)


def test_no_levels() -> None:
    with pytest.raises(WeightsError, match="no down_blocks"):
        NETWORKS["unet"].from_shapes(Shapes({"conv_in.weight": (320, 4, 3, 3)}), SD1)


# Any JSON value under any key that is read: a config that passes the checks, or a typed error.
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)
WHOLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unet": (SD15, {**inventories.SD15_UNET, "norm_num_groups": 32, "norm_eps": 1e-5}),
    "autoencoder_kl": (
        SD15_VAE,
        {**inventories.SD15_VAE, "shift_factor": 0.0, "norm_num_groups": 32, "latents_mean": None},
    ),
    "clip_text": (CLIP_L, {**inventories.CLIP_L, "layer_norm_eps": 1e-5, "text_config": None}),
}


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_json_is_taken_or_refused(kind: str, data: st.DataObject) -> None:
    config, said = WHOLE[kind]
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(said)), JSON_VALUES, max_size=3))
    try:
        found = NETWORKS[kind].refine(config, {**_listed(said), **changed})
        NETWORKS[kind].check(found)
    except SDEngineError:
        return
    assert found.keys() == config.keys()
    _core.parameters(kind, found)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(SD15)), JSON_VALUES, max_size=3))
def test_any_stored_config_is_taken_or_refused(changed: dict[str, Any]) -> None:
    index = inventories.index_of(inventories.sd15_unet())
    metadata = {"sdengine.config.unet": json.dumps({**SD15, **changed})}
    stored = dataclasses.replace(index, metadata=metadata)
    try:
        found = detect(stored)
    except SDEngineError:
        return
    _core.parameters("unet", found.configs["unet"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "5", '{"attention_heads": [[[[]]]]}', "[" * 100_000]
)
def test_stored_configs_that_are_no_configs(text: str) -> None:
    index = inventories.index_of(inventories.sd15_unet())
    with pytest.raises(WeightsError, match="Convert the model again"):
        detect(dataclasses.replace(index, metadata={"sdengine.config.unet": text}))


def test_a_stored_config_must_agree_with_the_tensors() -> None:
    index = inventories.index_of(inventories.sd15_unet())
    metadata = {"sdengine.config.unet": json.dumps({**SD15, "cross_attention_dim": 1024})}
    with pytest.raises(WeightsError, match=r"cross_attention_dim = 1024, the tensors show 768"):
        detect(dataclasses.replace(index, metadata=metadata))


def test_a_stored_config_tells_what_shapes_do_not() -> None:
    index = inventories.index_of(inventories.sd15_unet())
    metadata = {"sdengine.config.unet": json.dumps({"attention_heads": [5, 10, 20, 20], "new": 1})}
    found = detect(dataclasses.replace(index, metadata=metadata))
    assert found.configs["unet"] == {**SD15, "attention_heads": [5, 10, 20, 20]}
