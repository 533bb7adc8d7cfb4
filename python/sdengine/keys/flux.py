"""FLUX.1 denoiser names: diffusers (canonical), and BFL, the naming of single files and GGUFs.

As for SD3, the two chunks of the last modulation are two parameters under canonical names, for BFL
keeps shift before scale and diffusers scale before shift. In a single block of a BFL file one
tensor holds queries, keys, values and, four times as high, the feed-forward's first layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.mmdit import ADDED, fused, halves
from sdengine.keys.templates import Variables

DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(Rule("", ""), *halves("norm_out.", "norm_out.linear.", 0)),
    markers=("x_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight"),
)


def _variables_in(names: Collection[str]) -> Variables:
    return {
        "i": range(count_at(names, "double_blocks.")),
        "j": range(count_at(names, "single_blocks.")),
    }


def _variables_of(config: Mapping[str, Any]) -> Variables:
    return {"i": range(config["layers"]), "j": range(config["single_layers"])}


_OWN = ("to_q", "to_k", "to_v")
_JOINT, _THEIR_JOINT = "transformer_blocks.{i}.", "double_blocks.{i}."
_SINGLE, _THEIR_SINGLE = "single_transformer_blocks.{j}.", "single_blocks.{j}."
_EMBEDDERS = (
    ("timestep_embedder.linear_1.", "time_in.in_layer."),
    ("timestep_embedder.linear_2.", "time_in.out_layer."),
    ("text_embedder.linear_1.", "vector_in.in_layer."),
    ("text_embedder.linear_2.", "vector_in.out_layer."),
    ("guidance_embedder.linear_1.", "guidance_in.in_layer."),
    ("guidance_embedder.linear_2.", "guidance_in.out_layer."),
)
_BLOCK = (
    ("norm1.linear.", "img_mod.lin."),
    ("norm1_context.linear.", "txt_mod.lin."),
    ("attn.to_out.0.", "img_attn.proj."),
    ("attn.to_add_out.", "txt_attn.proj."),
    ("ff.net.0.proj.", "img_mlp.0."),
    ("ff.net.2.", "img_mlp.2."),
    ("ff_context.net.0.proj.", "txt_mlp.0."),
    ("ff_context.net.2.", "txt_mlp.2."),
)


def _head_norms(canonical: str, file: str, names: tuple[str, str]) -> tuple[Rule, ...]:
    """BFL calls a norm's weight ``scale``; later saves of other programs say ``weight``."""
    pairs = tuple(zip(names, ("query_norm", "key_norm"), strict=True))
    return (
        *(Rule(f"{canonical}{n}.weight", f"{file}norm.{theirs}.scale") for n, theirs in pairs),
        *(Rule(f"{canonical}{n}.", f"{file}norm.{theirs}.") for n, theirs in pairs),
    )


BFL = KeyTable(
    name="BFL",
    rules=(
        Rule("x_embedder.", "img_in."),
        Rule("context_embedder.", "txt_in."),
        *rules_below("time_text_embed.", "", _EMBEDDERS),
        *rules_below(_JOINT, _THEIR_JOINT, _BLOCK),
        *fused(f"{_JOINT}attn.", _OWN, f"{_THEIR_JOINT}img_attn.qkv."),
        *fused(f"{_JOINT}attn.", ADDED, f"{_THEIR_JOINT}txt_attn.qkv."),
        *_head_norms(f"{_JOINT}attn.", f"{_THEIR_JOINT}img_attn.", ("norm_q", "norm_k")),
        *_head_norms(
            f"{_JOINT}attn.", f"{_THEIR_JOINT}txt_attn.", ("norm_added_q", "norm_added_k")
        ),
        Rule(f"{_SINGLE}norm.linear.", f"{_THEIR_SINGLE}modulation.lin."),
        *(
            Rule(f"{_SINGLE}attn.{name}.", f"{_THEIR_SINGLE}linear1.", part=(index, None))
            for index, name in enumerate(_OWN)
        ),
        Rule(f"{_SINGLE}proj_mlp.", f"{_THEIR_SINGLE}linear1.", part=(-1, None)),
        *_head_norms(f"{_SINGLE}attn.", _THEIR_SINGLE, ("norm_q", "norm_k")),
        Rule(f"{_SINGLE}proj_out.", f"{_THEIR_SINGLE}linear2."),
        *halves("norm_out.", "final_layer.adaLN_modulation.1.", 1),
        Rule("proj_out.", "final_layer.linear."),
    ),
    markers=("img_in.weight", "double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight"),
    variables=_variables_in,
    variables_of=_variables_of,
)
