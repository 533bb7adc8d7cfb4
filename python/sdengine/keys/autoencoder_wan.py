"""Names of Wan's autoencoder of videos, which Qwen-Image uses: Wan's own, and diffusers'.

Canonical are the names of the KL autoencoder, for a single picture is all that is asked of it. Both
dialects count the encoder's layers through all levels, one by one; Wan does so in the decoder too.
Layers between frames are left out, and of kernels over time only the last slice is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.templates import Variables

_IGNORED = ("*.time_conv.*",)


def _variables(levels: int, layers: int) -> Variables:
    return {
        "i": range(levels),
        "down": range(layers),
        "up": range(layers + 1),
        "layers": [layers],
    }


def _variables_of(config: Mapping[str, Any]) -> Variables:
    return _variables(len(config["block_out_channels"]), config["layers_per_block"])


def _variables_of_diffusers(names: Collection[str]) -> Variables:
    layers = count_at(names, "decoder.up_blocks.0.resnets.") - 1
    return _variables(count_at(names, "decoder.up_blocks."), max(0, layers))


def _variables_of_wan(names: Collection[str]) -> Variables:
    encoder, decoder = (
        count_at(names, f"{n}.") for n in ("encoder.downsamples", "decoder.upsamples")
    )
    # The decoder has one resnet more at each level.
    levels = max(1, decoder - encoder)
    return _variables(levels, max(0, encoder - levels + 1) // levels)


def _for_one_picture(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(replace(rule, frame=-1) for rule in rules)


_RESNET = (
    ("norm1.", "norm1."),
    ("conv1.", "conv1."),
    ("norm2.", "norm2."),
    ("conv2.", "conv2."),
    ("conv_shortcut.", "conv_shortcut."),
)
_RESNET_OF_WAN = (
    ("norm1.", "residual.0."),
    ("conv1.", "residual.2."),
    ("norm2.", "residual.3."),
    ("conv2.", "residual.6."),
    ("conv_shortcut.", "shortcut."),
)
_ENDS = (("conv_in.", "conv_in."), ("conv_norm_out.", "norm_out."), ("conv_out.", "conv_out."))
_ENDS_OF_WAN = (("conv_in.", "conv1."), ("conv_norm_out.", "head.0."), ("conv_out.", "head.2."))
# Of level i, in the encoder and in the decoder: places in a list of all levels.
_DOWN, _DOWNSAMPLE = "{i*layers+i+down}.", "{i*layers+i+layers}."
_UP, _UPSAMPLE = "{i*layers+i+i+up}.", "{i*layers+i+i+layers+1}."


def _attention(canonical: str, file: str) -> tuple[Rule, ...]:
    """The middle's attention, whose projections are kernels of one point."""
    projections = [("to_q", "to_qkv", 0), ("to_k", "to_qkv", 1), ("to_v", "to_qkv", 2)]
    return (
        Rule(f"{canonical}group_norm.", f"{file}norm."),
        Rule(f"{canonical}to_out.0.", f"{file}proj."),
        Rule(f"{canonical}to_out.0.weight", f"{file}proj.weight", kernel=True),
        *(
            Rule(f"{canonical}{ours}.{kind}", f"{file}{theirs}.{kind}", (i, 3), kernel=is_kernel)
            for ours, theirs, i in projections
            for kind, is_kernel in (("weight", True), ("bias", False))
        ),
    )


def _middle(
    side: str, resnets: tuple[str, str], attention: str, names: Iterable[tuple[str, str]]
) -> tuple[Rule, ...]:
    names = tuple(names)
    canonical = f"{side}.mid_block."
    return (
        *rules_below(f"{canonical}resnets.0.", f"{side}.{resnets[0]}", names),
        *rules_below(f"{canonical}resnets.1.", f"{side}.{resnets[1]}", names),
        *_attention(f"{canonical}attentions.0.", f"{side}.{attention}"),
    )


def _encoder(blocks: str, resnet: Iterable[tuple[str, str]]) -> tuple[Rule, ...]:
    canonical = "encoder.down_blocks.{i}."
    return (
        *rules_below(f"{canonical}resnets.{{down}}.", f"encoder.{blocks}.{_DOWN}", resnet),
        Rule(f"{canonical}downsamplers.0.conv.", f"encoder.{blocks}.{_DOWNSAMPLE}resample.1."),
    )


DIFFUSERS = KeyTable(
    name="diffusers (Wan)",
    rules=_for_one_picture(
        (
            Rule("quant_conv.", "quant_conv."),
            Rule("post_quant_conv.", "post_quant_conv."),
            *(r for side in ("encoder.", "decoder.") for r in rules_below(side, side, _ENDS)),
            *(
                rule
                for side in ("encoder", "decoder")
                for rule in _middle(
                    side,
                    ("mid_block.resnets.0.", "mid_block.resnets.1."),
                    "mid_block.attentions.0.",
                    _RESNET,
                )
            ),
            *_encoder("down_blocks", _RESNET),
            *rules_below(
                "decoder.up_blocks.{i}.resnets.{up}.",
                "decoder.up_blocks.{i}.resnets.{up}.",
                _RESNET,
            ),
            Rule(
                "decoder.up_blocks.{i}.upsamplers.0.conv.",
                "decoder.up_blocks.{i}.upsamplers.0.resample.1.",
            ),
        )
    ),
    markers=("encoder.mid_block.attentions.0.norm.gamma", "decoder.conv_in.weight"),
    variables=_variables_of_diffusers,
    variables_of=_variables_of,
    ignored=_IGNORED,
)

WAN = KeyTable(
    name="Wan",
    rules=_for_one_picture(
        (
            Rule("quant_conv.", "conv1."),
            Rule("post_quant_conv.", "conv2."),
            *(
                r
                for side in ("encoder.", "decoder.")
                for r in rules_below(side, side, _ENDS_OF_WAN)
            ),
            *(
                rule
                for side in ("encoder", "decoder")
                for rule in _middle(side, ("middle.0.", "middle.2."), "middle.1.", _RESNET_OF_WAN)
            ),
            *_encoder("downsamples", _RESNET_OF_WAN),
            *rules_below(
                "decoder.up_blocks.{i}.resnets.{up}.", f"decoder.upsamples.{_UP}", _RESNET_OF_WAN
            ),
            Rule(
                "decoder.up_blocks.{i}.upsamplers.0.conv.",
                f"decoder.upsamples.{_UPSAMPLE}resample.1.",
            ),
        )
    ),
    markers=("decoder.middle.0.residual.0.gamma", "encoder.conv1.weight"),
    variables=_variables_of_wan,
    variables_of=_variables_of,
    ignored=_IGNORED,
)
