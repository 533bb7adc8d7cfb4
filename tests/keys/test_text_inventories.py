"""Full-size language models and T5-XXL in every published naming: every tensor maps, none is left,
none is missing, and their figures are found without a config.json.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from sdengine import _core
from sdengine.errors import UnsupportedModelError, WeightsError
from sdengine.families import SD1
from sdengine.formats import TensorIndex
from sdengine.keys import NameMap, decoder_text
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of
from sdengine.loading.locate import Located, locate
from tests import text_models
from tests.inventories import State, index_of, with_prefix

# THUDM/chatglm3-6b-base as Kolors publishes it.
CHATGLM3 = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-5,
    "model_type": "chatglm",
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 32768,
}
LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
GEMMA2 = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
QWEN2_VL = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
MT5_XL = T5_XXL | {"vocab_size": 250112, "d_model": 2048, "d_ff": 5120, "num_heads": 32}


def on_meta(build: Any, *arguments: Any, **config: Any) -> State:
    with torch.device("meta"):
        return dict(build(*arguments, **config).state_dict())


@cache
def chatglm3() -> State:
    state = on_meta(text_models.chatglm_class(), **CHATGLM3)
    # A buffer that published files hold and that this class does not save.
    state["rotary_pos_emb.inv_freq"] = torch.empty(32, device="meta")
    return state


@cache
def llm(name: str) -> State:
    figures = {"Llama": LLAMA, "Gemma2": GEMMA2, "Qwen2": QWEN2_VL}[name]
    return on_meta(text_models.transformers_class, name, "Model", **figures)


@cache
def t5_xxl() -> State:
    return on_meta(text_models.transformers_class, "T5", "EncoderModel", **T5_XXL)


def causal(state: State) -> State:
    head = torch.empty(8, 8, device="meta")
    return {**with_prefix("model.", state), "lm_head.weight": head}


def gguf(name: str, arch: str) -> State:
    figures = {"Llama": LLAMA, "Gemma2": GEMMA2, "Qwen2": QWEN2_VL}[name]
    heads, kv_heads = figures["num_attention_heads"], figures["num_key_value_heads"]
    extra = {"output.weight": torch.empty(8, 8, device="meta")}
    if arch == "llama":
        extra["rope_freqs.weight"] = torch.empty(64, device="meta")
    return {**text_models.llm_to_gguf(llm(name), arch, heads, kv_heads), **extra}


def with_vision(state: State) -> State:
    eye = {"model.visual.patch_embed.proj.weight": torch.empty(8, 8, device="meta")}
    return {**with_prefix("model.language_model.", state), **eye}


FOUND: dict[str, dict[str, Any]] = {
    "chatglm3": {
        "layers": 28,
        "heads": 32,
        "kv_heads": 2,
        "head_dim": 128,
        "intermediate_size": 13696,
        "vocab_size": 65024,
        "qkv_bias": True,
        "eps": 1e-5,
        "rope_theta": 1e4,
        "rope_fraction": 0.5,
        "rope_interleaved": True,
        "padding_sees_all": True,
        "activation": "silu",
        "softcap": 0.0,
        "post_norms": False,
    },
    "Llama": {
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "eps": 1e-5,
        "rope_theta": 5e5,
        "rope_factor": 8.0,
        "qkv_bias": False,
        "norm_plus_one": False,
    },
    "Gemma2": {
        "layers": 26,
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 256,
        "query_scale": 256**-0.5,
        "softcap": 50.0,
        "embedding_scale": 48.0,
        "activation": "gelu_tanh",
        "post_norms": True,
        "max_positions": 4096,
    },
    "Qwen2": {
        "layers": 28,
        "heads": 28,
        "kv_heads": 4,
        "head_dim": 128,
        "qkv_bias": True,
        "eps": 1e-6,
        "rope_theta": 1e6,
    },
    "T5": {
        "layers": 24,
        "heads": 64,
        "head_dim": 64,
        "buckets": 32,
        "intermediate_size": 10240,
        "vocab_size": 32128,
        "bias_per_layer": False,
    },
}
LAYOUTS: dict[str, tuple[str, str, Any, str]] = {
    # layout: (kind, model, state, dialect)
    "Kolors": ("decoder_text", "chatglm3", chatglm3, "ChatGLM"),
    "Kolors, in its folder": (
        "decoder_text",
        "chatglm3",
        lambda: with_prefix("text_encoder/", chatglm3()),
        "ChatGLM",
    ),
    "ChatGLM3, whole": (
        "decoder_text",
        "chatglm3",
        lambda: with_prefix("transformer.", chatglm3()),
        "ChatGLM (transformer.)",
    ),
    "Llama": ("decoder_text", "Llama", lambda: llm("Llama"), "transformers"),
    "Llama, causal": (
        "decoder_text",
        "Llama",
        lambda: causal(llm("Llama")),
        "transformers (model.)",
    ),
    "Llama, GGUF": ("decoder_text", "Llama", lambda: gguf("Llama", "llama"), "llama.cpp, Llama"),
    "Gemma 2": ("decoder_text", "Gemma2", lambda: llm("Gemma2"), "transformers"),
    "Gemma 2, GGUF": (
        "decoder_text",
        "Gemma2",
        lambda: gguf("Gemma2", "gemma2"),
        "llama.cpp, Gemma 2",
    ),
    "Qwen2.5-VL": (
        "decoder_text",
        "Qwen2",
        lambda: with_vision(llm("Qwen2")),
        "transformers (model.language_model.)",
    ),
    "Qwen2.5-VL, GGUF": (
        "decoder_text",
        "Qwen2",
        lambda: gguf("Qwen2", "qwen2vl"),
        "llama.cpp, Qwen 2",
    ),
    "T5-XXL": ("t5_text", "T5", t5_xxl, "transformers"),
    "T5-XXL, words once": (
        "t5_text",
        "T5",
        lambda: {n: t for n, t in t5_xxl().items() if n != "shared.weight"},
        "transformers (without shared.)",
    ),
    "T5-XXL, city96": (
        "t5_text",
        "T5",
        lambda: text_models.t5_to_gguf(t5_xxl()),
        "llama.cpp, T5",
    ),
}


def located_in(index: TensorIndex, kind: str) -> Located:
    found = locate(index, text_models.component(kind))
    assert found is not None
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_maps_and_figures_are_found(layout: str) -> None:
    kind, model, build, dialect = LAYOUTS[layout]
    state = build()
    located = located_in(index_of(state), kind)
    assert located.table.name == dialect
    config = config_of(located, SD1)
    assert {key: config[key] for key in FOUND[model]} == FOUND[model]
    if kind == "decoder_text":
        assert config["rope_interleaved"] == (dialect.endswith("Llama") or "ChatGLM" in dialect)
        assert config["norm_plus_one"] == (layout == "Gemma 2")
    expected = _core.parameters(kind, config)
    bindings, unused = bind(located, expected)
    assert [(b.name, b.entry.shape) for b in bindings] == expected
    assert unused == ()
    # Nothing is ignored but what is meant to be.
    used = {binding.entry.name for binding in bindings}
    ignored = {name for name in state if name not in used}
    known = ("rotary", "lm_head", "output", "rope_freqs", "visual", "embed_tokens", "output_layer")
    assert all(any(word in name for word in known) for name in ignored), ignored


def test_rows_of_chatglms_fused_tensors() -> None:
    located = located_in(index_of(chatglm3()), "decoder_text")
    bindings, _ = bind(located, _core.parameters("decoder_text", config_of(located, SD1)))
    entries = {binding.name: binding.entry for binding in bindings}
    fused = located.index.tensors["encoder.layers.3.self_attention.query_key_value.weight"]
    row = 4096 * 2  # bytes of f16
    for name, first, rows in (("q", 0, 4096), ("k", 4096, 256), ("v", 4352, 256)):
        entry = entries[f"layers.3.self_attn.{name}_proj.weight"]
        assert (entry.offset, entry.shape) == (fused.offset + first * row, (rows, 4096))
    fused = located.index.tensors["encoder.layers.3.mlp.dense_h_to_4h.weight"]
    for name, first in (("gate", 0), ("up", 13696)):
        entry = entries[f"layers.3.mlp.{name}_proj.weight"]
        assert (entry.offset, entry.shape) == (fused.offset + first * row, (13696, 4096))


def test_mt5_xl() -> None:
    state = on_meta(text_models.transformers_class, "MT5", "EncoderModel", **MT5_XL)
    config = config_of(located_in(index_of(state), "t5_text"), SD1)
    figures = {"layers": 24, "heads": 32, "head_dim": 64, "vocab_size": 250112}
    assert {key: config[key] for key in figures} == figures


@pytest.mark.parametrize("table", decoder_text.TABLES, ids=lambda table: table.name)
def test_names_translate_both_ways(table: Any) -> None:
    names = NameMap.of_network(table, {"layers": 3})
    for canonical in (
        "embed_tokens.weight",
        "layers.2.self_attn.k_proj.weight",
        "layers.2.mlp.up_proj.weight",
        "layers.0.post_attention_layernorm.weight",
        "norm.weight",
    ):
        file = names.to_file(canonical)
        assert len(file) == 1, canonical
        assert canonical in [found.name for found in names.to_canonical(file[0].name)]


# ------------------------------ config.json
def with_config(state: State, json: dict[str, Any]) -> Located:
    index = replace(index_of(state), configs={"config": json})
    return located_in(index, "decoder_text")


def test_kolors_config_agrees_with_what_is_found_without_it() -> None:
    told = config_of(with_config(chatglm3(), CHATGLM3), SD1)
    assert told == config_of(located_in(index_of(chatglm3()), "decoder_text"), SD1)
    assert told == config_of(with_config(chatglm3(), {"model_type": "chatglm"}), SD1)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"kv_channels": 100}, WeightsError, "kv_channels = 100 does not divide 4096"),
        (
            {"multi_query_group_num": 4},
            WeightsError,
            "multi_query_group_num = 4, the tensors show 2",
        ),
        ({"num_layers": 27}, WeightsError, "num_layers = 27, the tensors show 28"),
        ({"rmsnorm": False}, UnsupportedModelError, "rmsnorm = False"),
        ({"rope_ratio": 500}, UnsupportedModelError, "rope_ratio = 500"),
        ({"layernorm_epsilon": 2.0}, WeightsError, "eps = 2.0"),
        ({"model_type": "gpt2"}, UnsupportedModelError, "model_type = 'gpt2'"),
    ],
)
def test_configs_of_chatglm_that_do_not_fit(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        config_of(with_config(chatglm3(), {**CHATGLM3, **changed}), SD1)


@pytest.mark.parametrize(
    ("json", "error", "message"),
    [
        ({"num_key_value_heads": 4}, WeightsError, "num_key_value_heads = 4, the tensors show 8"),
        ({"hidden_act": "relu"}, UnsupportedModelError, "hidden_act = 'relu'"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            UnsupportedModelError,
            "rope_type = 'yarn'",
        ),
        ({"rope_theta": math.nan}, WeightsError, "rope_theta = nan"),
        ({"partial_rotary_factor": 0.001}, WeightsError, "one pair at least"),
        ({"num_attention_heads": 0}, WeightsError, "num_attention_heads = 0"),
        ({"head_dim": 0}, WeightsError, "head_dim = 0"),
        ({"max_position_embeddings": 10**9}, None, ""),
    ],
)
def test_configs_of_llama(
    json: dict[str, Any], error: type[Exception] | None, message: str
) -> None:
    given = {**LLAMA, "model_type": "llama", **json}
    if error is None:
        assert config_of(with_config(llm("Llama"), given), SD1)["max_positions"] == 4096
        return
    with pytest.raises(error, match=message):
        config_of(with_config(llm("Llama"), given), SD1)


def test_older_configs_of_llama_3() -> None:
    older = {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "rms_norm_eps": 1e-5,
    }
    config = config_of(with_config(llm("Llama"), {**LLAMA, **older}), SD1)
    found = {key: config[key] for key in ("rope_theta", "rope_factor", "rope_trained", "eps")}
    assert found == {"rope_theta": 5e5, "rope_factor": 32.0, "rope_trained": 8192, "eps": 1e-5}


@pytest.mark.parametrize(
    ("json", "error", "message"),
    [
        ({"num_heads": 32}, WeightsError, "num_heads = 32, the tensors show 64"),
        ({"feed_forward_proj": "relu"}, UnsupportedModelError, "feed_forward_proj = 'relu'"),
        ({"relative_attention_num_buckets": 24}, WeightsError, "values for 24 buckets"),
        ({"relative_attention_num_buckets": 0}, WeightsError, "values for 0 buckets"),
        ({"relative_attention_max_distance": 4}, WeightsError, "max_distance = 4"),
        ({"layer_norm_epsilon": -1.0}, WeightsError, "eps = -1.0"),
    ],
)
def test_configs_of_t5_that_do_not_fit(
    json: dict[str, Any], error: type[Exception], message: str
) -> None:
    index = replace(index_of(t5_xxl()), configs={"config": {**T5_XXL, **json}})
    with pytest.raises(error, match=message):
        config_of(located_in(index, "t5_text"), SD1)


def test_a_fused_attention_of_impossible_height() -> None:
    state = dict(chatglm3())
    name = "encoder.layers.0.self_attention.query_key_value.weight"
    state[name] = torch.empty(4097, 4096, device="meta")
    with pytest.raises(WeightsError, match="a fused attention has 4097 rows, 4096 of them"):
        config_of(located_in(index_of(state), "decoder_text"), SD1)


def test_a_fused_attention_of_another_layer_that_does_not_fit() -> None:
    state = dict(chatglm3())
    name = "encoder.layers.5.self_attention.query_key_value.weight"
    state[name] = torch.empty(4600, 4096, device="meta")
    located = located_in(index_of(state), "decoder_text")
    with pytest.raises(
        WeightsError, match=r"layers.5.*query_key_value.*\[4600, 4096\]; expected \[4608, 4096\]"
    ):
        bind(located, _core.parameters("decoder_text", config_of(located, SD1)))
