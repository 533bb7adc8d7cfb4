"""Tiny random Stable Diffusion 3 and FLUX.1 models, as diffusers folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from tests.models import TRAINING_TEXT, VAE_CONFIG, randomise, write_clip_tokenizer
from tests.unet_models import pad_with

CONTEXT = 2080
"""Columns of the context: a little more than both CLIP encoders of SD3 make together."""
_T5 = {"d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
_SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "caption_projection_dim": 128,
    "joint_attention_dim": CONTEXT,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 16,
    "qk_norm": "rms_norm",
}
_FLUX = {
    "patch_size": 1,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (4, 6, 6),
}


def _clip(path: Path, component: str, width: int, seed: int, projected: bool) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    words = write_clip_tokenizer(path / component.replace("text_encoder", "tokenizer"))
    config = CLIPTextConfig(
        vocab_size=words,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        hidden_size=width,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act="quick_gelu" if width == 768 else "gelu",
        intermediate_size=64,
        num_hidden_layers=2,
        max_position_embeddings=77,
    )
    torch.manual_seed(seed)
    encoder = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    randomise(encoder, seed, 0.4 / width**0.5)
    encoder.save_pretrained(path / component)
    if width != 768:
        pad_with(path / component.replace("text_encoder", "tokenizer"), "!")


def _t5(path: Path, component: str, width: int, seed: int) -> None:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    folder = path / component.replace("text_encoder", "tokenizer")
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT * 20),
        model_prefix=str(folder / "spiece"),
        model_type="unigram",
        vocab_size=100,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=0)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    encoder = T5EncoderModel(T5Config(vocab_size=128, d_model=width, **_T5))
    randomise(encoder, seed, 0.4 / width**0.5)
    encoder.save_pretrained(path / component)


def _finish(
    path: Path,
    pipeline: str,
    transformer: torch.nn.Module,
    scale: float,
    shift: float,
    scheduler: dict[str, Any],
    parts: dict[str, list[str]],
) -> Path:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    randomise(transformer, 5)
    transformer.save_pretrained(path / "transformer")
    torch.manual_seed(6)
    vae = AutoencoderKL(
        **{
            **VAE_CONFIG,
            "latent_channels": 16,
            "scaling_factor": scale,
            "shift_factor": shift,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
    )
    randomise(vae, 7)
    vae.save_pretrained(path / "vae")
    FlowMatchEulerDiscreteScheduler(**scheduler).save_pretrained(path / "scheduler")
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", type(transformer).__name__],
        "vae": ["diffusers", "AutoencoderKL"],
        **parts,
    }
    (path / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return path


def tiny_sd3_folder(path: Path) -> Path:
    """Stable Diffusion 3.5: two CLIP encoders and a T5, static shift 3."""
    from diffusers import SD3Transformer2DModel

    _clip(path, "text_encoder", 768, 1, True)
    _clip(path, "text_encoder_2", 1280, 2, True)
    _t5(path, "text_encoder_3", CONTEXT, 3)
    torch.manual_seed(4)
    parts = {
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
    }
    model = SD3Transformer2DModel(**_SD3)
    return _finish(path, "StableDiffusion3Pipeline", model, 1.5305, 0.0609, {"shift": 3.0}, parts)


def tiny_flux_folder(
    path: Path, guidance: bool = True, in_channels: int = 16, pipeline: str = "FluxPipeline"
) -> Path:
    """FLUX.1: CLIP's pooled vector and a T5; dev with dynamic shift and guidance, schnell without.

    `pipeline` is the diffusers class that model_index.json names.
    """
    from diffusers import FluxTransformer2DModel

    _clip(path, "text_encoder", 768, 1, False)
    _t5(path, "text_encoder_2", 32, 3)
    torch.manual_seed(4)
    parts = {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
    }
    model = FluxTransformer2DModel(
        in_channels=4 * in_channels, out_channels=64, guidance_embeds=guidance, **_FLUX
    )
    dynamic = {
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "shift": 3.0,
    }
    scheduler = dynamic if guidance else {"shift": 1.0}
    return _finish(path, pipeline, model, 0.3611, 0.1159, scheduler, parts)
