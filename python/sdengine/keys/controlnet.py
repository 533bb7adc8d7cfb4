"""ControlNet names: diffusers (canonical), and those of lllyasviel/ControlNet, which are LDM's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, numbers_at
from sdengine.keys.templates import Variables
from sdengine.keys.unet import LDM_ENCODER
from sdengine.keys.unet import variables_in as unet_variables_in

DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(Rule("", ""),),
    markers=(
        "conv_in.weight",
        "controlnet_cond_embedding.conv_in.weight",
        "controlnet_down_blocks.0.weight",
    ),
)


# xinsir's ControlNet-Union; of the attention along the batch only the values count, see the native network.
UNION = KeyTable(
    name="diffusers (union)",
    rules=(
        Rule("", ""),
        Rule("task_embedding.weight", "task_embedding"),
        *(
            Rule(
                f"transformer_layes.{{l}}.attn.v_proj.{kind}",
                f"transformer_layes.{{l}}.attn.in_proj_{kind}",
                part=(2, 3),
            )
            for kind in ("weight", "bias")
        ),
    ),
    markers=("conv_in.weight", "task_embedding", "control_add_embedding.linear_1.bias"),
    variables=lambda names: {"l": range(count_at(names, "transformer_layes."))},
    variables_of=lambda config: {"l": range(config["fusion_layers"])},
)


# The same as `convert` writes it: of the attention's three projections only the one that is read.
UNION_VALUES = KeyTable(
    name="diffusers (union, values only)",
    rules=(Rule("", ""), Rule("task_embedding.weight", "task_embedding")),
    markers=(*UNION.markers, "transformer_layes.0.attn.v_proj.weight"),
)


def _variables_in(names: Collection[str]) -> Variables:
    """The numbering of a file with these names (prefix stripped)."""
    hints = numbers_at(names, "input_hint_block.")
    return _with_hints(
        unet_variables_in(names), count_at(names, "zero_convs."), max(0, len(hints) - 2)
    )


def _variables_of(config: Mapping[str, Any]) -> Variables:
    """The numbering to write a network of this config with."""
    layers, levels = config["layers_per_block"], len(config["layers_per_block"])
    encoder = {"stride": [max(layers) + 1], "i": range(levels), "down": range(max(layers))}
    return _with_hints(encoder, sum(layers) + levels, 2 * (len(config["hint_block_channels"]) - 1))


def _with_hints(encoder: Variables, residuals: int, blocks: int) -> Variables:
    return {**encoder, "n": range(residuals), "b": range(blocks), "blocks": [blocks]}


LDM = KeyTable(
    name="LDM",
    rules=(
        *LDM_ENCODER,
        # An activation stands between any two of the convolutions that read the picture.
        Rule("controlnet_cond_embedding.conv_in.", "input_hint_block.0."),
        Rule("controlnet_cond_embedding.blocks.{b}.", "input_hint_block.{2*b+2}."),
        Rule("controlnet_cond_embedding.conv_out.", "input_hint_block.{2*blocks+2}."),
        Rule("controlnet_down_blocks.{n}.", "zero_convs.{n}.0."),
        Rule("controlnet_mid_block.", "middle_block_out.0."),
    ),
    markers=("input_blocks.0.0.weight", "input_hint_block.0.weight", "zero_convs.0.0.weight"),
    variables=_variables_in,
    variables_of=_variables_of,
)
