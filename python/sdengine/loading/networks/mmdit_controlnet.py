"""The hyper-parameters of a ControlNet for Stable Diffusion 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_divides
from sdengine.loading.networks.json_config import (
    Json,
    check_facts,
    check_options,
    flag,
    integer,
)
from sdengine.loading.networks.mmdit import PATCH, blocks_from_shapes, position_side
from sdengine.loading.networks.shapes import Shapes

_LATENTS = "pos_embed.proj.weight"
_HINT = "pos_embed_input.proj.weight"


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the ControlNet with these parameters."""
    width = shapes.length("pos_embed_input.proj.bias")
    patch = shapes.kernel(_HINT, PATCH)
    patches, text = _LATENTS in shapes, "context_embedder.weight" in shapes
    hint_channels = shapes.columns(_HINT, width, patch)
    has_positions = "pos_embed.pos_embed" in shapes
    return {
        # One without a layer of its own for the latents reads them through its base model's.
        "patches": patches,
        "in_channels": shapes.columns(_LATENTS, width, patch) if patches else hint_channels,
        "hint_channels": hint_channels,
        "patch_size": patch,
        "position_side": position_side(shapes, width) if has_positions else 0,
        "width": width,
        **blocks_from_shapes(shapes),
        "context_width": shapes.columns("context_embedder.weight", width) if text else 0,
        "pooled_width": shapes.columns("time_text_embed.text_embedder.linear_1.weight", width),
        # InstantX trained on zeros in the pooled text's place and on latents that are not shifted.
        "zero_pooled": text,
        "edges": False,
    }


UNTOLD = frozenset({"head_dim", "zero_pooled", "edges"})
"""Hyper-parameters that no shape tells (`head_dim`: where heads are not normed)."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(json, {"qk_norm": ("rms_norm" if config["qk_norm"] else None,)})
    head_dim = integer(json, "attention_head_dim", config["head_dim"])
    check_divides("attention_head_dim", head_dim, [config["width"]])
    facts = {
        "in_channels": config["in_channels"],
        "extra_conditioning_channels": config["hint_channels"] - config["in_channels"],
        "patch_size": config["patch_size"],
        "num_layers": config["layers"],
        "num_attention_heads": config["width"] // head_dim,
        "pooled_projection_dim": config["pooled_width"],
        "use_pos_embed": config["patches"],
    }
    if config["context_width"]:
        facts["joint_attention_dim"] = config["context_width"]
    if config["position_side"]:
        facts["pos_embed_max_size"] = config["position_side"]
    check_facts(json, facts)
    zero_pooled = flag(json, "force_zeros_for_pooled_projection", config["zero_pooled"])
    return {**config, "head_dim": head_dim, "zero_pooled": zero_pooled}


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no such ControlNet can have."""
    check_divides("head_dim", config["head_dim"], [config["width"]])
    if config["patch_size"] not in (1, 2):
        raise WeightsError(f"patch_size = {config['patch_size']!r}; expected 1 or 2")
    if config["layers"] < 1:
        raise WeightsError("the ControlNet has no blocks; the file is incomplete")
