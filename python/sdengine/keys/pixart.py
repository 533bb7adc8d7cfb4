"""PixArt denoiser names: diffusers (canonical), and those of the original checkpoints.

In an original block one tensor holds queries, keys and values of the self-attention, one keys and
values of the cross-attention.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.mmdit import fused
from sdengine.keys.templates import Variables

DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(Rule("", ""),),
    markers=("pos_embed.proj.weight", "adaln_single.linear.weight", "scale_shift_table"),
)


def _variables_in(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "blocks."))}


def _variables_of(config: Mapping[str, Any]) -> Variables:
    return {"i": range(config["layers"])}


_OURS, _THEIRS = "transformer_blocks.{i}.", "blocks.{i}."
_EMBEDDERS = (
    ("timestep_embedder.linear_1.", "t_embedder.mlp.0."),
    ("timestep_embedder.linear_2.", "t_embedder.mlp.2."),
    ("resolution_embedder.linear_1.", "csize_embedder.mlp.0."),
    ("resolution_embedder.linear_2.", "csize_embedder.mlp.2."),
    ("aspect_ratio_embedder.linear_1.", "ar_embedder.mlp.0."),
    ("aspect_ratio_embedder.linear_2.", "ar_embedder.mlp.2."),
)
_BLOCK = (
    ("scale_shift_table", "scale_shift_table"),
    ("attn1.to_out.0.", "attn.proj."),
    ("attn2.to_q.", "cross_attn.q_linear."),
    ("attn2.to_out.0.", "cross_attn.proj."),
    ("ff.net.0.proj.", "mlp.fc1."),
    ("ff.net.2.", "mlp.fc2."),
)

ORIGINAL = KeyTable(
    name="PixArt",
    rules=(
        Rule("pos_embed.proj.", "x_embedder.proj."),
        *rules_below("adaln_single.emb.", "", _EMBEDDERS),
        Rule("adaln_single.linear.", "t_block.1."),
        Rule("caption_projection.linear_1.", "y_embedder.y_proj.fc1."),
        Rule("caption_projection.linear_2.", "y_embedder.y_proj.fc2."),
        # What training put in the place of a text; its length is that of the texts.
        Rule("caption_projection.y_embedding", "y_embedder.y_embedding"),
        *rules_below(_OURS, _THEIRS, _BLOCK),
        *fused(f"{_OURS}attn1.", ("to_q", "to_k", "to_v"), f"{_THEIRS}attn.qkv."),
        Rule(f"{_OURS}attn2.to_k.", f"{_THEIRS}cross_attn.kv_linear.", part=(0, 2)),
        Rule(f"{_OURS}attn2.to_v.", f"{_THEIRS}cross_attn.kv_linear.", part=(1, 2)),
        Rule("proj_out.", "final_layer.linear."),
        Rule("scale_shift_table", "final_layer.scale_shift_table"),
    ),
    markers=("x_embedder.proj.weight", "t_block.1.weight", "blocks.0.cross_attn.kv_linear.weight"),
    variables=_variables_in,
    variables_of=_variables_of,
    # The table of positions follows from the size of the picture.
    ignored=("pos_embed",),
)
