"""Tiny random control networks beside the tiny models of tests.unet_models, in the layouts that users have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.models import randomise
from tests.renaming import unet_to_ldm
from tests.unet_models import TINY, State

# What a UNet's config has and a ControlNet's has not.
_NOT_SHARED = ("sample_size", "out_channels", "up_block_types")


def controlnet_config(name: str, **more: Any) -> dict[str, Any]:
    """The config of a ControlNet for a tiny model."""
    shared = {k: v for k, v in TINY[name].unet.items() if k not in _NOT_SHARED}
    return {**shared, **more}


def build_controlnet(name: str, seed: int = 0, **more: Any) -> torch.nn.Module:
    """The reference ControlNet of a tiny model; every parameter is random, the zero convolutions too."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    net = ControlNetModel(**controlnet_config(name, **more)).eval()
    randomise(net, 50 + seed)
    return net


def controlnet_folder(path: Path, name: str, seed: int = 0, **more: Any) -> Path:
    """Write it as a diffusers folder of its own; return its path."""
    build_controlnet(name, seed, **more).save_pretrained(path)
    return path


def controlnet_to_ldm(state: Mapping[str, torch.Tensor]) -> State:
    """The names of lllyasviel/ControlNet, without the prefix ``control_model.``."""
    ends = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")
    result = unet_to_ldm({n: t for n, t in state.items() if not n.startswith(ends)})
    blocks = len({n.split(".")[2] for n in state if n.startswith(ends[0] + "blocks.")})
    for name, tensor in state.items():
        if not name.startswith(ends):
            continue
        tail = name.rsplit(".", 1)[1]
        number = [int(n) for n in re.findall(r"\.(\d+)\.", name)]
        if name.startswith(ends[0] + "conv_in"):
            renamed = f"input_hint_block.0.{tail}"
        elif name.startswith(ends[0] + "conv_out"):
            renamed = f"input_hint_block.{2 * (blocks + 1)}.{tail}"
        elif name.startswith(ends[0]):
            renamed = f"input_hint_block.{2 * (number[0] + 1)}.{tail}"
        elif name.startswith(ends[1]):
            renamed = f"zero_convs.{number[0]}.0.{tail}"
        else:
            renamed = f"middle_block_out.0.{tail}"
        result[renamed] = tensor
    return result


# ------------------------------ T2I adapters
def build_adapter(
    channels: tuple[int, ...], seed: int = 0, kind: str = "full_adapter", colours: int = 3
) -> torch.nn.Module:
    """A reference T2I adapter, every parameter random."""
    from diffusers import T2IAdapter

    torch.manual_seed(seed)
    factor = 16 if kind == "full_adapter_xl" else 8
    adapter = T2IAdapter(colours, list(channels), 2, factor, kind).eval()
    randomise(adapter, 80 + seed)
    return adapter


def adapter_to_tencent(state: Mapping[str, torch.Tensor]) -> State:
    """The names of TencentARC/T2I-Adapter; the blocks of full adapters are numbered through."""
    light = "adapter.body.0.out_conv.weight" in state
    result = {}
    for name, tensor in state.items():
        renamed = name.removeprefix("adapter.")
        if light:
            renamed = renamed.replace(".resnets.", ".body.")
        else:
            renamed = re.sub(
                r"body\.(\d+)\.resnets\.(\d+)\.",
                lambda m: f"body.{2 * int(m[1]) + int(m[2])}.",
                renamed,
            )
            renamed = re.sub(
                r"body\.(\d+)\.in_conv\.", lambda m: f"body.{2 * int(m[1])}.in_conv.", renamed
            )
        result[renamed] = tensor
    return result


# ------------------------------ IP-Adapters
VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 40,
    "hidden_act": "gelu",
}


def build_vision(seed: int = 0) -> torch.nn.Module:
    """A reference CLIP vision encoder, every parameter random."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).eval()
    randomise(encoder, 90 + seed)
    return encoder


def ip_adapter_state(unet: torch.nn.Module, plus: bool, seed: int = 0) -> dict[str, State]:
    """A random IP-Adapter for a UNet, in the two parts of tencent-ailab/IP-Adapter's files."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    width = unet.config.cross_attention_dim
    attention, key = {}, 1
    for name in unet.attn_processors:
        if "attn2" not in name:
            continue
        module = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k_ip", "to_v_ip"):
            attention[f"{key}.{part}.weight"] = random(module.inner_dim, width)
        key += 2
    if not plus:
        projection = {
            "proj.weight": random(4 * width, VISION["projection_dim"]),
            "proj.bias": random(4 * width),
            "norm.weight": 1 + random(width),
            "norm.bias": random(width),
        }
        return {"image_proj": projection, "ip_adapter": attention}
    inner, seen = 128, VISION["hidden_size"]  # two heads of 64
    projection = {
        "latents": random(1, 6, inner),
        "proj_in.weight": random(inner, seen),
        "proj_in.bias": random(inner),
        "proj_out.weight": random(width, inner),
        "proj_out.bias": random(width),
        "norm_out.weight": 1 + random(width),
        "norm_out.bias": random(width),
    }
    for i in range(4):  # diffusers' converter knows four layers
        for norm in ("0.norm1", "0.norm2", "1.0"):
            projection[f"layers.{i}.{norm}.weight"] = 1 + random(inner)
            projection[f"layers.{i}.{norm}.bias"] = random(inner)
        for linear, rows, columns in (
            ("0.to_q", inner, inner),
            ("0.to_kv", 2 * inner, inner),
            ("0.to_out", inner, inner),
            ("1.1", 4 * inner, inner),
            ("1.3", inner, 4 * inner),
        ):
            projection[f"layers.{i}.{linear}.weight"] = random(rows, columns)
    return {"image_proj": projection, "ip_adapter": attention}


def flat(state: Mapping[str, State]) -> State:
    """The names of such an adapter in a safetensors file."""
    return {f"{part}.{n}": t for part, tensors in state.items() for n, t in tensors.items()}


# ------------------------------ unions
def build_union(name: str, seed: int = 0, tasks: int = 6) -> torch.nn.Module:
    """The reference ControlNet-Union of a tiny model, every parameter random."""
    from diffusers import ControlNetUnionModel

    torch.manual_seed(seed)
    width = TINY[name].unet["block_out_channels"][0]
    net = ControlNetUnionModel(
        **controlnet_config(name),
        conditioning_embedding_out_channels=(16, 16, 32, 48),
        num_control_type=tasks,
        num_trans_channel=width,
        num_proj_channel=width,
        num_trans_layer=2,
    ).eval()
    randomise(net, 70 + seed)
    return net
