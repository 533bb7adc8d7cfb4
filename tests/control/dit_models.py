"""Tiny random ControlNets of diffusion transformers, for the models of tests.dit_models and tests.parity.dit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sdengine
from tests import dit_models
from tests.models import randomise
from tests.renaming_dit import flux_to_bfl

State = dict[str, torch.Tensor]

SD3: dict[str, Any] = {**dit_models._SD3, "num_layers": 1}
FLUX: dict[str, Any] = {**dit_models._FLUX, "in_channels": 64, "guidance_embeds": True}
XLABS: dict[str, Any] = {
    **FLUX,
    "patch_size": 2,
    "num_layers": 2,
    "num_single_layers": 0,
    "conditioning_embedding_channels": 16,
}
LARGE: dict[str, Any] = {  # Stability AI's for 3.5 Large
    **SD3,
    "num_layers": 2,
    "joint_attention_dim": None,
    "caption_projection_dim": 96,
    "use_pos_embed": False,
    "pos_embed_type": None,
    "pos_embed_max_size": None,
    "qk_norm": None,
    "force_zeros_for_pooled_projection": False,
}


def build(config: Mapping[str, Any], seed: int = 0, **more: Any) -> Any:
    """The reference network, every parameter random; its kind is told by the config."""
    from diffusers import FluxControlNetModel, SD3ControlNetModel

    torch.manual_seed(seed)
    of_flux = "axes_dims_rope" in config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of diffusers about its own parts
        cls = FluxControlNetModel if of_flux else SD3ControlNetModel
        given = {**config, **more}
        mask = given.pop("mask", 0) if of_flux else 0
        net: Any = cls(**given).eval()
    if mask:  # of alimama's network, which diffusers has no option for
        width = net.x_embedder.out_features
        net.controlnet_x_embedder = torch.nn.Linear(given["in_channels"] + 4 * mask, width)
    randomise(net, 110 + seed)
    for buffer in net.buffers():
        buffer.add_(torch.randn(buffer.shape) * 0.3)
    return net


def to_stability(state: Mapping[str, torch.Tensor], control_type: int | None = None) -> State:
    """The names of stabilityai/stable-diffusion-3.5-controlnets."""
    pairs = (
        ("attn.to_out.0.", "attn.proj."),
        ("norm1.linear.", "adaLN_modulation.1."),
        ("ff.net.0.proj.", "mlp.fc1."),
        ("ff.net.2.", "mlp.fc2."),
    )
    result: State = {}
    for name, tensor in state.items():
        if ".attn.to_q." in name:
            parts = [state[name.replace("to_q", f"to_{x}")] for x in "qkv"]
            result[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".attn.to_k." not in name and ".attn.to_v." not in name:
            for ours, theirs in pairs:
                name = name.replace(ours, theirs)
            result[name] = tensor
    if control_type is not None:
        result["control_type"] = torch.tensor([float(control_type)])
    return result


def to_xlabs(state: Mapping[str, torch.Tensor]) -> State:
    """The names of XLabs-AI/x-flux: BFL's, and a Sequential of convolutions with SiLU between them."""
    own = ("controlnet_", "input_hint_block.")
    width = state["x_embedder.bias"].shape[0]
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(own)}
    # The renaming of a whole denoiser; what a control network lacks is put in and taken out again.
    block = {"single_transformer_blocks.0.norm.linear.bias": torch.zeros(1)}
    for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"):
        block |= {
            f"single_transformer_blocks.0.{part}.{k}": torch.zeros(1) for k in ("weight", "bias")
        }
    block |= {f"single_transformer_blocks.0.attn.norm_{x}.weight": torch.zeros(1) for x in "qk"}
    whole = {**rest, **block, "norm_out.linear.weight": torch.zeros(2 * width, width)}
    whole["norm_out.linear.bias"] = torch.zeros(2 * width)
    lacking = ("single_blocks.", "final_layer.")
    result = {n: t for n, t in flux_to_bfl(whole).items() if not n.startswith(lacking)}
    blocks = len({n.split(".")[2] for n in state if n.startswith("input_hint_block.blocks.")})
    for name, tensor in state.items():
        head, _, kind = name.rpartition(".")
        if name.startswith("controlnet_x_embedder."):
            result[f"pos_embed_input.{kind}"] = tensor
        elif name.startswith("controlnet_blocks."):
            result[name] = tensor
        elif head == "input_hint_block.conv_in":
            result[f"input_hint_block.0.{kind}"] = tensor
        elif head == "input_hint_block.conv_out":
            result[f"input_hint_block.{2 * (blocks + 1)}.{kind}"] = tensor
        elif name.startswith("input_hint_block."):
            result[f"input_hint_block.{2 * (int(head.split('.')[-1]) + 1)}.{kind}"] = tensor
    return result


# ------------------------------ files, and what is made with them
PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
SIZE = {"width": 64, "height": 96}
SEED, STEPS = 7, 4

NETS: dict[str, dict[str, Any]] = {
    "sd3": SD3,
    "sd3-3": {**SD3, "num_layers": 3, "qk_norm": None},
    "sd3-inpaint": {**SD3, "extra_conditioning_channels": 1},
    "large": LARGE,
    "large-canny": LARGE,
    "flux": FLUX,
    "flux-double": {**FLUX, "num_single_layers": 0, "guidance_embeds": False},
    "flux-inpaint": {**FLUX, "mask": 1},
    "flux-union": {**FLUX, "num_mode": 10},
    "xlabs": XLABS,
}


class Made:
    """Tiny models and ControlNets, each written once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def sd3(self) -> Path:
        return dit_models.tiny_sd3_folder(self.root / "sd3")

    @cached_property
    def flux(self) -> Path:
        return dit_models.tiny_flux_folder(self.root / "flux")

    @cached_property
    def schnell(self) -> Path:
        return dit_models.tiny_flux_folder(self.root / "schnell", guidance=False)

    def __call__(self, name: str) -> Path:
        path = self.root / "nets" / name
        if not path.exists():
            build(NETS[name], list(NETS).index(name)).save_pretrained(path)
        return path

    def reference(self, *names: str) -> Any:
        nets = [build(NETS[name], list(NETS).index(name)) for name in names]
        return nets if len(nets) > 1 else nets[0]


def generate(pipe: sdengine.Pipeline, **options: Any) -> np.ndarray:
    negative = None if "true_cfg_scale" not in options and pipe.model.reads_guidance else NEGATIVE
    common = {"steps": STEPS, "seed": SEED, **SIZE, **options}
    return pipe.generate(PROMPT, negative, **common).latents
