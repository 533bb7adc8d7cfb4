"""Tiny random models for tests, in every layout that users have.

`tiny_sd1_folder` builds a Stable Diffusion 1 pipeline of about a million parameters with diffusers
and transformers, every parameter re-randomised (constant biases and norm weights would hide
mistakes), and saves it as a diffusers folder. The `write_*` functions re-write such a folder as the
other layouts.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.renaming import clip_to_hf, unet_to_ldm, vae_to_ldm

TRAINING_TEXT = (
    "a red circle on a blue background",
    "a photograph of an astronaut riding a horse, highly detailed",
    "two green squares and one yellow triangle, simple drawing",
    "the quick brown fox jumps over the lazy dog; 0123456789",
    "an oil painting of a city at night (masterpiece), blurry, low quality",
)

CLIP_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 128,
}
UNET_CONFIG = {
    "sample_size": 8,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": CLIP_CONFIG["hidden_size"],
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
VAE_CONFIG = {
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 64,
    "scaling_factor": 0.18215,
}
SCHEDULER_CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


# ------------------------------ building
def randomise(module: torch.nn.Module, seed: int, spread: float = 0.05) -> None:
    """Add normal noise of standard deviation `spread` to every parameter, in a fixed order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(noise.to(parameter.dtype) * spread)


def byte_symbols() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def write_clip_tokenizer(folder: Path, merges: int = 120) -> int:
    """Train a small CLIP byte-pair vocabulary, write it as a CLIPTokenizer folder, return the
    vocabulary size.

    Laid out as OpenAI's: 256 byte symbols, the same with the end-of-word mark, one token per merge,
    start, end.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    symbols = byte_symbols()
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(symbols) * 2 + merges,
        initial_alphabet=symbols,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    trained = json.loads(tokenizer.to_str())["model"]["merges"]
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in trained][:merges]

    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in pairs)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({word: index for index, word in enumerate(words)}, ensure_ascii=False), "utf-8"
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    config = {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2), "utf-8")
    return len(words)


def tiny_sd1_folder(
    path: str | Path, seed: int = 0, in_channels: int = 4, linear_projection: bool = False
) -> Path:
    """Write a tiny float32 Stable Diffusion 1 pipeline as a diffusers folder; return its path."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    path = Path(path)
    vocabulary = write_clip_tokenizer(path / "tokenizer")
    torch.manual_seed(seed)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
            **CLIP_CONFIG,
        )
    )
    unet = UNet2DConditionModel(
        in_channels=in_channels, use_linear_projection=linear_projection, **UNET_CONFIG
    )
    vae = AutoencoderKL(**VAE_CONFIG)
    for index, module in enumerate((text_encoder, unet, vae)):
        randomise(module, seed * 3 + index)
    text_encoder.save_pretrained(path / "text_encoder")
    unet.save_pretrained(path / "unet")
    vae.save_pretrained(path / "vae")
    PNDMScheduler(**SCHEDULER_CONFIG).save_pretrained(path / "scheduler")
    _write_model_index(path, in_channels)
    return path


def _write_model_index(path: Path, in_channels: int) -> None:
    pipelines = {
        4: "StableDiffusionPipeline",
        8: "StableDiffusionInstructPix2PixPipeline",
        9: "StableDiffusionInpaintPipeline",
    }
    index = {
        "_class_name": pipelines[in_channels],
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (path / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")


# ------------------------------ layouts
def component_state_dict(folder: str | Path, component: str) -> dict[str, torch.Tensor]:
    """The tensors of one component of a diffusers folder, under the names of its file."""
    names = dict.fromkeys(("text_encoder", "text_encoder_2"), "model.safetensors")
    file = Path(folder) / component / names.get(component, "diffusion_pytorch_model.safetensors")
    return dict(load_file(file))


def ldm_state_dict(folder: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a tiny folder under the names of an LDM / A1111 single file."""
    unet = unet_to_ldm(component_state_dict(folder, "unet"))
    vae = vae_to_ldm(component_state_dict(folder, "vae"))
    clip = clip_to_hf(component_state_dict(folder, "text_encoder"))
    return {
        **{f"model.diffusion_model.{n}": t for n, t in unet.items()},
        **{f"first_stage_model.{n}": t for n, t in vae.items()},
        **{f"cond_stage_model.transformer.{n}": t for n, t in clip.items()},
    }


def write_ldm_safetensors(
    folder: str | Path, out: str | Path, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a folder as one LDM safetensors file, with the bookkeeping tensors that real files
    carry.
    """
    state = {n: t.to(dtype).contiguous() for n, t in ldm_state_dict(folder).items()}
    state["model_ema.decay"] = torch.tensor(0.9999)
    state["alphas_cumprod"] = torch.linspace(0.99, 0.01, 1000)
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[
        None
    ]
    save_file(state, str(out), metadata={"modelspec.title": "tiny"})
    return Path(out)


def write_ldm_ckpt(folder: str | Path, out: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a folder as one LDM torch checkpoint (`{"state_dict": ...}`)."""
    state = {n: t.to(dtype) for n, t in ldm_state_dict(folder).items()}
    torch.save({"state_dict": state, "global_step": 1}, str(out))
    return Path(out)


def _gguf_type(weight_type: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[weight_type.upper()]


def _add_gguf_tensor(
    writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, weight_type: str
) -> None:
    """Add a tensor: matrices in `weight_type` where the row length allows it, else f16; 1-D always
    f32.
    """
    values = np.ascontiguousarray(tensor.float().numpy())
    quant = _gguf_type(weight_type)
    block = gguf.GGML_QUANT_SIZES[quant][0]
    if values.ndim < 2:
        quant = gguf.GGMLQuantizationType.F32
    elif values.shape[-1] % block:
        quant = gguf.GGMLQuantizationType.F16
    data = gguf.quants.quantize(values, quant)
    if quant in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        writer.add_tensor(name, data)
    else:
        writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=quant)


def _finish_gguf(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_allinone_gguf(folder: str | Path, out: str | Path, weight_type: str = "f16") -> Path:
    """Write a folder as a stable-diffusion.cpp / GPUStack all-in-one GGUF (any type of
    `gguf.quants`).
    """
    writer = gguf.GGUFWriter(str(out), "sd1")
    for name, tensor in ldm_state_dict(folder).items():
        _add_gguf_tensor(writer, name, tensor, weight_type)
    _finish_gguf(writer)
    return Path(out)


def write_city96_gguf(
    folder: str | Path, out: str | Path, weight_type: str = "f16", *, diffusers_names: bool = False
) -> Path:
    """Write the UNet of a folder as a city96 GGUF: prefix stripped, odd rows folded to 256 with
    `orig_shape`.
    """
    unet = component_state_dict(folder, "unet")
    writer = gguf.GGUFWriter(str(out), "sd1")
    for name, tensor in (unet if diffusers_names else unet_to_ldm(unet)).items():
        count = tensor.numel()
        if tensor.ndim > 1 and count >= 512 and count % 256 == 0 and tensor.shape[-1] % 256:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(d) for d in tensor.shape])
            tensor = tensor.reshape(count // 256, 256)
        _add_gguf_tensor(writer, name, tensor, weight_type)
    _finish_gguf(writer)
    return Path(out)
