"""Tiny random Lumina-Image 2.0 models, and their denoiser under the publisher's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdengine.families.lumina2 import SYSTEM_PROMPT
from tests.models import TRAINING_TEXT, VAE_CONFIG, randomise

State = dict[str, torch.Tensor]

CONTEXT = 32
DENOISER: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 16,
    "hidden_size": 48,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "num_attention_heads": 3,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "axes_dim_rope": (8, 4, 4),
    "axes_lens": (300, 32, 32),
    "cap_feat_dim": CONTEXT,
}
GEMMA = {
    "hidden_size": CONTEXT,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def write_gemma_tokenizer(folder: Path) -> int:
    """Train a small vocabulary, laid out as Gemma's; returns its size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*TRAINING_TEXT, SYSTEM_PROMPT, "<Prompt Start>"], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    written = GemmaTokenizer(vocab=trained["vocab"], merges=merges)
    written.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    written.save_pretrained(folder)
    return len(trained["vocab"])


def tiny_lumina_folder(path: Path) -> Path:
    """Lumina-Image 2.0 as a diffusers folder, with static shift 6."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    words = write_gemma_tokenizer(path / "tokenizer")
    torch.manual_seed(1)
    encoder = Gemma2Model(Gemma2Config(vocab_size=words, **GEMMA))
    randomise(encoder, 1, 0.2)
    encoder.save_pretrained(path / "text_encoder")
    torch.manual_seed(2)
    denoiser = Lumina2Transformer2DModel(**DENOISER)
    randomise(denoiser, 2)
    denoiser.save_pretrained(path / "transformer")
    torch.manual_seed(3)
    figures = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    convolutions = {"use_quant_conv": False, "use_post_quant_conv": False}
    vae = AutoencoderKL(**{**VAE_CONFIG, **figures, **convolutions})
    randomise(vae, 3)
    vae.save_pretrained(path / "vae")
    FlowMatchEulerDiscreteScheduler(shift=6.0).save_pretrained(path / "scheduler")
    index = {
        "_class_name": "Lumina2Pipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizer"],
        "transformer": ["diffusers", "Lumina2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (path / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return path


_NAMES = (
    ("time_caption_embed.caption_embedder", "cap_embedder"),
    ("time_caption_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_caption_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("norm_out.linear_1", "final_layer.adaLN_modulation.1"),
    ("norm_out.linear_2", "final_layer.linear"),
    ("attn.to_out.0", "attention.out"),
    ("attn.norm_q", "attention.q_norm"),
    ("attn.norm_k", "attention.k_norm"),
    ("norm1.linear", "adaLN_modulation.1"),
    ("norm1.norm", "attention_norm1"),
    (".norm1.weight", ".attention_norm1.weight"),
    (".norm2", ".attention_norm2"),
    ("feed_forward.linear_", "feed_forward.w"),
)


def to_original(state: Mapping[str, torch.Tensor]) -> State:
    """A diffusers state dict under Alpha-VLLM's names.

    Written from the published files, without `sdengine.keys`; checked against diffusers' importer.
    """
    result: State = {}
    for name, tensor in state.items():
        if ".attn.to_q." in name:
            parts = [state[name.replace("to_q", f"to_{x}")] for x in "qkv"]
            result[name.replace("attn.to_q", "attention.qkv")] = torch.cat(parts)
        elif ".attn.to_k." not in name and ".attn.to_v." not in name:
            for ours, theirs in _NAMES:
                name = name.replace(ours, theirs)
            result[name] = tensor
    return result
