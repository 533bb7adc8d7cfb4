"""Tiny random text encoders in the layouts that publishers use, and how tests load them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from sdengine import _core
from sdengine.families import SD1, Component
from sdengine.formats import open_index
from sdengine.keys import KeyTable, bert_text, decoder_text, t5_text
from sdengine.loading import ComponentPlan
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of
from sdengine.loading.locate import locate
from sdengine.stores import make_store
from tests.models import _add_gguf_tensor, _finish_gguf, randomise

TABLES: dict[str, tuple[KeyTable, ...]] = {
    "decoder_text": decoder_text.TABLES,
    "t5_text": t5_text.TABLES,
    "bert_text": (bert_text.TRANSFORMERS,),
}
GLM = {
    "num_layers": 3,
    "padded_vocab_size": 100,
    "hidden_size": 32,
    "ffn_hidden_size": 40,
    "kv_channels": 8,
    "num_attention_heads": 4,
    "seq_length": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "original_rope": True,
    "rmsnorm": True,
}
SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1000.0,
}
T5 = {
    "vocab_size": 100,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 3,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}


def component(kind: str) -> Component:
    """A text encoder of this kind, found at the top of a file or in `text_encoder/`."""
    return Component(
        name="text_encoder",
        title="a text encoder",
        kind=kind,
        prefixes=("", "text_encoder/"),
        tables=TABLES[kind],
        argument="text_encoders",
        written=("", "transformers"),
    )


@dataclass
class Loaded:
    """A native text encoder with what was found out about it."""

    plan: ComponentPlan
    unused: tuple[str, ...]
    store: _core.WeightStore
    network: _core.Network

    def run(
        self, ids: Any, options: Mapping[str, int] | None = None, **inputs: Any
    ) -> dict[str, np.ndarray]:
        arrays = {"ids": ids, **inputs}
        given = {name: np.ascontiguousarray(a, dtype=np.int32) for name, a in arrays.items()}
        return self.network.run(given, dict(options or {}))


def load(path: Path, kind: str, **changed: Any) -> Loaded:
    """Load a text encoder the way a model's component is loaded."""
    located = locate(open_index(path), component(kind))
    assert located is not None, f"{path} holds no {kind}"
    config = {**config_of(located, SD1), **changed}
    bindings, unused = bind(located, _core.parameters(kind, config))
    plan = ComponentPlan("text_encoder", kind, config, bindings, path, located.table.name)
    store = make_store(plan)
    network = _core.Network(kind, config, store, _core.Device.cpu(1))
    return Loaded(plan, unused, store, network)


def chatglm_class() -> Callable[..., torch.nn.Module]:
    """Builds diffusers' ChatGLM3, of the Kolors pipeline."""
    with warnings.catch_warnings():  # the module scripts a function, which torch gives up
        warnings.simplefilter("ignore", DeprecationWarning)
        from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    return lambda **config: ChatGLMModel(ChatGLMConfig(**config), empty_init=False)


def transformers_class(name: str, kind: str, **config: Any) -> torch.nn.Module:
    """A model of transformers: class `name` + `kind`, such as `Gemma2` and `Model`."""
    import transformers

    built = getattr(transformers, f"{name}Config")(**config)
    model: torch.nn.Module = getattr(transformers, name + kind)(built).eval()
    return model


def glm(seed: int = 0, **changed: Any) -> torch.nn.Module:
    """A tiny ChatGLM3."""
    torch.manual_seed(seed)
    model = chatglm_class()(**{**GLM, **changed}).eval()
    for name, parameter in model.named_parameters():
        if "layernorm" in name:  # left as the memory was
            torch.nn.init.ones_(parameter)
    randomise(model, seed, 0.2)
    return model


def transformer(name: str, seed: int = 0, **changed: Any) -> torch.nn.Module:
    """A tiny decoder of transformers."""
    torch.manual_seed(seed)
    model = transformers_class(name, "Model", **{**SMALL, **changed})
    randomise(model, seed, 0.2)
    return model


def t5(name: str = "T5", seed: int = 0, **changed: Any) -> torch.nn.Module:
    """A tiny T5 or MT5 encoder."""
    torch.manual_seed(seed)
    model = transformers_class(name, "EncoderModel", **{**T5, **changed})
    randomise(model, seed, 0.2)
    return model


def save(model: torch.nn.Module, folder: Path, **options: Any) -> Path:
    """Write `config.json` and the weights as transformers does."""
    model.save_pretrained(folder, **options)
    return folder


# ------------------------------ llama.cpp's layout, from its published converter's rules
_LLM_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
_T5_NAMES = {
    "shared": "token_embd",
    "final_layer_norm": "enc.output_norm",
    "layer.0.SelfAttention.q": "attn_q",
    "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.layer_norm": "attn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
    "layer.1.layer_norm": "ffn_norm",
}


def _permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k as llama.cpp's converter stores them for `llama`."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def llm_to_gguf(
    state: Mapping[str, torch.Tensor], arch: str, heads: int, kv_heads: int
) -> dict[str, torch.Tensor]:
    """The tensors of a language model as llama.cpp's converter writes them."""
    four_norms = any("pre_feedforward_layernorm" in name for name in state)
    names = dict(_LLM_NAMES)
    names["post_attention_layernorm"] = "post_attention_norm" if four_norms else "ffn_norm"
    names["pre_feedforward_layernorm"] = "ffn_norm"
    names["post_feedforward_layernorm"] = "post_ffw_norm"
    found = {}
    for name, value in state.items():
        stem, kind = name.rsplit(".", 1)
        block = ""
        if stem.startswith("layers."):
            _, number, stem = stem.split(".", 2)
            block = f"blk.{number}."
        if arch == "gemma2" and stem.endswith("norm"):
            value = value + 1
        if arch == "llama" and stem.endswith(("q_proj", "k_proj")):
            value = _permuted(value, heads if stem.endswith("q_proj") else kv_heads)
        found[f"{block}{names[stem]}.{kind}"] = value
    return found


def t5_to_gguf(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a T5 encoder as llama.cpp's converter writes them."""
    found = {}
    for name, value in state.items():
        if name == "encoder.embed_tokens.weight":
            continue
        stem, kind = name.removeprefix("encoder.").rsplit(".", 1)
        block = ""
        if stem.startswith("block."):
            _, number, stem = stem.split(".", 2)
            block = f"enc.blk.{number}."
        found[f"{block}{_T5_NAMES[stem]}.{kind}"] = value
    return found


def write_gguf(
    path: Path, arch: str, tensors: Mapping[str, torch.Tensor], weight_type: str = "f32"
) -> Path:
    """Write a GGUF with matrices in `weight_type`."""
    writer = gguf.GGUFWriter(str(path), arch)
    for name, value in tensors.items():
        _add_gguf_tensor(writer, name, value.detach(), weight_type)
    _finish_gguf(writer)
    return path
