"""The parameter names of published layouts, written from the published rules.

Independent of `sdengine.keys` on purpose: `tests/keys/test_inventories.py` checks these against diffusers' own
importers, and `sdengine.keys` against these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

RESNET_TO_LDM = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
UNET_TOP_TO_LDM = (
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("time_embedding.cond_proj", "time_embed.cond_proj"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("encoder_hid_proj", "encoder_hid_proj"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
)
VAE_RENAMES = (
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    ("mid_block.attentions.0.", "mid.attn_1."),
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
)
VAE_ATTENTION_TO_LDM = (
    ("group_norm.", "norm."),
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "proj_out."),
)


def _resnet_to_ldm(tail: str) -> str:
    for ours, theirs in RESNET_TO_LDM:
        if tail.startswith(ours + "."):
            return theirs + tail[len(ours) :]
    raise AssertionError(tail)


def unet_name_to_ldm(name: str, levels: int, layers: int, with_attention: Iterable[int]) -> str:
    """The LDM name of a diffusers UNet parameter. `with_attention`: up block indices that have
    attention.
    """
    for ours, theirs in UNET_TOP_TO_LDM:
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    part, rest = name.split(".", 1)
    if part == "mid_block":
        kind, index, tail = rest.split(".", 2)
        if kind == "attentions":
            return f"middle_block.1.{tail}"
        return f"middle_block.{2 * int(index)}.{_resnet_to_ldm(tail)}"
    level, kind, index, tail = rest.split(".", 3)
    i, j = int(level), int(index)
    if part == "down_blocks":
        block = f"input_blocks.{(layers + 1) * i + j + 1}"
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (i + 1)}.0.op.{tail.removeprefix('conv.')}"
    else:
        block = f"output_blocks.{(layers + 1) * i + j}"
        if kind == "upsamplers":
            slot = 2 if i in set(with_attention) else 1
            return f"output_blocks.{(layers + 1) * i + layers}.{slot}.{tail}"
    return f"{block}.1.{tail}" if kind == "attentions" else f"{block}.0.{_resnet_to_ldm(tail)}"


def vae_name_to_ldm(name: str, levels: int) -> str:
    """The LDM name of a diffusers AutoencoderKL parameter."""
    for ours, theirs in VAE_RENAMES:
        name = name.replace(ours, theirs)
    if ".attn_1." in name:
        for ours, theirs in VAE_ATTENTION_TO_LDM:
            name = name.replace(ours, theirs)
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)

    def up(match: re.Match[str]) -> str:
        level = levels - 1 - int(match[1])
        return (
            f"up.{level}.upsample" if match[2] == "upsamplers.0" else f"up.{level}.block.{match[3]}"
        )

    return re.sub(r"up_blocks\.(\d+)\.(upsamplers\.0|resnets\.(\d+))", up, name)


def unet_to_ldm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A diffusers UNet state dict under LDM names (no prefix)."""
    levels = 1 + max(int(n.split(".")[1]) for n in state if n.startswith("down_blocks."))
    layers = 1 + max(int(n.split(".")[3]) for n in state if n.startswith("down_blocks.0.resnets."))
    attention = {int(n.split(".")[1]) for n in state if re.match(r"up_blocks\.\d+\.attentions", n)}
    return {unet_name_to_ldm(n, levels, layers, attention): t for n, t in state.items()}


def vae_to_ldm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A diffusers AutoencoderKL state dict under LDM names (no prefix); attention becomes 1x1
    convolutions.
    """
    levels = 1 + max(int(n.split(".")[2]) for n in state if n.startswith("encoder.down_blocks."))
    result = {}
    for name, tensor in state.items():
        renamed = vae_name_to_ldm(name, levels)
        is_attention = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", renamed)
        result[renamed] = tensor[:, :, None, None] if is_attention else tensor
    return result


def clip_to_hf(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIPTextModel state dict with the `text_model.` prefix that all published files have."""
    names = {
        n: n if n.startswith(("text_model.", "text_projection.")) else f"text_model.{n}"
        for n in state
    }
    return {names[n]: t for n, t in state.items() if not n.endswith("position_ids")}


def clip_to_openclip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIP text state dict (HF names) under OpenCLIP names: fused q/k/v, transposed text
    projection.
    """
    hf = clip_to_hf(state)
    result = {
        "token_embedding.weight": hf["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": hf["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": hf["text_model.final_layer_norm.weight"],
        "ln_final.bias": hf["text_model.final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    if "text_projection.weight" in hf:
        result["text_projection"] = hf["text_projection.weight"].T.contiguous()
    renames = (
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn.out_proj", "attn.out_proj"),
    )
    layers = 1 + max(int(n.split(".")[3]) for n in hf if n.startswith("text_model.encoder.layers."))
    for i in range(layers):
        source, target = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            fused = [hf[f"{source}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            result[f"{target}attn.in_proj_{kind}"] = torch.cat(fused)
            for ours, theirs in renames:
                result[f"{target}{theirs}.{kind}"] = hf[f"{source}{ours}.{kind}"]
    return result
