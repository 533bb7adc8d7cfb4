"""CLIP text encoder names: transformers' (old and new), OpenCLIP's, stable-diffusion.cpp's.

Canonical are the names with ``text_model.``. OpenCLIP fuses the three projections of an attention
into one matrix and stores the text projection as [in, out].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at, rules_below
from sdengine.keys.templates import Variables

# The other half of a full CLIP model, and buffers.
_IGNORED = (
    "vision_model.*",
    "visual_projection.*",
    "visual.*",
    "logit_scale",
    "attn_mask",
    "*position_ids",
)

TRANSFORMERS = KeyTable(
    name="transformers",
    rules=(Rule("text_model.", "text_model."), Rule("text_projection.", "text_projection.")),
    markers=("text_model.embeddings.token_embedding.weight",),
    # stable-diffusion.cpp's name for a projection that its loader keeps in either orientation.
    ignored=(*_IGNORED, "text_model.text_projection*"),
)

# Some of the oldest single files, and everything that transformers 5 writes.
TRANSFORMERS_BARE = KeyTable(
    name="transformers (without text_model.)",
    rules=(
        Rule("text_model.embeddings.", "embeddings."),
        Rule("text_model.encoder.", "encoder."),
        Rule("text_model.final_layer_norm.", "final_layer_norm."),
        Rule("text_projection.", "text_projection."),
    ),
    markers=("embeddings.token_embedding.weight", "final_layer_norm.weight"),
    ignored=_IGNORED,
)


def _open_clip_variables(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "transformer.resblocks."))}


def _layers_of(config: Mapping[str, Any]) -> Variables:
    return {"i": range(config["layers"])}


_LAYER = (
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
    ("self_attn.out_proj.", "attn.out_proj."),
)


def _fused(file: str) -> tuple[Rule, ...]:
    """The rows of the fused projection `file` that are q, k and v."""
    canonical = "text_model.encoder.layers.{i}.self_attn."
    return tuple(
        Rule(f"{canonical}{projection}.{kind}", f"{file}{kind}", part=(index, 3))
        for index, projection in enumerate(("q_proj", "k_proj", "v_proj"))
        for kind in ("weight", "bias")
    )


OPEN_CLIP = KeyTable(
    name="OpenCLIP",
    rules=(
        Rule("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        Rule("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        Rule("text_model.final_layer_norm.", "ln_final."),
        Rule("text_projection.weight", "text_projection", transpose=True),
        *rules_below("text_model.encoder.layers.{i}.", "transformer.resblocks.{i}.", _LAYER),
        *_fused("transformer.resblocks.{i}.attn.in_proj_"),
    ),
    markers=("token_embedding.weight", "transformer.resblocks.0.ln_1.weight"),
    variables=_open_clip_variables,
    variables_of=_layers_of,
    ignored=_IGNORED,
)

# stable-diffusion.cpp (name_conversion.cpp) renames encoders as it finds them: one in OpenCLIP's
# form keeps the fused matrices and the orientation of the text projection, under other names.
SD_CPP = KeyTable(
    name="stable-diffusion.cpp",
    rules=(
        Rule("text_model.", "text_model."),
        Rule("text_projection.weight", "text_model.text_projection"),
    ),
    markers=(*TRANSFORMERS.markers, "text_model.text_projection"),
    ignored=_IGNORED,
)


def _sd_cpp_variables(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "text_model.encoder.layers."))}


SD_CPP_FUSED = KeyTable(
    name="stable-diffusion.cpp (from OpenCLIP)",
    rules=(
        Rule("text_model.", "text_model."),
        Rule("text_projection.weight", "text_model.text_projection", transpose=True),
        *_fused("text_model.encoder.layers.{i}.self_attn.in_proj."),
    ),
    markers=(*TRANSFORMERS.markers, "text_model.encoder.layers.0.self_attn.in_proj.weight"),
    variables=_sd_cpp_variables,
    variables_of=_layers_of,
    ignored=_IGNORED,
)
