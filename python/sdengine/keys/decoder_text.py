"""Names of decoder language models: transformers, ChatGLM's own, and llama.cpp's.

Canonical are the names that transformers gives the model without a head: ``layers.0.self_attn...``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.templates import Variables

# Heads that turn states into words or pictures into states, and buffers.
_IGNORED = (
    "lm_head.*",
    "visual.*",
    "model.visual.*",
    "vision_tower.*",
    "multi_modal_projector.*",
    "*rotary_emb.inv_freq",
)


def _transformers(prefix: str) -> KeyTable:
    return KeyTable(
        name=f"transformers ({prefix})" if prefix else "transformers",
        rules=tuple(Rule(f"{part}.", f"{prefix}{part}.") for part in _PARTS),
        markers=(f"{prefix}embed_tokens.weight", f"{prefix}layers.0.self_attn.q_proj.weight"),
        ignored=_IGNORED,
    )


_PARTS = ("embed_tokens", "layers", "norm")

TRANSFORMERS = _transformers("")
TRANSFORMERS_CAUSAL = _transformers("model.")
TRANSFORMERS_VISION = _transformers("model.language_model.")
"""The language part of a model that also sees pictures, from transformers 4.52 on."""


def _layers(prefix: str) -> Callable[[Collection[str]], Variables]:
    return lambda names: {"i": range(count_at(names, prefix))}


def _layers_of(config: Mapping[str, Any]) -> Variables:
    return {"i": range(config["layers"])}


# ------------------------------ ChatGLM3 (THUDM, Kolors)
_GLM_LAYER = "encoder.layers.{i}."


def _glm_fused(projection: str, index: int) -> tuple[Rule, ...]:
    """Rows of the fused projection: all query heads, then the few key heads, then the value heads."""
    ours, theirs = f"layers.{{i}}.self_attn.{projection}.", _GLM_LAYER
    return tuple(
        Rule(ours + kind, f"{theirs}self_attention.query_key_value.{kind}", part=(index, None))
        for kind in ("weight", "bias")
    )


CHATGLM = KeyTable(
    name="ChatGLM",
    rules=(
        Rule("embed_tokens.weight", "embedding.word_embeddings.weight"),
        Rule("norm.weight", "encoder.final_layernorm.weight"),
        *rules_below(
            "layers.{i}.",
            _GLM_LAYER,
            (
                ("input_layernorm.", "input_layernorm."),
                ("post_attention_layernorm.", "post_attention_layernorm."),
                ("self_attn.o_proj.", "self_attention.dense."),
                ("mlp.down_proj.", "mlp.dense_4h_to_h."),
            ),
        ),
        *_glm_fused("q_proj", 0),
        *_glm_fused("k_proj", -2),
        *_glm_fused("v_proj", -1),
        Rule("layers.{i}.mlp.gate_proj.weight", f"{_GLM_LAYER}mlp.dense_h_to_4h.weight", (0, 2)),
        Rule("layers.{i}.mlp.up_proj.weight", f"{_GLM_LAYER}mlp.dense_h_to_4h.weight", (1, 2)),
    ),
    markers=(
        "embedding.word_embeddings.weight",
        "encoder.layers.0.self_attention.query_key_value.weight",
    ),
    variables=_layers("encoder.layers."),
    variables_of=_layers_of,
    implies={
        # THUDM/chatglm3-6b-base and diffusers' ChatGLMModel: half of each head is turned, in pairs
        # of neighbours, and padding sees the whole text.
        "rope_interleaved": True,
        "rope_fraction": 0.5,
        "padding_sees_all": True,
    },
    ignored=("output_layer.*", "rotary_pos_emb.*", "prefix_encoder.*"),
)

_WHOLE = "transformer."

CHATGLM_CAUSAL = replace(
    CHATGLM,
    name="ChatGLM (transformer.)",
    rules=tuple(replace(rule, file=_WHOLE + rule.file) for rule in CHATGLM.rules),
    markers=tuple(_WHOLE + marker for marker in CHATGLM.markers),
    variables=_layers(f"{_WHOLE}encoder.layers."),
    ignored=tuple(_WHOLE + pattern for pattern in CHATGLM.ignored),
)

# ------------------------------ llama.cpp
_GGUF_LAYER = (
    ("self_attn.q_proj.", "attn_q."),
    ("self_attn.k_proj.", "attn_k."),
    ("self_attn.v_proj.", "attn_v."),
    ("self_attn.o_proj.", "attn_output."),
    ("self_attn.q_norm.", "attn_q_norm."),
    ("self_attn.k_norm.", "attn_k_norm."),
    ("mlp.gate_proj.", "ffn_gate."),
    ("mlp.up_proj.", "ffn_up."),
    ("mlp.down_proj.", "ffn_down."),
    ("input_layernorm.", "attn_norm."),
)
_TWO_NORMS = (("post_attention_layernorm.", "ffn_norm."),)
_FOUR_NORMS = (
    ("post_attention_layernorm.", "post_attention_norm."),
    ("pre_feedforward_layernorm.", "ffn_norm."),
    ("post_feedforward_layernorm.", "post_ffw_norm."),
)


def _gguf(
    name: str,
    norms: tuple[tuple[str, str], ...],
    markers: tuple[str, ...],
    implies: Mapping[str, Any],
) -> KeyTable:
    return KeyTable(
        name=f"llama.cpp, {name}",
        rules=(
            Rule("embed_tokens.", "token_embd."),
            Rule("norm.", "output_norm."),
            *rules_below("layers.{i}.", "blk.{i}.", (*_GGUF_LAYER, *norms)),
        ),
        markers=("token_embd.weight", "blk.0.attn_q.weight", *markers),
        variables=_layers("blk."),
        variables_of=_layers_of,
        implies=implies,
        ignored=("output.weight", "rope_freqs.weight"),
    )


# The converter adds the one of Gemma's norms to their weights.
LLAMA_CPP_GEMMA2 = _gguf(
    "Gemma 2", _FOUR_NORMS, ("blk.0.post_attention_norm.weight",), {"norm_plus_one": False}
)
LLAMA_CPP_QWEN2 = _gguf("Qwen 2", _TWO_NORMS, ("blk.0.attn_q.bias",), {})
LLAMA_CPP_QWEN3 = _gguf("Qwen 3", _TWO_NORMS, ("blk.0.attn_q_norm.weight",), {})
# The converter reorders the rows of q and k so that the two of a rotary pair are neighbours. Turned
# as neighbours they give the same scores, so the rows stay where they are.
LLAMA_CPP_LLAMA = _gguf("Llama", _TWO_NORMS, ("blk.0.ffn_norm.weight",), {"rope_interleaved": True})

TABLES: tuple[KeyTable, ...] = (
    TRANSFORMERS,
    TRANSFORMERS_CAUSAL,
    TRANSFORMERS_VISION,
    CHATGLM,
    CHATGLM_CAUSAL,
    LLAMA_CPP_GEMMA2,
    LLAMA_CPP_QWEN2,
    LLAMA_CPP_QWEN3,
    LLAMA_CPP_LLAMA,
)
"""Every dialect, in the order of search: what is left over among llama.cpp's is Llama's."""

QWEN2: tuple[KeyTable, ...] = (
    TRANSFORMERS_CAUSAL,
    TRANSFORMERS_VISION,
    TRANSFORMERS,
    LLAMA_CPP_QWEN2,
)
"""The dialects in which Qwen 2, 2.5 and their members that see pictures are published."""
