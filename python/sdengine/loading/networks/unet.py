"""The hyper-parameters of a UNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_between, check_divides
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer, number
from sdengine.loading.networks.shapes import Shapes

_KERNEL = 3
# Of every group norm in the UNets of the Stable Diffusion line (CompVis/stable-diffusion,
# `normalization`).
_GROUPS = 32
_EPSILON = 1e-5
_HEAD_WIDTH = 64  # where a family does not fix the number of heads (SD2, SDXL and their relatives)


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the UNet with these parameters."""
    encoder = encoder_from_shapes(shapes, family)
    layers = encoder["layers_per_block"]
    levels = len(layers)
    return {
        **encoder,
        "out_channels": shapes.length("conv_out.bias"),
        "up_transformer_layers": [
            _depths(shapes, f"up_blocks.{i}", layers[levels - 1 - i] + 1) for i in range(levels)
        ],
    }


def encoder_from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The part of the config that describes the way down, which a ControlNet has too."""
    sizes = family.size_conditioning
    levels = shapes.count("down_blocks.")
    widths = [shapes.length(f"down_blocks.{i}.resnets.0.conv2.bias") for i in range(levels)]
    if not widths:
        raise WeightsError("the UNet has no down_blocks; the file is incomplete")
    layers = [shapes.count(f"down_blocks.{i}.resnets.") for i in range(levels)]
    transformers = [(f"down_blocks.{i}", width) for i, width in enumerate(widths)]
    transformers += [("mid_block", widths[-1])]
    transformers += [(f"up_blocks.{i}", width) for i, width in enumerate(reversed(widths))]
    return {
        "in_channels": shapes.columns("conv_in.weight", widths[0], _KERNEL),
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_transformer_layers": [
            _depths(shapes, f"down_blocks.{i}", layers[i]) for i in range(levels)
        ],
        "mid_block": _mid_block(shapes),
        "mid_transformer_layers": max(_depths(shapes, "mid_block", 1)),
        "attention_heads": [
            family.attention_heads or max(1, width // _HEAD_WIDTH) for width in widths
        ],
        "cross_attention_dim": _context_width(shapes, transformers),
        "linear_projection": _has_linear_projection(shapes),
        "norm_groups": _GROUPS,
        "norm_eps": _EPSILON,
        "class_embed_dim": _input_width(shapes, "add_embedding.linear_1"),
        "addition_time_embed_dim": sizes.width if sizes else 0,
        "time_cond_proj_dim": (
            shapes.columns("time_embedding.cond_proj.weight", widths[0])
            if "time_embedding.cond_proj.weight" in shapes
            else 0
        ),
        "encoder_hid_dim": _input_width(shapes, "encoder_hid_proj"),
        "only_cross_attention": [_only_cross(shapes, i, widths[i]) for i in range(levels)],
    }


def _depths(shapes: Shapes, block: str, slots: int) -> list[int]:
    """Transformer blocks behind each resnet of a block; 0 where there is no attention."""
    return [shapes.count(f"{block}.attentions.{j}.transformer_blocks.") for j in range(slots)]


def _mid_block(shapes: Shapes) -> str:
    if not shapes.count("mid_block.resnets."):
        return "none"
    return "cross_attention" if shapes.count("mid_block.attentions.") else "resnet"


def _context_width(shapes: Shapes, blocks: list[tuple[str, int]]) -> int:
    """Width of the text context, from the first cross-attention; 0 if there is none."""
    for block, width in blocks:
        for slot in range(shapes.count(f"{block}.resnets.")):
            name = f"{block}.attentions.{slot}.transformer_blocks.0.attn2.to_k.weight"
            if name in shapes:
                return shapes.columns(name, width)
    return 0


def _has_linear_projection(shapes: Shapes) -> bool:
    """True if ``proj_in`` is a matrix; a kernel that lost its axes of size 1 computes the same."""
    names = (n for n in shapes if n.endswith(".proj_in.weight"))
    return all(shapes.rank(name) == 2 for name in names)


def _only_cross(shapes: Shapes, level: int, width: int) -> bool:
    """True if the self-attention of a level reads the context instead (SDXS-512-0.9)."""
    slots = shapes.count(f"down_blocks.{level}.resnets.")
    names = (
        f"down_blocks.{level}.attentions.{slot}.transformer_blocks.0.attn1.to_k.weight"
        for slot in range(slots)
    )
    return any(name in shapes and shapes.columns(name, width) != width for name in names)


def _input_width(shapes: Shapes, linear: str) -> int:
    """Input width of a linear layer with a bias; 0 if there is no such layer."""
    if f"{linear}.weight" not in shapes:
        return 0
    return shapes.columns(f"{linear}.weight", shapes.length(f"{linear}.bias"))


UNTOLD = frozenset({"attention_heads", "norm_groups", "norm_eps", "addition_time_embed_dim"})
"""Hyper-parameters that no shape tells."""

OPTIONS: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "num_class_embeds": (None,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
"""What the native UNet computes, in the words of diffusers' UNet2DConditionModel."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(json, OPTIONS)
    check_facts(
        json,
        {
            "in_channels": config["in_channels"],
            "out_channels": config["out_channels"],
            "layers_per_block": config["layers_per_block"],
            "block_out_channels": config["block_out_channels"],
            "time_cond_proj_dim": config["time_cond_proj_dim"],
        },
    )
    if config["cross_attention_dim"]:  # diffusers writes a default where there is no attention
        check_facts(json, {"cross_attention_dim": config["cross_attention_dim"]})
    if config["class_embed_dim"]:
        check_facts(json, {"projection_class_embeddings_input_dim": config["class_embed_dim"]})
    return {
        **config,
        "attention_heads": attention_heads(json, config),
        "norm_groups": integer(json, "norm_num_groups", config["norm_groups"]),
        "norm_eps": number(json, "norm_eps", config["norm_eps"]),
        "addition_time_embed_dim": integer(
            json, "addition_time_embed_dim", config["addition_time_embed_dim"]
        ),
    }


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no UNet can have."""
    widths = config["block_out_channels"]
    for heads, width in zip(config["attention_heads"], widths, strict=True):
        check_divides("attention_heads", heads, [width])
    check_divides("norm_groups", config["norm_groups"], widths)
    check_between("norm_eps", config["norm_eps"], 0, 1)


def attention_heads(json: Json, config: dict[str, Any]) -> list[int]:
    """Heads per level.

    diffusers' configs call the number of heads ``attention_head_dim`` unless they also have
    ``num_attention_heads`` (huggingface/diffusers issue 2011).
    """
    said = json.get("num_attention_heads")
    if said is None:
        said = json.get("attention_head_dim")
    if said is None:
        return list(config["attention_heads"])
    levels = len(config["block_out_channels"])
    heads = said if isinstance(said, list) else [said] * levels
    if len(heads) != levels or not all(type(n) is int and n > 0 for n in heads):
        raise WeightsError(
            f"config.json has attention_head_dim = {said!r}; expected a number of heads,"
            f" or one for each of {levels} levels"
        )
    return heads
