"""Names of ControlNets for diffusion transformers: diffusers (canonical), Stability AI's and XLabs'.

Published files of InstantX, Shakker Labs and alimama are in diffusers' names. Stability AI's for
Stable Diffusion 3.5 Large have fused attentions, XLabs' for FLUX.1 the names of BFL's denoiser.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, numbers_at
from sdengine.keys.flux import BFL
from sdengine.keys.mmdit import fused
from sdengine.keys.templates import Variables

MMDIT = KeyTable(
    name="diffusers (SD3 control)",
    rules=(Rule("", ""),),
    markers=(
        "pos_embed_input.proj.weight",
        "controlnet_blocks.0.weight",
        "transformer_blocks.0.attn.to_q.weight",
    ),
)


def _blocks(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "transformer_blocks."))}


_BLOCK = "transformer_blocks.{i}."

# stabilityai/stable-diffusion-3.5-controlnets; read off diffusers' importer of them.
STABILITY = KeyTable(
    name="Stability AI (SD3.5 control)",
    rules=(
        Rule("", ""),
        *fused(f"{_BLOCK}attn.", ("to_q", "to_k", "to_v"), f"{_BLOCK}attn.qkv."),
        Rule(f"{_BLOCK}attn.to_out.0.", f"{_BLOCK}attn.proj."),
        Rule(f"{_BLOCK}norm1.linear.", f"{_BLOCK}adaLN_modulation.1."),
        Rule(f"{_BLOCK}ff.net.0.proj.", f"{_BLOCK}mlp.fc1."),
        Rule(f"{_BLOCK}ff.net.2.", f"{_BLOCK}mlp.fc2."),
    ),
    markers=(
        "pos_embed_input.proj.weight",
        "controlnet_blocks.0.weight",
        "transformer_blocks.0.attn.qkv.weight",
    ),
    variables=_blocks,
    variables_of=lambda config: {"i": range(config["layers"])},
    ignored=("control_type",),
)

FLUX = KeyTable(
    name="diffusers (FLUX control)",
    rules=(Rule("", ""),),
    markers=(
        "x_embedder.weight",
        "controlnet_x_embedder.weight",
        "controlnet_blocks.0.weight",
        "transformer_blocks.0.attn.add_k_proj.weight",
    ),
)


def _with_hints(blocks: Variables, hints: int) -> Variables:
    return {**blocks, "b": range(hints), "hints": [hints]}


def _xlabs_in(names: Collection[str]) -> Variables:
    convolutions = len(numbers_at(names, "input_hint_block."))
    return _with_hints(BFL.variables(names), max(0, convolutions - 2))


def _xlabs_of(config: Mapping[str, Any]) -> Variables:
    return _with_hints(BFL.variables_of(config), 2 * (len(config["hint_block_channels"]) - 1))


XLABS = KeyTable(
    name="XLabs",
    rules=(
        *BFL.rules,
        Rule("controlnet_blocks.", "controlnet_blocks."),
        Rule("controlnet_x_embedder.", "pos_embed_input."),
        # An activation stands between any two of the convolutions that read the picture.
        Rule("input_hint_block.conv_in.", "input_hint_block.0."),
        Rule("input_hint_block.blocks.{b}.", "input_hint_block.{2*b+2}."),
        Rule("input_hint_block.conv_out.", "input_hint_block.{2*hints+2}."),
    ),
    markers=(
        "pos_embed_input.weight",
        "input_hint_block.0.weight",
        "controlnet_blocks.0.weight",
        "double_blocks.0.img_attn.qkv.weight",
    ),
    variables=_xlabs_in,
    variables_of=_xlabs_of,
)
