"""Tiny random Hunyuan-DiT models, and their denoiser under the publisher's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.dit_models import _t5
from tests.models import VAE_CONFIG, randomise

State = dict[str, torch.Tensor]

BERT_WIDTH, T5_WIDTH = 128, 32
NEW: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 6,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "hidden_size": 24,
    "mlp_ratio": 4.3637,
    "cross_attention_dim": BERT_WIDTH,
    "cross_attention_dim_t5": T5_WIDTH,
    "pooled_projection_dim": 20,
    "text_len": 77,
    "text_len_t5": 256,
    "activation_fn": "gelu-approximate",
    "use_style_cond_and_image_meta_size": False,
}
"""1.2."""
OLD = NEW | {"use_style_cond_and_image_meta_size": True}
"""1.0 and 1.1."""
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "red", "circle", "on", "blue", "back", "##ground", "dog", "##s", "square", "un", "##a"),
    *("low", "quality", "two", "of", "cafe", ",", ".", "!", "'", "-", "3", "##d", "##1"),
    *("一", "只", "猫", "的", "画", "。", "\uff0c", "##猫", "é"),
]


def bert(seed: int = 1, **changed: Any) -> torch.nn.Module:
    """A tiny BERT encoder with its pooler."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        **{
            "vocab_size": len(VOCABULARY) + 3,
            "hidden_size": BERT_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 37,
            "max_position_embeddings": 80,
            **changed,
        }
    )
    torch.manual_seed(seed)
    model = BertModel(config).eval()
    randomise(model, seed, 0.2)
    return model


def write_vocabulary(folder: Path) -> Path:
    """A BERT tokenizer's folder as it was published before there was tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    config = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "BertTokenizer"}), "utf-8"
    )
    return folder


def tiny_hunyuan_folder(path: Path, config: Mapping[str, Any], beta_end: float) -> Path:
    """A diffusers folder for ``HunyuanDiTPipeline``."""
    from diffusers import AutoencoderKL, DDPMScheduler, HunyuanDiT2DModel

    bert().save_pretrained(path / "text_encoder")
    write_vocabulary(path / "tokenizer")
    _t5(path, "text_encoder_2", T5_WIDTH, 3)
    torch.manual_seed(2)
    denoiser = HunyuanDiT2DModel(**config)
    randomise(denoiser, 2)
    denoiser.save_pretrained(path / "transformer")
    torch.manual_seed(3)
    vae = AutoencoderKL(**{**VAE_CONFIG, "scaling_factor": 0.13025})
    randomise(vae, 3)
    vae.save_pretrained(path / "vae")
    DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=beta_end,
        prediction_type="v_prediction",
        steps_offset=1,
        clip_sample=False,
    ).save_pretrained(path / "scheduler")
    index = {
        "_class_name": "HunyuanDiTPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "BertModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "tokenizer_2": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "HunyuanDiT2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (path / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return path


_NAMES = (
    ("pos_embed.proj", "x_embedder.proj"),
    ("time_extra_emb.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_extra_emb.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_extra_emb.extra_embedder.linear_1", "extra_embedder.0"),
    ("time_extra_emb.extra_embedder.linear_2", "extra_embedder.2"),
    ("time_extra_emb.", ""),
    ("text_embedder.linear_1", "mlp_t5.0"),
    ("text_embedder.linear_2", "mlp_t5.2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
    ("norm1.norm", "norm1"),
    ("norm1.linear", "default_modulation.1"),
    (".norm2.", ".swapped."),
    (".norm3.", ".norm2."),
    (".swapped.", ".norm3."),
    ("to_out.0", "out_proj"),
    ("attn2.to_q", "attn2.q_proj"),
    ("norm_q", "q_norm"),
    ("norm_k", "k_norm"),
    ("ff.net.0.proj", "mlp.fc1"),
    ("ff.net.2", "mlp.fc2"),
)


def to_original(state: Mapping[str, torch.Tensor]) -> State:
    """A diffusers state dict under Hunyuan-DiT's names.

    Written from diffusers' conversion script for Hunyuan-DiT, without `sdengine.keys`.
    """
    result: State = {}
    for name, tensor in state.items():
        new = name
        for ours, theirs in _NAMES:
            new = new.replace(ours, theirs)
        if "norm_out.linear" in name:
            scale, shift = tensor.chunk(2)
            tensor = torch.cat([shift, scale])
        if "attn1.to_" in name and "to_out" not in name:
            if "to_q" not in name:
                continue
            tensor = torch.cat([state[name.replace("to_q", f"to_{x}")] for x in "qkv"])
            new = new.replace("to_q", "Wqkv")
        if "attn2.to_v." in name:
            continue
        if "attn2.to_k." in name:
            tensor = torch.cat([tensor, state[name.replace("to_k", "to_v")]])
            new = new.replace("to_k", "kv_proj")
        result[new] = tensor
    return result
