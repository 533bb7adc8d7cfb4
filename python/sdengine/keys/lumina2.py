"""Lumina-Image 2.0 denoiser names: diffusers (canonical), and Alpha-VLLM's of single files and GGUFs.

In an original block one tensor holds queries, keys and values; keys and values have fewer heads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.templates import Variables

DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(Rule("", ""),),
    markers=("time_caption_embed.caption_embedder.1.weight", "context_refiner.0.attn.to_q.weight"),
)


def _variables_in(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "layers.")), "r": range(count_at(names, "noise_refiner."))}


def _variables_of(config: Mapping[str, Any]) -> Variables:
    return {"i": range(config["layers"]), "r": range(config["refiner_layers"])}


# Rows of the fused projection: all query heads, then the key heads, then the value heads.
_FUSED = (("to_q", 0), ("to_k", -2), ("to_v", -1))
_BLOCK = (
    ("attn.to_out.0.", "attention.out."),
    ("attn.norm_q.", "attention.q_norm."),
    ("attn.norm_k.", "attention.k_norm."),
    ("norm2.", "attention_norm2."),
    ("ffn_norm1.", "ffn_norm1."),
    ("ffn_norm2.", "ffn_norm2."),
    *((f"feed_forward.linear_{n}.", f"feed_forward.w{n}.") for n in (1, 2, 3)),
)
_MODULATED = (("norm1.norm.", "attention_norm1."), ("norm1.linear.", "adaLN_modulation.1."))
_PLAIN = (("norm1.", "attention_norm1."),)


def _blocks(prefix: str, norm: tuple[tuple[str, str], ...]) -> tuple[Rule, ...]:
    """Rules for a list of blocks, which has the same name in both dialects."""
    return (
        *rules_below(prefix, prefix, (*_BLOCK, *norm)),
        *(
            Rule(f"{prefix}attn.{name}.weight", f"{prefix}attention.qkv.weight", (index, None))
            for name, index in _FUSED
        ),
    )


ORIGINAL = KeyTable(
    name="Lumina",
    rules=(
        Rule("x_embedder.", "x_embedder."),
        Rule("time_caption_embed.timestep_embedder.linear_1.", "t_embedder.mlp.0."),
        Rule("time_caption_embed.timestep_embedder.linear_2.", "t_embedder.mlp.2."),
        Rule("time_caption_embed.caption_embedder.", "cap_embedder."),
        *_blocks("layers.{i}.", _MODULATED),
        *_blocks("noise_refiner.{r}.", _MODULATED),
        *_blocks("context_refiner.{r}.", _PLAIN),
        Rule("norm_out.linear_1.", "final_layer.adaLN_modulation.1."),
        Rule("norm_out.linear_2.", "final_layer.linear."),
    ),
    markers=("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight"),
    variables=_variables_in,
    variables_of=_variables_of,
    # A norm that the network does not apply.
    ignored=("norm_final.weight",),
)
