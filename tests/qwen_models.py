"""A tiny random Qwen-Image, as a diffusers folder with a text encoder that sees pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.models import TRAINING_TEXT, byte_symbols, randomise

WIDTH = 256
"""Of the text encoder, and so of the context."""
# Heads, norms and windows are the published ones, which a GGUF does not tell.
TEXT_CONFIG = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_theta": 1e6,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    "tie_word_embeddings": False,
}
VISION_CONFIG = {
    "depth": 9,
    "hidden_size": 64,
    "intermediate_size": 40,
    "num_heads": 16,
    "out_hidden_size": WIDTH,
    "fullatt_block_indexes": [7],
}
TRANSFORMER_CONFIG = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 6, 6),
}
VAE_CONFIG = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
SCHEDULER_CONFIG = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE_TEXT = (
    "system Describe the image by detailing the color, shape, size, texture, quantity, text,",
    "user assistant Picture 1: spatial relationships of the objects and background:",
)


def qwen_tokenizer() -> Any:
    """A transformers tokenizer over a small byte-pair vocabulary with Qwen's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    symbols = byte_symbols()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=len(symbols) + 150, initial_alphabet=symbols, show_progress=False
    )
    tokenizer.train_from_iterator([*TRAINING_TEXT, *TEMPLATE_TEXT], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    words = dict(trained["vocab"])
    for token in SPECIAL:
        words[token] = len(words)
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in trained["merges"]]
    return Qwen2Tokenizer(vocab=words, merges=merges, additional_special_tokens=list(SPECIAL[1:]))


def vision_language_model(tokenizer: Any, seed: int = 1, **vision: Any) -> torch.nn.Module:
    """A tiny Qwen2.5-VL whose every parameter is random."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={**TEXT_CONFIG, "vocab_size": len(tokenizer)},
        vision_config={**VISION_CONFIG, **vision},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    randomise(model, seed, 0.1)
    return model


def tiny_qwen_folder(
    path: Path, pipeline: str = "QwenImagePipeline", still_references: bool = False
) -> Path:
    """Qwen-Image, or with another pipeline's name Qwen-Image-Edit."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageTransformer2DModel,
    )

    tokenizer = qwen_tokenizer()
    tokenizer.save_pretrained(path / "tokenizer")
    vision_language_model(tokenizer).save_pretrained(path / "text_encoder")
    torch.manual_seed(4)
    transformer = QwenImageTransformer2DModel(**TRANSFORMER_CONFIG, zero_cond_t=still_references)
    randomise(transformer, 5)
    transformer.save_pretrained(path / "transformer")
    vae = AutoencoderKLQwenImage(**VAE_CONFIG)
    randomise(vae, 7)
    vae.save_pretrained(path / "vae")
    FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG).save_pretrained(path / "scheduler")
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    (path / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return path
