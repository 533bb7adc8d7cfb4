"""T2I-Adapter names: diffusers (canonical), and TencentARC's for full and light adapters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at
from sdengine.keys.templates import Variables

DIFFUSERS = KeyTable(
    name="diffusers",
    rules=(Rule("adapter.", "adapter."),),
    markers=("adapter.body.0.resnets.0.block1.weight",),
)

_RESNETS = 2  # per level, in every published full adapter; their blocks are numbered through


def _full_variables(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "body.") // _RESNETS), "j": range(_RESNETS)}


def _variables_of(config: Mapping[str, Any]) -> Variables:
    return {"i": range(len(config["channels"])), "j": range(config["resnets"])}


TENCENT = KeyTable(
    name="TencentARC",
    rules=(
        Rule("adapter.conv_in.", "conv_in."),
        Rule("adapter.body.{i}.in_conv.", f"body.{{{_RESNETS}*i}}.in_conv."),
        *(
            Rule(f"adapter.body.{{i}}.resnets.{{j}}.{block}.", f"body.{{{_RESNETS}*i+j}}.{block}.")
            for block in ("block1", "block2")
        ),
    ),
    markers=("conv_in.weight", "body.0.block1.weight"),
    variables=_full_variables,
    variables_of=_variables_of,
)


def _light_variables(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "body.")), "j": range(count_at(names, "body.0.body."))}


TENCENT_LIGHT = KeyTable(
    name="TencentARC (light)",
    rules=(
        Rule("adapter.body.{i}.in_conv.", "body.{i}.in_conv."),
        Rule("adapter.body.{i}.resnets.{j}.", "body.{i}.body.{j}."),
        Rule("adapter.body.{i}.out_conv.", "body.{i}.out_conv."),
    ),
    markers=("body.0.in_conv.weight", "body.0.body.0.block1.weight"),
    variables=_light_variables,
    variables_of=_variables_of,
)
