"""Names of a network's modules that only adapter files use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sdengine.keys import flux
from sdengine.keys.engine import KeyTable, Rule
from sdengine.keys.mmdit import ADDED, fused

# XLabs-AI/x-flux (flux/modules/layers.py): its attention processors hold the pairs. 1 is the picture's stream, 2 the
# text's; in a single block the pair of queries, keys and values leaves out the feed-forward's rows of `linear1`.
_OWN: Final = ("to_q", "to_k", "to_v")
_XLABS_FLUX: Final = KeyTable(
    name="XLabs",
    rules=(
        *fused("transformer_blocks.{i}.attn.", _OWN, "double_blocks.{i}.qkv_lora1."),
        *fused("transformer_blocks.{i}.attn.", ADDED, "double_blocks.{i}.qkv_lora2."),
        Rule("transformer_blocks.{i}.attn.to_out.0.", "double_blocks.{i}.proj_lora1."),
        Rule("transformer_blocks.{i}.attn.to_add_out.", "double_blocks.{i}.proj_lora2."),
        *fused("single_transformer_blocks.{j}.attn.", _OWN, "single_blocks.{j}.qkv."),
        Rule("single_transformer_blocks.{j}.proj_out.", "single_blocks.{j}.proj."),
    ),
    markers=("double_blocks.0.qkv_lora1.weight",),
    variables_of=flux.BFL.variables_of,
)

TABLES: Final[Mapping[str, tuple[KeyTable, ...]]] = {"flux": (_XLABS_FLUX,)}
"""Kind of network -> dialects beside those of whole models."""
