"""The hyper-parameters of a tiny autoencoder (TAESD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.keys import numbers_at
from sdengine.loading.networks.checks import check_between
from sdengine.loading.networks.json_config import Json, check_facts, check_options, number
from sdengine.loading.networks.shapes import Shapes

_KERNEL = 3
_DECODER, _ENCODER = "decoder.layers.", "encoder.layers."


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the tiny autoencoder with these parameters; its latents are the denoiser's.

    ``encoder_blocks`` is empty for a decoder without encoder.
    """
    width = shapes.length(f"{_DECODER}0.bias")
    # Convolutions between the stages have no bias; each is followed by the next stage's blocks.
    last = max(numbers_at(shapes, _DECODER))
    decoder = _blocks(shapes, _DECODER)
    encoder = _blocks(shapes, _ENCODER) if f"{_ENCODER}0.bias" in shapes else []
    return {
        "in_channels": shapes.length(f"{_DECODER}{last}.bias"),
        "latent_channels": shapes.columns(f"{_DECODER}0.weight", width, _KERNEL),
        "block_out_channels": [width] * len(decoder),
        "encoder_blocks": encoder,
        "decoder_blocks": decoder,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    }


def _blocks(shapes: Shapes, prefix: str) -> list[int]:
    """Blocks per stage; between the first and the last layer a single convolution parts two."""
    counts = [0]
    for i in numbers_at(shapes, prefix)[1:-1]:
        if f"{prefix}{i}.conv.0.weight" in shapes:
            counts[-1] += 1
        elif f"{prefix}{i}.weight" in shapes:
            counts.append(0)
    return counts


UNTOLD = frozenset({"scaling_factor", "shift_factor"})
"""Hyper-parameters that no shape tells."""

_OPTIONS: dict[str, tuple[Any, ...]] = {
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}
"""What the native autoencoder computes, in the words of diffusers' AutoencoderTiny."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    check_options(json, _OPTIONS)
    facts = {
        "in_channels": config["in_channels"],
        "out_channels": config["in_channels"],
        "latent_channels": config["latent_channels"],
        "decoder_block_out_channels": config["block_out_channels"],
        "num_decoder_blocks": config["decoder_blocks"],
    }
    if config["encoder_blocks"]:
        facts["encoder_block_out_channels"] = config["block_out_channels"]
        facts["num_encoder_blocks"] = config["encoder_blocks"]
    check_facts(json, facts)
    return {
        **config,
        "scaling_factor": number(json, "scaling_factor", config["scaling_factor"]),
        "shift_factor": number(json, "shift_factor", config["shift_factor"]),
    }


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no tiny autoencoder can have."""
    stages = len(config["block_out_channels"])
    for name in ("encoder_blocks", "decoder_blocks"):
        counts = config[name]
        if counts and len(counts) != stages:
            raise WeightsError(f"{name} = {counts}; expected {stages} stages, as the decoder has")
    check_between("scaling_factor", config["scaling_factor"], 0, 1e6)
    check_between("shift_factor", config["shift_factor"], -1e6, 1e6)
