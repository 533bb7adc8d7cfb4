"""Names of T5 encoders: transformers (canonical) and llama.cpp's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.templates import Variables

TRANSFORMERS = KeyTable(
    name="transformers",
    rules=(
        Rule("shared.", "shared."),
        Rule("encoder.block.", "encoder.block."),
        Rule("encoder.final_layer_norm.", "encoder.final_layer_norm."),
    ),
    markers=("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    # The same words again, and the other half of the model.
    ignored=("encoder.embed_tokens.weight", "decoder.*", "lm_head.*"),
)

# Files of the encoder alone that keep the words under their other name.
TRANSFORMERS_UNSHARED = KeyTable(
    name="transformers (without shared.)",
    rules=(
        Rule("shared.", "encoder.embed_tokens."),
        Rule("encoder.block.", "encoder.block."),
        Rule("encoder.final_layer_norm.", "encoder.final_layer_norm."),
    ),
    markers=("encoder.embed_tokens.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ignored=("decoder.*", "lm_head.*"),
)


def _layers(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "enc.blk."))}


def _layers_of(config: Mapping[str, Any]) -> Variables:
    return {"i": range(config["layers"])}


_ATTENTION = "layer.0.SelfAttention."
_FEED_FORWARD = "layer.1.DenseReluDense."

LLAMA_CPP = KeyTable(
    name="llama.cpp, T5",
    rules=(
        Rule("shared.", "token_embd."),
        Rule("encoder.final_layer_norm.", "enc.output_norm."),
        *rules_below(
            "encoder.block.{i}.",
            "enc.blk.{i}.",
            (
                (f"{_ATTENTION}q.", "attn_q."),
                (f"{_ATTENTION}k.", "attn_k."),
                (f"{_ATTENTION}v.", "attn_v."),
                (f"{_ATTENTION}o.", "attn_o."),
                (f"{_ATTENTION}relative_attention_bias.", "attn_rel_b."),
                ("layer.0.layer_norm.", "attn_norm."),
                (f"{_FEED_FORWARD}wi_0.", "ffn_gate."),
                (f"{_FEED_FORWARD}wi_1.", "ffn_up."),
                (f"{_FEED_FORWARD}wo.", "ffn_down."),
                ("layer.1.layer_norm.", "ffn_norm."),
            ),
        ),
    ),
    markers=("token_embd.weight", "enc.blk.0.attn_q.weight"),
    variables=_layers,
    variables_of=_layers_of,
    ignored=("dec.*", "output.weight"),
)

TABLES: tuple[KeyTable, ...] = (TRANSFORMERS, TRANSFORMERS_UNSHARED, LLAMA_CPP)
"""Every dialect, in the order of search."""
