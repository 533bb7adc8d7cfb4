"""SD3 denoiser names: diffusers (canonical) and the reference naming of single files and GGUFs.

The canonical names differ from diffusers' in one point. Where a modulation has two chunks, the
reference keeps shift before scale and diffusers scale before shift; here they are two parameters,
``linear_scale`` and ``linear_shift``, so that either file is used in place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.templates import Variables


def halves(canonical: str, file: str, scale: int) -> tuple[Rule, ...]:
    """Rules for a two-chunk modulation whose scale is half `scale` of the file's tensor."""
    return (
        Rule(f"{canonical}linear_scale.", file, part=(scale, 2)),
        Rule(f"{canonical}linear_shift.", file, part=(1 - scale, 2)),
    )


def fused(canonical: str, names: tuple[str, str, str], file: str) -> tuple[Rule, ...]:
    """Rules for queries, keys and values that are the thirds of one tensor."""
    return tuple(Rule(f"{canonical}{n}.", file, part=(i, 3)) for i, n in enumerate(names))


def _diffusers_variables(names: Collection[str]) -> Variables:
    return {"last": [count_at(names, "transformer_blocks.") - 1]}


def _variables_of(config: Mapping[str, Any]) -> Variables:
    return {"i": range(config["layers"]), "last": [config["layers"] - 1]}


DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(
        Rule("", ""),
        *halves("norm_out.", "norm_out.linear.", 0),
        *halves(
            "transformer_blocks.{last}.norm1_context.",
            "transformer_blocks.{last}.norm1_context.linear.",
            0,
        ),
    ),
    markers=("pos_embed.proj.weight", "transformer_blocks.0.attn.add_k_proj.weight"),
    variables=_diffusers_variables,
    variables_of=_variables_of,
)


def _reference_variables(names: Collection[str]) -> Variables:
    layers = count_at(names, "joint_blocks.")
    return {"i": range(layers), "last": [layers - 1]}


_OUR_BLOCK, _THEIR_BLOCK = "transformer_blocks.{i}.", "joint_blocks.{i}."
_IMAGE = (
    ("norm1.linear.", "adaLN_modulation.1."),
    ("attn.norm_q.", "attn.ln_q."),
    ("attn.norm_k.", "attn.ln_k."),
    ("attn.to_out.0.", "attn.proj."),
    ("attn2.norm_q.", "attn2.ln_q."),
    ("attn2.norm_k.", "attn2.ln_k."),
    ("attn2.to_out.0.", "attn2.proj."),
    ("ff.net.0.proj.", "mlp.fc1."),
    ("ff.net.2.", "mlp.fc2."),
)
_CONTEXT = (
    ("norm1_context.linear.", "adaLN_modulation.1."),
    ("attn.norm_added_q.", "attn.ln_q."),
    ("attn.norm_added_k.", "attn.ln_k."),
    ("attn.to_add_out.", "attn.proj."),
    ("ff_context.net.0.proj.", "mlp.fc1."),
    ("ff_context.net.2.", "mlp.fc2."),
)
_OWN = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")

REFERENCE = KeyTable(
    name="SD3",
    rules=(
        Rule("pos_embed.pos_embed", "pos_embed"),
        Rule("pos_embed.proj.", "x_embedder.proj."),
        Rule("context_embedder.", "context_embedder."),
        Rule("time_text_embed.timestep_embedder.linear_1.", "t_embedder.mlp.0."),
        Rule("time_text_embed.timestep_embedder.linear_2.", "t_embedder.mlp.2."),
        Rule("time_text_embed.text_embedder.linear_1.", "y_embedder.mlp.0."),
        Rule("time_text_embed.text_embedder.linear_2.", "y_embedder.mlp.2."),
        *rules_below(_OUR_BLOCK, f"{_THEIR_BLOCK}x_block.", _IMAGE),
        *rules_below(_OUR_BLOCK, f"{_THEIR_BLOCK}context_block.", _CONTEXT),
        *fused(f"{_OUR_BLOCK}attn.", _OWN, f"{_THEIR_BLOCK}x_block.attn.qkv."),
        *fused(f"{_OUR_BLOCK}attn.", ADDED, f"{_THEIR_BLOCK}context_block.attn.qkv."),
        *fused(f"{_OUR_BLOCK}attn2.", _OWN, f"{_THEIR_BLOCK}x_block.attn2.qkv."),
        *halves(
            "transformer_blocks.{last}.norm1_context.",
            "joint_blocks.{last}.context_block.adaLN_modulation.1.",
            1,
        ),
        *halves("norm_out.", "final_layer.adaLN_modulation.1.", 1),
        Rule("proj_out.", "final_layer.linear."),
    ),
    markers=("x_embedder.proj.weight", "joint_blocks.0.context_block.attn.qkv.weight"),
    variables=_reference_variables,
    variables_of=_variables_of,
)
