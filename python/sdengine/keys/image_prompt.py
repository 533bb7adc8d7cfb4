"""Names of image prompts: IP-Adapters (tencent-ailab/IP-Adapter; canonical are diffusers'), Redux, vision encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdengine.keys.engine import KeyTable, Rule, count_at
from sdengine.keys.templates import Variables

PROJECTION = KeyTable(
    name="IP-Adapter",
    rules=(Rule("image_embeds.", "proj."), Rule("norm.", "norm.")),
    markers=("proj.weight", "norm.weight"),
)


def _layers(names: Collection[str]) -> Variables:
    return {"i": range(count_at(names, "layers."))}


RESAMPLER = KeyTable(
    name="IP-Adapter plus",
    rules=(
        Rule("latents", "latents"),
        Rule("proj_in.", "proj_in."),
        Rule("proj_out.", "proj_out."),
        Rule("norm_out.", "norm_out."),
        Rule("layers.{i}.ln0.", "layers.{i}.0.norm1."),
        Rule("layers.{i}.ln1.", "layers.{i}.0.norm2."),
        Rule("layers.{i}.attn.to_q.", "layers.{i}.0.to_q."),
        Rule("layers.{i}.attn.to_k.weight", "layers.{i}.0.to_kv.weight", part=(0, 2)),
        Rule("layers.{i}.attn.to_v.weight", "layers.{i}.0.to_kv.weight", part=(1, 2)),
        Rule("layers.{i}.attn.to_out.0.", "layers.{i}.0.to_out."),
        Rule("layers.{i}.ff.0.", "layers.{i}.1.0."),
        Rule("layers.{i}.ff.1.net.0.proj.", "layers.{i}.1.1."),
        Rule("layers.{i}.ff.1.net.2.", "layers.{i}.1.3."),
    ),
    markers=("latents", "proj_in.weight", "layers.0.0.to_kv.weight"),
    variables=_layers,
    variables_of=lambda config: {"i": range(config["layers"])},
)

REDUX = KeyTable(
    name="Redux",
    rules=(Rule("", ""),),
    markers=("redux_up.weight", "redux_down.weight"),
)

VISION = KeyTable(
    name="transformers",
    rules=(
        Rule("vision_model.", "vision_model."),
        Rule("visual_projection.", "visual_projection."),
    ),
    markers=("vision_model.embeddings.class_embedding", "visual_projection.weight"),
    ignored=("text_model.*", "text_projection.*", "logit_scale", "*position_ids"),
)


def _siglip(name: str, prefix: str) -> KeyTable:
    return KeyTable(
        name=name,
        rules=(Rule("vision_model.", prefix),),
        markers=(f"{prefix}embeddings.patch_embedding.bias", f"{prefix}post_layernorm.weight"),
        ignored=(f"{prefix}head.*", "text_model.*", "logit_*", "*position_ids"),
    )


SIGLIP = _siglip("transformers", "vision_model.")
SIGLIP_BARE = _siglip("transformers 5", "")


def attention_table(config: Mapping[str, Any]) -> KeyTable:
    """The names of an IP-Adapter's projections in a UNet of this config.

    The attentions are counted through, the way down, the way up and then the middle; cross-attentions have the odd
    numbers.
    """
    names = [*_blocks("down", config), *_blocks("up", config)]
    depth = config["mid_transformer_layers"] if config["mid_block"] == "cross_attention" else 0
    names += [f"mid_block.attentions.0.transformer_blocks.{k}" for k in range(depth)]
    rules = tuple(
        Rule(f"{name}.attn2.{part}.", f"{2 * n + 1}.{part}.")
        for n, name in enumerate(names)
        for part in ("to_k_ip", "to_v_ip")
    )
    return KeyTable(name="IP-Adapter", rules=rules, markers=("1.to_k_ip.weight",))


def _blocks(way: str, config: Mapping[str, Any]) -> list[str]:
    return [
        f"{way}_blocks.{i}.attentions.{j}.transformer_blocks.{k}"
        for i, level in enumerate(config[f"{way}_transformer_layers"])
        for j, depth in enumerate(level)
        for k in range(depth)
    ]
