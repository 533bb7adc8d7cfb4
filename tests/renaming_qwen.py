"""Names of Qwen-Image's parts in other programs' files, from the published rules; no `sdengine.keys` here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

State = dict[str, Any]

_RESNET = {
    "norm1.gamma": "residual.0.gamma",
    "conv1.weight": "residual.2.weight",
    "conv1.bias": "residual.2.bias",
    "norm2.gamma": "residual.3.gamma",
    "conv2.weight": "residual.6.weight",
    "conv2.bias": "residual.6.bias",
    "conv_shortcut.weight": "shortcut.weight",
    "conv_shortcut.bias": "shortcut.bias",
}
_MIDDLE = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}
_ENDS = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}


def vae_to_wan(state: Mapping[str, Any]) -> State:
    """diffusers' AutoencoderKLQwenImage -> the file that Wan and ComfyUI keep."""
    resnets = 1 + max(int(m[1]) for m in _matches(r"decoder\.up_blocks\.0\.resnets\.(\d+)", state))
    return {_vae_name(name, resnets): value for name, value in state.items()}


def _matches(pattern: str, names: Mapping[str, Any]) -> list[re.Match[str]]:
    return [m for m in (re.match(pattern, name) for name in names) if m]


def _vae_name(name: str, resnets: int) -> str:
    side, _, rest = name.partition(".")
    if side in ("quant_conv", "post_quant_conv"):
        return f"conv{1 if side == 'quant_conv' else 2}.{rest}"
    for ours, theirs in _ENDS.items():
        if rest.startswith(f"{ours}."):
            return f"{side}.{theirs}.{rest[len(ours) + 1 :]}"
    for ours, theirs in _MIDDLE.items():
        if rest.startswith(f"mid_block.{ours}."):
            tail = rest[len(f"mid_block.{ours}.") :]
            return f"{side}.{theirs}.{_RESNET.get(tail, tail)}"
    down = re.match(r"down_blocks\.(\d+)\.(.*)", rest)
    if down:
        return f"{side}.downsamples.{down[1]}.{_RESNET.get(down[2], down[2])}"
    up = re.match(r"up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.*)", rest)
    assert up is not None, name
    place = int(up[1]) * (resnets + 1) + (resnets if up[2] == "upsamplers" else int(up[3]))
    return f"{side}.upsamples.{place}.{_RESNET.get(up[4], up[4])}"


_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def text_to_llama_cpp(state: Mapping[str, Any]) -> State:
    """The words of transformers' Qwen2.5-VL -> llama.cpp's `qwen2vl`."""
    renamed: State = {"output.weight": state["lm_head.weight"]}
    for name, value in state.items():
        if not name.startswith("model.language_model."):
            continue
        rest = name.removeprefix("model.language_model.")
        layer = re.match(r"layers\.(\d+)\.(.*)\.(weight|bias)", rest)
        if layer:
            renamed[f"blk.{layer[1]}.{_LAYER[layer[2]]}.{layer[3]}"] = value
        else:
            ends = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
            renamed[ends[rest]] = value
    return renamed


_VISION = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.proj": "attn_out",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def vision_to_llama_cpp(state: Mapping[str, Any]) -> State:
    """The eyes of transformers' Qwen2.5-VL -> llama.cpp's `mmproj` file of clip."""
    renamed: State = {}
    for name, value in state.items():
        if not name.startswith("model.visual."):
            continue
        rest = name.removeprefix("model.visual.")
        block = re.match(r"blocks\.(\d+)\.(.*)\.(weight|bias)", rest)
        if rest == "patch_embed.proj.weight":
            renamed["v.patch_embd.weight"] = value[:, :, 0]
            renamed["v.patch_embd.weight.1"] = value[:, :, 1]
        elif block and block[2] == "attn.qkv":
            for part, values in zip("qkv", value.chunk(3), strict=True):
                renamed[f"v.blk.{block[1]}.attn_{part}.{block[3]}"] = values
        elif block:
            renamed[f"v.blk.{block[1]}.{_VISION[block[2]]}.{block[3]}"] = value
        else:
            ends = {"merger.ln_q": "v.post_ln", "merger.mlp.0": "mm.0", "merger.mlp.2": "mm.2"}
            stem, _, kind = rest.rpartition(".")
            renamed[f"{ends[stem]}.{kind}"] = value
    return renamed
