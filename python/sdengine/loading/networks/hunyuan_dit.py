"""The hyper-parameters of a Hunyuan-DiT denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_divides, check_variances
from sdengine.loading.networks.json_config import Json, check_facts, check_options
from sdengine.loading.networks.shapes import Shapes

_PATCH = 2
_POOL_HEADS = 8
_AXIS_PAIRS = 4  # a head has pairs of values for rows and for columns
_STYLE = "time_extra_emb.style_embedder.weight"


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the denoiser with these parameters."""
    width = shapes.length("pos_embed.proj.bias")
    context = shapes.length("text_embedder.linear_2.bias")
    second = shapes.length("time_extra_emb.pooler.q_proj.bias")
    second_tokens = shapes.columns("time_extra_emb.pooler.positional_embedding", second) - 1
    tokens = shapes.columns("text_embedding_padding", context)
    return {
        "in_channels": shapes.columns("pos_embed.proj.weight", width, _PATCH),
        "out_channels": shapes.length("proj_out.bias") // _PATCH**2,
        "width": width,
        "head_dim": shapes.length("blocks.0.attn1.norm_q.weight"),
        "layers": shapes.count("blocks."),
        "ff_width": shapes.length("blocks.0.ff.net.0.proj.bias"),
        "context_width": context,
        "context_tokens": tokens - second_tokens,
        "context_2_width": second,
        "context_2_tokens": second_tokens,
        "pooled_text_width": shapes.length("time_extra_emb.pooler.c_proj.bias"),
        # Up to 1.1 there is one; 1.2 is told neither styles nor sizes.
        "styles": shapes.columns(_STYLE, width) if _STYLE in shapes else 0,
    }


UNTOLD: frozenset[str] = frozenset()
"""Hyper-parameters that no shape tells."""


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells: nothing. Raises WeightsError for a contradiction."""
    check_options(
        json,
        {
            "patch_size": (_PATCH,),
            "activation_fn": ("gelu-approximate",),
            "norm_type": ("layer_norm",),
        },
    )
    check_facts(
        json,
        {
            "in_channels": config["in_channels"],
            "num_layers": config["layers"],
            "attention_head_dim": config["head_dim"],
            "num_attention_heads": config["width"] // config["head_dim"],
            "hidden_size": config["width"],
            "cross_attention_dim": config["context_width"],
            "cross_attention_dim_t5": config["context_2_width"],
            "pooled_projection_dim": config["pooled_text_width"],
            "text_len": config["context_tokens"],
            "text_len_t5": config["context_2_tokens"],
            "learn_sigma": config["out_channels"] > config["in_channels"],
            "use_style_cond_and_image_meta_size": config["styles"] > 0,
        },
    )
    return config


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no Hunyuan-DiT denoiser can have."""
    check_divides("head_dim", config["head_dim"], [config["width"]])
    check_divides("the pairs of rows and columns", _AXIS_PAIRS, [config["head_dim"]])
    check_divides("the heads of the pooled text", _POOL_HEADS, [config["context_2_width"]])
    check_variances(config)
    layers = config["layers"]
    if layers < 2 or layers % 2:
        raise WeightsError(
            f"the denoiser has {layers} blocks; expected an even number, for half of them read what the"
            " others leave"
        )
    if config["context_tokens"] < 1:
        raise WeightsError(
            "text_embedding_padding is shorter than the texts; expected a row for each of their tokens"
        )
