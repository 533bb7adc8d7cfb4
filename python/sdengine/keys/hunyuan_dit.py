"""Hunyuan-DiT denoiser names: diffusers (canonical), and those of the original files and ComfyUI's.

In an original block `norm3` stands before the cross-attention and `norm2` before the feed-forward layers; diffusers
counts them in order. The last modulation is as in :mod:`sdengine.keys.mmdit`: two parameters here, one tensor in
either dialect, shift first in the original and scale first in diffusers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.mmdit import fused, halves
from sdengine.keys.templates import Variables

DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(Rule("", ""), *halves("norm_out.", "norm_out.linear.", 0)),
    markers=("pos_embed.proj.weight", "text_embedding_padding", "blocks.0.norm1.linear.weight"),
)


def _variables_in(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "blocks."))}


def _variables_of(config: Mapping[str, Any]) -> Variables:
    return {"i": range(config["layers"])}


_BLOCK = "blocks.{i}."
_NAMES = (
    ("skip_norm.", "skip_norm."),
    ("skip_linear.", "skip_linear."),
    ("norm1.norm.", "norm1."),
    ("norm1.linear.", "default_modulation.1."),
    ("norm2.", "norm3."),
    ("norm3.", "norm2."),
    ("attn2.to_q.", "attn2.q_proj."),
    ("ff.net.0.proj.", "mlp.fc1."),
    ("ff.net.2.", "mlp.fc2."),
    *(
        (f"{attention}.{ours}.", f"{attention}.{theirs}.")
        for attention in ("attn1", "attn2")
        for ours, theirs in (
            ("norm_q", "q_norm"),
            ("norm_k", "k_norm"),
            ("to_out.0", "out_proj"),
        )
    ),
)
_EMBEDDERS = (
    ("timestep_embedder.linear_1.", "t_embedder.mlp.0."),
    ("timestep_embedder.linear_2.", "t_embedder.mlp.2."),
    ("extra_embedder.linear_1.", "extra_embedder.0."),
    ("extra_embedder.linear_2.", "extra_embedder.2."),
    ("style_embedder.", "style_embedder."),
    ("pooler.", "pooler."),
)

ORIGINAL = KeyTable(
    name="Hunyuan-DiT",
    rules=(
        Rule("pos_embed.proj.", "x_embedder.proj."),
        *rules_below("time_extra_emb.", "", _EMBEDDERS),
        Rule("text_embedder.linear_1.", "mlp_t5.0."),
        Rule("text_embedder.linear_2.", "mlp_t5.2."),
        Rule("text_embedding_padding", "text_embedding_padding"),
        *rules_below(_BLOCK, _BLOCK, _NAMES),
        *fused(f"{_BLOCK}attn1.", ("to_q", "to_k", "to_v"), f"{_BLOCK}attn1.Wqkv."),
        Rule(f"{_BLOCK}attn2.to_k.", f"{_BLOCK}attn2.kv_proj.", part=(0, 2)),
        Rule(f"{_BLOCK}attn2.to_v.", f"{_BLOCK}attn2.kv_proj.", part=(1, 2)),
        *halves("norm_out.", "final_layer.adaLN_modulation.1.", 1),
        Rule("proj_out.", "final_layer.linear."),
    ),
    markers=("x_embedder.proj.weight", "mlp_t5.0.weight", "blocks.0.attn1.Wqkv.weight"),
    variables=_variables_in,
    variables_of=_variables_of,
)
