"""The hyper-parameters of a Qwen-Image denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.families import Family
from sdengine.keys.qwen_image import STILL_REFERENCES
from sdengine.loading.networks.checks import (
    check_channels,
    check_divides,
    check_rope_axes,
    rope_axes,
)
from sdengine.loading.networks.json_config import Json, check_facts, check_options, flag
from sdengine.loading.networks.shapes import Shapes

_PATCH = 2
_PATCH_AREA = _PATCH * _PATCH  # tensors are counted in packed channels, as FLUX's are


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the denoiser with these parameters."""
    width = shapes.length("img_in.bias")
    head_dim = shapes.length("transformer_blocks.0.attn.norm_q.weight")
    return {
        "in_channels": shapes.columns("img_in.weight", width) // _PATCH_AREA,
        "out_channels": shapes.length("proj_out.bias") // _PATCH_AREA,
        "width": width,
        "head_dim": head_dim,
        "layers": shapes.count("transformer_blocks."),
        "context_width": shapes.length("txt_norm.weight"),
        "rope_axes": rope_axes(head_dim),
        "still_references": STILL_REFERENCES in shapes,
    }


UNTOLD = frozenset({"rope_axes", "still_references"})
"""Hyper-parameters that no shape tells."""

_OPTIONS: dict[str, tuple[Any, ...]] = {
    "patch_size": (_PATCH,),
    "guidance_embeds": (False, None),
    "use_additional_t_cond": (False, None),
    "use_layer3d_rope": (False, None),
}
"""What the native denoiser computes, in the words of diffusers' QwenImageTransformer2DModel."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(json, _OPTIONS)
    check_facts(
        json,
        {
            "in_channels": config["in_channels"] * _PATCH_AREA,
            "out_channels": config["out_channels"],
            "num_layers": config["layers"],
            "attention_head_dim": config["head_dim"],
            "num_attention_heads": config["width"] // config["head_dim"],
            "joint_attention_dim": config["context_width"],
        },
    )
    return {
        **config,
        "rope_axes": json.get("axes_dims_rope") or config["rope_axes"],
        "still_references": flag(json, "zero_cond_t", config["still_references"]),
    }


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no Qwen-Image denoiser can have."""
    check_divides("head_dim", config["head_dim"], [config["width"]])
    check_rope_axes(config["rope_axes"], config["head_dim"])
    check_channels(config)
