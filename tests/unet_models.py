"""Tiny random members of every UNet family, and the layouts in which their relatives are published."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file

from tests.models import (
    SCHEDULER_CONFIG,
    TRAINING_TEXT,
    VAE_CONFIG,
    _add_gguf_tensor,
    _finish_gguf,
    component_state_dict,
    randomise,
    write_clip_tokenizer,
)
from tests.renaming import clip_to_hf, clip_to_openclip, unet_to_ldm, vae_to_ldm
from tests.text_models import glm

State = dict[str, torch.Tensor]

# Widths are multiples of 64, the width of an attention head where no config.json tells it.
CLIP_L = {"hidden_size": 64, "num_attention_heads": 1, "hidden_act": "quick_gelu"}
CLIP_H = {"hidden_size": 1024, "num_attention_heads": 16, "hidden_act": "gelu"}
CLIP_G = {"hidden_size": 128, "num_attention_heads": 2, "hidden_act": "gelu"}
REFINER_G = {"hidden_size": 1280, "num_attention_heads": 20, "hidden_act": "gelu"}
CLIP = {"intermediate_size": 96, "num_hidden_layers": 3, "max_position_embeddings": 77}

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}


def unet_config(downs: str, widths: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Levels by letter: "c" has attention, "p" has none."""
    names = {"c": CROSS, "p": PLAIN}
    return {
        **UNET,
        "block_out_channels": widths,
        "down_block_types": tuple(names[letter] for letter in downs),
        "up_block_types": tuple(names[letter].replace("Down", "Up") for letter in reversed(downs)),
        **more,
    }


SD1_UNET = {"cross_attention_dim": 64, "attention_head_dim": 8}
SD2_UNET = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (1, 2),
    "use_linear_projection": True,
}
SDXL_UNET = {
    "cross_attention_dim": 64 + 128,
    "attention_head_dim": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 128 + 6 * 256,
    "transformer_layers_per_block": (1, 2),
}
_THREE = {"attention_head_dim": (1, 2, 2)}
_PRUNED: dict[str, Any] = {"layers_per_block": 1, "mid_block_type": None}
_WIDTHS2, _WIDTHS3 = (64, 128), (64, 128, 128)


@dataclass(frozen=True)
class Tiny:
    """A member of a family: the config of its UNet, and of what is around it."""

    unet: Mapping[str, Any]
    encoders: Mapping[str, Mapping[str, Any]]
    """Component name -> what its CLIP config has of its own."""
    projected: tuple[str, ...] = ()
    """Encoders with a text projection."""
    pipeline: str = "StableDiffusionPipeline"
    scale: float = 0.18215
    scheduler: Mapping[str, Any] = field(default_factory=dict)


def _sd1(downs: str = "cp", widths: tuple[int, ...] = _WIDTHS2, **more: Any) -> Tiny:
    config = unet_config(downs, widths, **{**SD1_UNET, **more})
    return Tiny(config, {"text_encoder": CLIP_L})


def _sd2(downs: str = "cp", widths: tuple[int, ...] = _WIDTHS2, **more: Any) -> Tiny:
    config = unet_config(downs, widths, **{**SD2_UNET, **more})
    return Tiny(config, {"text_encoder": CLIP_H})


def _sdxl(downs: str = "pc", widths: tuple[int, ...] = _WIDTHS2, **more: Any) -> Tiny:
    return Tiny(
        unet_config(downs, widths, **{**SDXL_UNET, **more}),
        {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
        projected=("text_encoder_2",),
        pipeline="StableDiffusionXLPipeline",
        scale=0.13025,
    )


_REFINER = Tiny(
    unet_config(
        "pcp",
        _WIDTHS3,
        **{
            **SDXL_UNET,
            **_THREE,
            "cross_attention_dim": 1280,
            "projection_class_embeddings_input_dim": 1280 + 5 * 256,
            "transformer_layers_per_block": (1, 2, 1),
        },
    ),
    {"text_encoder_2": REFINER_G},
    projected=("text_encoder_2",),
    pipeline="StableDiffusionXLImg2ImgPipeline",
    scale=0.13025,
)

TINY: dict[str, Tiny] = {
    "sd1": _sd1(),
    "sd1-inpaint": _sd1(in_channels=9),
    "sd1-pix2pix": _sd1(in_channels=8),
    "sd1-lcm": _sd1(time_cond_proj_dim=256),
    "small-sd": _sd1("ccp", _WIDTHS3, layers_per_block=1),
    "tiny-sd": _sd1("ccc", _WIDTHS3, **_PRUNED),
    "sdxs": _sd1("pcc", _WIDTHS3, **_PRUNED),
    "sd2": _sd2(),
    "sd2-inpaint": _sd2(in_channels=9),
    "sd2-depth": _sd2(in_channels=5),
    "sd2-tiny": _sd2("ccc", _WIDTHS3, **_PRUNED, **_THREE),
    "sdxs-0.9": _sd2(
        "ccc", _WIDTHS3, **_PRUNED, **_THREE, only_cross_attention=(True, False, False)
    ),
    "sdxl": _sdxl(),
    "sdxl-inpaint": _sdxl(in_channels=9),
    "sdxl-pix2pix": _sdxl(in_channels=8),
    "sdxl-lcm": _sdxl(time_cond_proj_dim=256),
    "ssd-1b": _sdxl(
        "pcc",
        _WIDTHS3,
        **_THREE,
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[1, [2, 2], [4, 4]],
        reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
    ),
    "vega": _sdxl(
        "pcc",
        _WIDTHS3,
        **_THREE,
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[1, 1, 2],
    ),
    "refiner": _REFINER,
    "kolors": _sdxl(
        encoder_hid_dim=96,
        encoder_hid_dim_type="text_proj",
        projection_class_embeddings_input_dim=96 + 6 * 256,
    ),
}


# ------------------------------ building
def build_unet(name: str, seed: int = 0) -> torch.nn.Module:
    """The reference UNet of a member, every parameter randomised."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**TINY[name].unet).eval()
    randomise(unet, seed)
    return unet


def tiny_folder(path: str | Path, name: str, seed: int = 0) -> Path:
    """Write a member as a diffusers folder, float32; return its path."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    path, member = Path(path), TINY[name]
    index: dict[str, Any] = {
        "_class_name": member.pipeline,
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if "XL" in member.pipeline:
        index["force_zeros_for_empty_prompt"] = name != "refiner"
    for number, (component, own) in enumerate(member.encoders.items()):
        tokenizer = component.replace("text_encoder", "tokenizer")
        words = write_clip_tokenizer(path / tokenizer)
        config = CLIPTextConfig(
            vocab_size=words,
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            pad_token_id=0 if own["hidden_act"] == "gelu" else words - 1,
            projection_dim=own["hidden_size"],
            **CLIP,
            **own,
        )
        projected = component in member.projected
        torch.manual_seed(seed + number)
        encoder = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
        # Wide encoders would drown their input in as much noise per value.
        randomise(encoder, seed * 7 + number, 0.4 / own["hidden_size"] ** 0.5)
        encoder.save_pretrained(path / component)
        index[component] = ["transformers", type(encoder).__name__]
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
        pad_with(path / tokenizer, "!" if own["hidden_act"] == "gelu" else "<|endoftext|>")
    build_unet(name, seed).save_pretrained(path / "unet")
    torch.manual_seed(seed)
    vae = AutoencoderKL(**{**VAE_CONFIG, "scaling_factor": member.scale})
    randomise(vae, seed + 5)
    vae.save_pretrained(path / "vae")
    config = {k: v for k, v in SCHEDULER_CONFIG.items() if k.startswith(("beta", "num"))}
    EulerDiscreteScheduler(
        **{**config, "timestep_spacing": "leading", "steps_offset": 1, **member.scheduler}
    ).save_pretrained(path / "scheduler")
    (path / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return path


def pad_with(tokenizer: Path, token: str) -> None:
    """OpenCLIP's tokenizers pad with the token of id 0, "!"."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = json.loads((tokenizer / name).read_text("utf-8"))
        (tokenizer / name).write_text(json.dumps({**values, "pad_token": token}), "utf-8")


def tiny_kolors_folder(path: str | Path, seed: int = 0) -> Path:
    """Kolors: its denoiser, and a tiny ChatGLM3 with a SentencePiece vocabulary."""
    path = tiny_folder(path, "kolors", seed)
    for component in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(path / component)
    width = TINY["kolors"].unet["encoder_hid_dim"]
    encoder = glm(
        seed, hidden_size=width, kv_channels=width // 4, seq_length=512, padded_vocab_size=800
    )
    encoder.save_pretrained(path / "text_encoder")
    (path / "tokenizer").mkdir()
    words = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT * 20),
        model_writer=words,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    (path / "tokenizer" / "tokenizer.model").write_bytes(words.getvalue())
    index = json.loads((path / "model_index.json").read_text("utf-8"))
    index = {n: v for n, v in index.items() if not n.endswith("_2")}
    index |= {"_class_name": "KolorsPipeline", "force_zeros_for_empty_prompt": False}
    index["text_encoder"] = ["kolors", "ChatGLMModel"]
    index["tokenizer"] = ["kolors", "ChatGLMTokenizer"]
    (path / "model_index.json").write_text(json.dumps(index), "utf-8")
    return path


# ------------------------------ layouts
def encoder_state(folder: Path, component: str) -> State:
    """A text encoder's tensors, with `text_model.` before them."""
    return clip_to_hf(component_state_dict(folder, component))


def _below(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _networks(folder: Path) -> State:
    return {
        **_below("model.diffusion_model.", unet_to_ldm(component_state_dict(folder, "unet"))),
        **_below("first_stage_model.", vae_to_ldm(component_state_dict(folder, "vae"))),
    }


def single_file(folder: Path, name: str) -> State:
    """The names of the reference code's checkpoints, which ComfyUI and A1111 also write."""
    state = _networks(folder)
    for component in TINY[name].encoders:
        clip = encoder_state(folder, component)
        if name == "refiner":
            state |= _below("conditioner.embedders.0.model.", clip_to_openclip(clip))
        elif component == "text_encoder_2":
            state |= _below("conditioner.embedders.1.model.", clip_to_openclip(clip))
        elif "text_encoder_2" in TINY[name].encoders:
            state |= _below("conditioner.embedders.0.transformer.", clip)
        elif TINY[name].encoders[component] is CLIP_H:
            state |= _below("cond_stage_model.model.", clip_to_openclip(clip))
        else:
            state |= _below("cond_stage_model.transformer.", clip)
    return {n: t.contiguous() for n, t in state.items()}


def sgm_file(folder: Path, name: str) -> State:
    """Stable Diffusion 2 as generative-models names it."""
    old, new = "cond_stage_model.model.", "conditioner.embedders.0.model."
    return {n.replace(old, new): t for n, t in single_file(folder, name).items()}


def sd_cpp_names(folder: Path, name: str, prefixes: Mapping[str, str]) -> State:
    """stable-diffusion.cpp's names for encoders that it found in transformers' form."""
    state = _networks(folder)
    for component, prefix in prefixes.items():
        if component not in TINY[name].encoders:
            continue
        for key, tensor in encoder_state(folder, component).items():
            renamed = key.replace("text_projection.weight", "text_model.text_projection")
            state[prefix + renamed] = tensor
    for key, tensor in state.items():
        if key.endswith((".proj_in.weight", ".proj_out.weight")) and tensor.ndim == 2:
            state[key] = tensor[:, :, None, None]
    return state


OLD_SD_CPP = {
    "text_encoder": "cond_stage_model.transformer.",
    "text_encoder_2": "cond_stage_model.1.transformer.",
}
NEW_SD_CPP = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
}


def write_safetensors(state: Mapping[str, torch.Tensor], path: Path) -> Path:
    save_file({n: t.contiguous().clone() for n, t in state.items()}, path)
    return path


def write_gguf(state: Mapping[str, torch.Tensor], path: Path, weight_type: str = "f32") -> Path:
    writer = gguf.GGUFWriter(str(path), "sd")
    for name, tensor in state.items():
        _add_gguf_tensor(writer, name, tensor, weight_type)
    _finish_gguf(writer)
    return path


def dequantized(path: Path, target: Path) -> Path:
    """The values that a GGUF holds, in float32, by the reference package."""
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = [int(size) for size in reversed(tensor.shape)]
        state[tensor.name] = torch.tensor(np.asarray(values, np.float32)).reshape(shape)
    return write_safetensors(state, target)
