"""Names and shapes of full-size published models, from the reference classes on the meta device.

Nothing is downloaded and no memory is taken: a meta tensor has a shape and no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sdengine.formats import DTYPES, TensorEntry, TensorIndex
from tests.renaming import clip_to_hf, clip_to_openclip, unet_to_ldm, vae_to_ldm

State = dict[str, torch.Tensor]

SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD2_UNET = SD15_UNET | {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SDXL_UNET = SD15_UNET | {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER_UNET = SD15_UNET | {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
}
SSD1B_UNET = SDXL_UNET | {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
VEGA_UNET = SDXL_UNET | {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, 1, 2],
}
KOLORS_UNET = SDXL_UNET | {
    "projection_class_embeddings_input_dim": 5632,
    "encoder_hid_dim_type": "text_proj",
    "encoder_hid_dim": 4096,
}
SMALL_SD_UNET = SD15_UNET | {"layers_per_block": 1}
TINY_SD_UNET = SD15_UNET | {
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "mid_block_type": None,
}
SDXS_UNET = TINY_SD_UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
SD15_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
CLIP_L: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}


def unet_state(config: Mapping[str, Any]) -> State:
    """The UNet's parameters (diffusers names)."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return dict(UNet2DConditionModel(**config).state_dict())


@cache
def sd15_unet() -> State:
    return unet_state(SD15_UNET)


@cache
def sd15_vae() -> State:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return dict(AutoencoderKL(**SD15_VAE).state_dict())


@cache
def clip_l() -> State:
    """CLIP ViT-L/14's text encoder, with the `text_model.` prefix."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return clip_to_hf(CLIPTextModel(CLIPTextConfig(**CLIP_L)).state_dict())


def with_prefix(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def bookkeeping() -> State:
    """What the original Stable Diffusion 1 checkpoints hold beside their networks."""
    table = torch.empty(1000, device="meta")
    names = (
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    )
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    return {
        **dict.fromkeys(names, table),
        "logvar": table,
        "model_ema.decay": torch.empty((), device="meta"),
        "model_ema.num_updates": torch.empty((), device="meta"),
        "model_ema.diffusion_modelinput_blocks00weight": torch.empty(320, 4, 3, 3, device="meta"),
        positions: torch.empty(1, 77, device="meta"),
    }


def ldm_file() -> State:
    """Stable Diffusion 1.5 as published in one file."""
    return {
        **with_prefix("model.diffusion_model.", unet_to_ldm(sd15_unet())),
        **with_prefix("first_stage_model.", vae_to_ldm(sd15_vae())),
        **with_prefix("cond_stage_model.transformer.", clip_l()),
        **bookkeeping(),
    }


def old_ldm_file() -> State:
    """The same from before transformers named the text model."""
    old = "cond_stage_model.transformer."
    return {n.replace(f"{old}text_model.", old): tensor for n, tensor in ldm_file().items()}


def diffusers_folder() -> State:
    return {
        **with_prefix("unet/", sd15_unet()),
        **with_prefix("vae/", sd15_vae()),
        **with_prefix("text_encoder/", clip_l()),
    }


def old_diffusers_folder() -> State:
    """A folder from before diffusers renamed the autoencoder's attention."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for new, was in old.items():
            name = name.replace(
                f"vae/{name[4:11]}.mid_block.attentions.0.{new}.",
                f"vae/{name[4:11]}.mid_block.attentions.0.{was}.",
            )
        return name

    return {renamed(name): tensor for name, tensor in diffusers_folder().items()}


def transformers_5_folder() -> State:
    """A folder whose text encoder was saved by transformers 5."""
    return {
        n.replace("text_encoder/text_model.", "text_encoder/"): t
        for n, t in diffusers_folder().items()
    }


def all_in_one_gguf() -> State:
    """stable-diffusion.cpp's and GPUStack's naming, with linear layers kept as 1x1 kernels or back."""
    state = {n: t for n, t in ldm_file().items() if n not in bookkeeping()}
    state["alphas_cumprod"] = torch.empty(1000, device="meta")
    for name, tensor in state.items():
        if ".attn_1." in name and tensor.ndim == 4:
            state[name] = tensor.flatten(1)  # squeezed by some converters
        if name.endswith((".proj_in.weight", ".proj_out.weight")) and tensor.ndim == 2:
            state[name] = tensor[:, :, None, None]
    return state


def new_sd_cpp_gguf() -> State:
    """The text encoder's name in newer stable-diffusion.cpp files."""
    old, new = "cond_stage_model.transformer.", "text_encoders.clip_l.transformer."
    return {name.replace(old, new): tensor for name, tensor in all_in_one_gguf().items()}


def open_clip_file() -> State:
    """A checkpoint whose text encoder has OpenCLIP's names."""
    state = {n: t for n, t in ldm_file().items() if not n.startswith("cond_stage_model.")}
    clip = clip_to_openclip(
        {**clip_l(), "text_projection.weight": torch.empty(768, 768, device="meta")}
    )
    return {**state, **with_prefix("cond_stage_model.model.", clip)}


def index_of(
    state: Mapping[str, Any], format: str = "safetensors", dtype: str = "f16"
) -> TensorIndex:
    """An index of these names and shapes, as if a file held them."""
    tensors, offset = {}, 0
    for name, tensor in state.items():
        shape = tuple(getattr(tensor, "shape", tensor))
        elements = 1
        for size in shape:
            elements *= size
        nbytes = DTYPES[dtype].nbytes(elements)
        tensors[name] = TensorEntry(name, dtype, shape, Path("model.file"), offset, nbytes)
        offset += nbytes
    return TensorIndex(Path("model.file"), format, tensors)  # type: ignore[arg-type]
