"""KL autoencoder names: diffusers (canonical), diffusers before version 0.17, and LDM.

LDM counts the decoder's levels from the output (level 0 is the finest), diffusers from the latents.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.templates import Variables

# Training leftovers in autoencoder files: the discriminator, running averages.
_IGNORED = ("loss.*", "model_ema.*")

DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(Rule("", ""),),
    markers=("decoder.conv_in.weight", "decoder.up_blocks.0.resnets.0.norm1.weight"),
    ignored=_IGNORED,
)

_OLD_ATTENTION = (
    ("to_q.", "query."),
    ("to_k.", "key."),
    ("to_v.", "value."),
    ("to_out.0.", "proj_attn."),
)
DIFFUSERS_OLD = KeyTable(
    name="diffusers (old attention names)",
    rules=(
        Rule("", ""),
        *rules_below(
            "encoder.mid_block.attentions.0.", "encoder.mid_block.attentions.0.", _OLD_ATTENTION
        ),
        *rules_below(
            "decoder.mid_block.attentions.0.", "decoder.mid_block.attentions.0.", _OLD_ATTENTION
        ),
    ),
    markers=(*DIFFUSERS.markers, "decoder.mid_block.attentions.0.query.weight"),
    ignored=_IGNORED,
)


def _variables_in(names: Collection[str]) -> Variables:
    """The levels and resnets of a file with these LDM names (prefix stripped)."""
    levels = max(count_at(names, "encoder.down."), count_at(names, "decoder.up."))
    layers = max(
        count_at(names, "encoder.down.0.block."), count_at(names, "decoder.up.0.block.") - 1
    )
    return _variables(levels, layers)


def _variables_of(config: Mapping[str, Any]) -> Variables:
    """The levels and resnets of a network of this config."""
    return _variables(len(config["block_out_channels"]), config["layers_per_block"])


def _variables(levels: int, layers: int) -> Variables:
    return {
        "top": [levels - 1],
        "i": range(levels),
        "down": range(layers),
        "up": range(layers + 1),
    }


_ENDS = (
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
    ("conv_in.", "conv_in."),
    ("conv_norm_out.", "norm_out."),
    ("conv_out.", "conv_out."),
)
_ATTENTION = (
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)
_RESNET = (
    ("norm1.", "norm1."),
    ("conv1.", "conv1."),
    ("norm2.", "norm2."),
    ("conv2.", "conv2."),
    ("conv_shortcut.", "nin_shortcut."),
)


def _attention(side: str) -> tuple[Rule, ...]:
    """LDM's attention projects with 1x1 convolutions."""
    canonical, file = f"{side}.mid_block.attentions.0.", f"{side}.mid.attn_1."
    return (
        *rules_below(canonical, file, ((f"{ours}.", f"{theirs}.") for ours, theirs in _ATTENTION)),
        *(
            Rule(f"{canonical}{ours}.weight", f"{file}{theirs}.weight", kernel=True)
            for ours, theirs in _ATTENTION
        ),
    )


LDM = KeyTable(
    name="LDM",
    rules=(
        *rules_below("encoder.", "encoder.", _ENDS),
        *rules_below("decoder.", "decoder.", _ENDS),
        *_attention("encoder"),
        *_attention("decoder"),
        *rules_below(
            "encoder.down_blocks.{i}.resnets.{down}.", "encoder.down.{i}.block.{down}.", _RESNET
        ),
        Rule("encoder.down_blocks.{i}.downsamplers.0.", "encoder.down.{i}.downsample."),
        *rules_below(
            "decoder.up_blocks.{i}.resnets.{up}.", "decoder.up.{top-i}.block.{up}.", _RESNET
        ),
        Rule("decoder.up_blocks.{i}.upsamplers.0.", "decoder.up.{top-i}.upsample."),
        Rule("quant_conv.", "quant_conv."),
        Rule("post_quant_conv.", "post_quant_conv."),
    ),
    markers=("decoder.conv_in.weight", "decoder.up.0.block.0.norm1.weight"),
    variables=_variables_in,
    variables_of=_variables_of,
    ignored=_IGNORED,
)
