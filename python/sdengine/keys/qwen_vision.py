"""Names of Qwen2.5-VL's vision encoder: transformers', and those of llama.cpp's ``mmproj`` files.

The kernel over the two frames of a picture is two kernels under canonical names, as llama.cpp has it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.templates import Variables

_OURS = ("q", "k", "v")

TRANSFORMERS = KeyTable(
    name="transformers",
    rules=(
        Rule("", ""),
        Rule("patch_embed.0.weight", "patch_embed.proj.weight", frame=0),
        Rule("patch_embed.1.weight", "patch_embed.proj.weight", frame=1),
        *(
            Rule(f"blocks.{{i}}.attn.{name}.", "blocks.{i}.attn.qkv.", part=(place, 3))
            for place, name in enumerate(_OURS)
        ),
    ),
    markers=("patch_embed.proj.weight", "merger.ln_q.weight"),
    variables=lambda names: {"i": range(count_at(names, "blocks."))},
    variables_of=lambda config: {"i": range(config["layers"])},
    ignored=("rotary_pos_emb.*",),
)


def _variables_in(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "v.blk."))}


def _variables_of(config: Mapping[str, Any]) -> Variables:
    return {"i": range(config["layers"])}


LLAMA_CPP = KeyTable(
    name="llama.cpp",
    rules=(
        Rule("patch_embed.0.weight", "v.patch_embd.weight"),
        Rule("patch_embed.1.weight", "v.patch_embd.weight.1"),
        *rules_below(
            "blocks.{i}.",
            "v.blk.{i}.",
            (
                ("norm1.", "ln1."),
                ("norm2.", "ln2."),
                *((f"attn.{name}.", f"attn_{name}.") for name in _OURS),
                ("attn.proj.", "attn_out."),
                ("mlp.gate_proj.", "ffn_gate."),
                ("mlp.up_proj.", "ffn_up."),
                ("mlp.down_proj.", "ffn_down."),
            ),
        ),
        Rule("merger.ln_q.", "v.post_ln."),
        Rule("merger.mlp.", "mm."),
    ),
    markers=("v.patch_embd.weight.1", "v.blk.0.ffn_gate.weight"),
    variables=_variables_in,
    variables_of=_variables_of,
)
