"""The hyper-parameters of a KL autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_between, check_divides
from sdengine.loading.networks.json_config import (
    Json,
    check_facts,
    check_options,
    integer,
    number,
    numbers,
)
from sdengine.loading.networks.shapes import Shapes

_KERNEL = 3
# Of every group norm in the autoencoders of the Stable Diffusion line (CompVis/stable-diffusion,
# `Normalize`).
_GROUPS = 32
_EPSILON = 1e-6


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the autoencoder with these parameters; scale and shift are the denoiser's."""
    levels = shapes.count("decoder.up_blocks.")
    widths = [
        shapes.length(f"decoder.up_blocks.{levels - 1 - i}.resnets.0.conv2.bias")
        for i in range(levels)
    ]
    return {
        "in_channels": shapes.length("decoder.conv_out.bias"),
        "latent_channels": shapes.columns(
            "decoder.conv_in.weight", shapes.length("decoder.conv_in.bias"), _KERNEL
        ),
        "block_out_channels": widths,
        "layers_per_block": shapes.count("decoder.up_blocks.0.resnets.") - 1,
        "norm_groups": 0 if "decoder.conv_norm_out.gamma" in shapes else _GROUPS,
        "upsampling_halves": _halves(shapes, widths),
        "norm_eps": _EPSILON,
        "use_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_attention": "decoder.mid_block.attentions.0.to_q.weight" in shapes,
        "scaling_factor": family.latents.scale,
        "shift_factor": family.latents.shift,
        "latents_mean": list(family.latents.mean),
        "latents_std": list(family.latents.deviation),
    }


def _halves(shapes: Shapes, widths: list[int]) -> bool:
    """Whether enlarging halves the channels, as in Wan's autoencoder."""
    name = "decoder.up_blocks.0.upsamplers.0.conv.bias"
    return name in shapes and shapes.length(name) != widths[-1]


UNTOLD = frozenset(
    {"norm_groups", "norm_eps", "scaling_factor", "shift_factor", "latents_mean", "latents_std"}
)
"""Hyper-parameters that no shape tells."""

_OPTIONS: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
}
"""What the native autoencoder computes, in the words of diffusers' AutoencoderKL."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(json, _OPTIONS)
    check_facts(
        json,
        {
            "in_channels": config["in_channels"],
            "out_channels": config["in_channels"],
            "latent_channels": config["latent_channels"],
            "block_out_channels": config["block_out_channels"],
            "layers_per_block": config["layers_per_block"],
            "use_quant_conv": config["use_quant_conv"],
            "mid_block_add_attention": config["mid_attention"],
        },
    )
    _check_of_videos(config, json)
    return {
        **config,
        "norm_groups": integer(json, "norm_num_groups", config["norm_groups"]),
        "scaling_factor": number(json, "scaling_factor", config["scaling_factor"]),
        "shift_factor": number(json, "shift_factor", config["shift_factor"]),
        "latents_mean": numbers(json, "latents_mean", config["latents_mean"]),
        "latents_std": numbers(json, "latents_std", config["latents_std"]),
    }


def _check_of_videos(config: dict[str, Any], json: Json) -> None:
    """Compare what diffusers' AutoencoderKLQwenImage and AutoencoderKLWan say in words of their own."""
    check_options(json, {"input_channels": (config["in_channels"],), "attn_scales": ([],)})
    base, factors = integer(json, "base_dim", 0), numbers(json, "dim_mult", [])
    widths = [base * factor for factor in factors]
    check_facts(
        {**json, "base_dim times dim_mult": widths or None},
        {
            "z_dim": config["latent_channels"],
            "num_res_blocks": config["layers_per_block"],
            "base_dim times dim_mult": config["block_out_channels"],
        },
    )


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no autoencoder can have."""
    if config["norm_groups"]:
        check_divides("norm_groups", config["norm_groups"], config["block_out_channels"])
    check_between("norm_eps", config["norm_eps"], 0, 1)
    check_between("scaling_factor", config["scaling_factor"], 0, 1e6)
    check_between("shift_factor", config["shift_factor"], -1e6, 1e6)
    for key in ("latents_mean", "latents_std"):
        if len(config[key]) not in (0, config["latent_channels"]):
            raise WeightsError(
                f"{key} has {len(config[key])} values; expected one for each of"
                f" {config['latent_channels']} channels"
            )
        for value in config[key]:
            check_between(key, value, 0 if key == "latents_std" else -1e6, 1e6)
    if len(config["latents_mean"]) != len(config["latents_std"]):
        raise WeightsError("latents_mean is given without latents_std, or the other way round")
