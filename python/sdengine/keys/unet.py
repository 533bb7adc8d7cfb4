"""UNet names: diffusers (canonical) and LDM, the reference naming of single files and most GGUFs.

LDM numbers the blocks of the way down and up through: block `stride*i + j + 1` is resnet `j` of
level `i`. In a regular network `stride` is one more than the resnets per level. A pruned network
(one resnet per level) comes in two numberings: that compact one, and one that keeps the stride 3 of
the network it was cut from (files made by diffusers' export script).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, numbers_at, rules_below
from sdengine.keys.templates import Variables

_RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
)


DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(Rule("", ""),),
    markers=("conv_in.weight", "down_blocks.0.resnets.0.norm1.weight"),
)


def variables_in(names: Collection[str]) -> Variables:
    """The numbering of a file with these LDM names (prefix stripped)."""
    held = set(names)
    blocks = numbers_at(names, "input_blocks.")
    downs = [n for n in blocks if f"input_blocks.{n}.0.op.weight" in held]
    stride = downs[0] if downs else len(blocks)
    levels = 1 + len(downs)
    layers = sum(f"input_blocks.{n}.0.in_layers.0.weight" in held for n in blocks if 0 < n < stride)

    def ups_with(slot: int) -> list[int]:
        ends = ((i, stride * i + stride - 1) for i in range(levels))
        return [i for i, end in ends if f"output_blocks.{end}.{slot}.conv.weight" in held]

    return _variables(stride, layers, levels, ups_with(1), ups_with(2))


def variables_of(config: Mapping[str, Any]) -> Variables:
    """The numbering to write a network of this config with: the compact one if pruned."""
    layers = max(config["layers_per_block"])
    depths = config["up_transformer_layers"]
    levels = range(len(depths) - 1)  # the last level has no upsampler
    plain = [i for i in levels if not any(depths[i])]
    return _variables(layers + 1, layers, len(depths), plain, [i for i in levels if i not in plain])


def _variables(
    stride: int, layers: int, levels: int, plain_ups: list[int], attention_ups: list[int]
) -> Variables:
    return {
        "stride": [stride],
        "i": range(levels),
        "down": range(layers),
        "up": range(layers + 1),
        # An upsampler is the last part of its level's last block, behind a resnet and perhaps a
        # transformer.
        "plain": plain_ups,
        "attended": attention_ups,
    }


LDM_ENCODER = (
    Rule("conv_in.", "input_blocks.0.0."),
    Rule("time_embedding.linear_1.", "time_embed.0."),
    Rule("time_embedding.linear_2.", "time_embed.2."),
    Rule("time_embedding.cond_proj.", "time_embed.cond_proj."),
    Rule("add_embedding.linear_1.", "label_emb.0.0."),
    Rule("add_embedding.linear_2.", "label_emb.0.2."),
    Rule("encoder_hid_proj.", "encoder_hid_proj."),
    *rules_below("down_blocks.{i}.resnets.{down}.", "input_blocks.{stride*i+down+1}.0.", _RESNET),
    Rule("down_blocks.{i}.attentions.{down}.", "input_blocks.{stride*i+down+1}.1."),
    Rule("down_blocks.{i}.downsamplers.0.conv.", "input_blocks.{stride*i+stride}.0.op."),
    *rules_below("mid_block.resnets.0.", "middle_block.0.", _RESNET),
    Rule("mid_block.attentions.0.", "middle_block.1."),
    *rules_below("mid_block.resnets.1.", "middle_block.2.", _RESNET),
)
"""The way down, which a ControlNet has too."""

LDM = KeyTable(
    name="LDM",
    rules=(
        *LDM_ENCODER,
        *rules_below("up_blocks.{i}.resnets.{up}.", "output_blocks.{stride*i+up}.0.", _RESNET),
        Rule("up_blocks.{i}.attentions.{up}.", "output_blocks.{stride*i+up}.1."),
        Rule(
            "up_blocks.{plain}.upsamplers.0.conv.",
            "output_blocks.{stride*plain+stride-1}.1.conv.",
        ),
        Rule(
            "up_blocks.{attended}.upsamplers.0.conv.",
            "output_blocks.{stride*attended+stride-1}.2.conv.",
        ),
        Rule("conv_norm_out.", "out.0."),
        Rule("conv_out.", "out.2."),
    ),
    markers=("input_blocks.0.0.weight", "out.2.weight"),
    variables=variables_in,
    variables_of=variables_of,
)
