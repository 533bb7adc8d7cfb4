"""Text encoders and autoencoders of other models: each family takes its own, and says what the others are.

Files of full width, one layer high and without data: planning reads names and shapes alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from diffusers import AutoencoderKL

import sdengine
from sdengine import ParameterError, WeightsError
from sdengine.loading import plan_model
from tests.families import test_qwen_family as qwen
from tests.keys.test_dit_inventories import full_size
from tests.renaming import vae_to_ldm
from tests.renaming_dit import State, flux_to_bfl, sd3_to_reference
from tests.renaming_qwen import text_to_llama_cpp, vision_to_llama_cpp

from . import test_lumina_pixart_files as files
from .test_inventories import autoencoder


def write_shapes(path: Path, state: Mapping[str, torch.Tensor]) -> Path:
    """A safetensors file in half precision whose data is a hole."""
    header, end = {}, 0
    for name, tensor in state.items():
        place = [end, end + 2 * tensor.numel()]
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": place}
        end = place[1]
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def shapes(model: str, config: str, prefix: str = "", **figures: Any) -> State:
    """A model of transformers with one layer."""
    layers = "num_layers" if "5" in config and "Qwen" not in config else "num_hidden_layers"
    with torch.device("meta"):
        made = getattr(transformers, config)(**{layers: 1, **figures})
        state = getattr(transformers, model)(made).state_dict()
    return {prefix + name: tensor for name, tensor in state.items()}


def t5(width: int, inner: int, words: int, heads: int, kind: str = "T5") -> State:
    figures = {"d_model": width, "d_ff": inner, "vocab_size": words, "num_heads": heads}
    return shapes(
        f"{kind}EncoderModel", f"{kind}Config", feed_forward_proj="gated-gelu", d_kv=64, **figures
    )


def language(kind: str, width: int, inner: int, heads: tuple[int, int], words: int) -> State:
    return shapes(
        f"{kind}Model",
        f"{kind}Config",
        "model.",
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=256 if kind == "Gemma2" else 128,
        vocab_size=words,
    )


def qwen_vl(width: int, inner: int, heads: tuple[int, int], words: int) -> State:
    text = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": words,
    }
    return shapes(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        text_config=text,
        vision_config={**qwen.VISION, "out_hidden_size": width, "depth": 1},
        tie_word_embeddings=False,
    )


def clip(width: int, heads: int) -> State:
    figures = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    return shapes(
        "CLIPTextModelWithProjection", "CLIPTextConfig", num_attention_heads=heads, **figures
    )


def kl(channels: int) -> State:
    if channels == 16:
        return autoencoder()
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=channels,
        )
    return vae_to_ldm(vae.state_dict())


QWEN_7B = (3584, 18944, (28, 4), 152064)
QWEN_3B = (2048, 11008, (16, 2), 151936)
# The published config.json of each.
ENCODERS: dict[str, Any] = {
    "CLIP-L": lambda: clip(768, 12),
    "CLIP-G": lambda: clip(1280, 20),
    "T5-XXL": lambda: t5(4096, 10240, 32128, 64),
    "T5-XL": lambda: t5(2048, 5120, 32128, 32),
    "mT5-XL": lambda: t5(2048, 5120, 250112, 32, "MT5"),
    "mT5-XXL": lambda: t5(4096, 10240, 250112, 64, "MT5"),
    "UMT5-XXL": lambda: t5(4096, 10240, 256384, 64, "UMT5"),
    "Gemma 2 2B": lambda: language("Gemma2", 2304, 9216, (8, 4), 256000),
    "Gemma 2 9B": lambda: language("Gemma2", 3584, 14336, (16, 8), 256000),
    "Qwen2.5-VL-7B": lambda: qwen_vl(*QWEN_7B),
    "Qwen2.5-VL-3B": lambda: qwen_vl(*QWEN_3B),
    "Llama 3.1 8B": lambda: language("Llama", 4096, 14336, (32, 8), 128256),
    "Qwen3-4B": lambda: language("Qwen3", 2560, 9728, (32, 8), 151936),
    "Qwen3-8B": lambda: language("Qwen3", 4096, 12288, (32, 8), 151936),
}
AUTOENCODERS: dict[str, Any] = {
    "4 channels": lambda: kl(4),
    "16 channels": lambda: kl(16),
    "Wan's": lambda: qwen.vae_to_wan(qwen.autoencoder()),
}
# Family -> its denoiser, its text encoders, its autoencoder.
MODELS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "SD3": (
        lambda: sd3_to_reference(full_size("SD3.5-Medium")),
        ("CLIP-L", "CLIP-G", "T5-XXL"),
        "16 channels",
    ),
    "FLUX.1": (
        lambda: flux_to_bfl(full_size("FLUX.1-dev")),
        ("CLIP-L", "T5-XXL"),
        "16 channels",
    ),
    "Qwen-Image": (qwen.denoiser, ("Qwen2.5-VL-7B",), "Wan's"),
    "Lumina": (lambda: files.original("Lumina-Image 2.0"), ("Gemma 2 2B",), "16 channels"),
    "PixArt": (lambda: files.original("PixArt-sigma"), ("T5-XXL",), "4 channels"),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    made = {**ENCODERS, **AUTOENCODERS, **{name: of[0] for name, of in MODELS.items()}}
    return {
        name: write_shapes(folder / f"{name.replace(' ', '-')}.safetensors", make())
        for name, make in made.items()
    }


@pytest.mark.parametrize("model", MODELS)
def test_a_text_encoder_of_another_model(model: str, parts: dict[str, Path]) -> None:
    """Each in every place."""
    _, own, vae = MODELS[model]
    plan = plan_model(parts[model], parts[vae], [parts[name] for name in own])
    right = dict(zip((use.component for use in plan.family.text), own, strict=True))
    for place, name in right.items():
        for wrong in ENCODERS.keys() - {name}:
            given = {p: parts[n] for p, n in {**right, place: wrong}.items()}
            with pytest.raises((ParameterError, WeightsError)) as caught:
                plan_model(parts[model], parts[vae], given)
            assert parts[wrong].name in str(caught.value), (place, wrong)


@pytest.mark.parametrize(
    ("model", "wrong", "message"),
    [
        ("FLUX.1", "UMT5-XXL", "this is not a T5-XXL text encoder: vocab_size = 256384"),
        ("PixArt", "mT5-XXL", "this is not a T5-XXL text encoder: vocab_size = 250112"),
        ("PixArt", "mT5-XL", "this is not a T5-XXL text encoder: vocab_size = 250112"),
        ("PixArt", "T5-XL", "context of 2048 columns.*reads 4096"),
        ("PixArt", "Gemma 2 2B", "holds no text_encoder of PixArt-sigma: this is a language model"),
        ("Qwen-Image", "T5-XXL", "holds no text_encoder of Qwen-Image: this is a T5 text encoder"),
        ("Qwen-Image", "Gemma 2 9B", "this is not a Qwen2.5-VL text encoder: qkv_bias = False"),
        ("Qwen-Image", "Qwen2.5-VL-3B", "context of 2048 columns.*reads 3584"),
        ("Lumina", "Gemma 2 9B", "context of 3584 columns.*reads 2304"),
    ],
)
def test_it_is_said_what_it_is(
    model: str, wrong: str, message: str, parts: dict[str, Path]
) -> None:
    own = list(MODELS[model][1])
    given = [*(parts[name] for name in own[:-1]), parts[wrong]]
    with pytest.raises(sdengine.SDEngineError, match=message):
        plan_model(parts[model], parts[MODELS[model][2]], given)


@pytest.mark.parametrize("model", MODELS)
def test_an_autoencoder_of_another_model(model: str, parts: dict[str, Path]) -> None:
    _, own, right = MODELS[model]
    for wrong in AUTOENCODERS.keys() - {right}:
        with pytest.raises(
            (ParameterError, WeightsError), match="holds no vae|belongs to another model"
        ):
            plan_model(parts[model], parts[wrong], [parts[name] for name in own])


def test_a_vision_encoder_of_another_size(parts: dict[str, Path], tmp_path: Path) -> None:
    """Qwen2.5-VL-7B as llama.cpp publishes it, with the mmproj file of 3B."""
    words = write_shapes(tmp_path / "7B.safetensors", text_to_llama_cpp(qwen_vl(*QWEN_7B)))
    eyes = {
        name: write_shapes(tmp_path / f"mmproj-{name}.safetensors", vision_to_llama_cpp(state))
        for name, state in (("3B", qwen_vl(*QWEN_3B)), ("7B", qwen_vl(*QWEN_7B)))
    }
    plan = plan_model(parts["Qwen-Image"], parts["Wan's"], [words, eyes["7B"]])
    assert "vision_encoder" in plan.components
    message = (
        r"mmproj-3B.*makes tokens of 2048 columns.*\(.*7B.*\) reads 3584: they are two models'"
    )
    with pytest.raises(WeightsError, match=message):
        plan_model(parts["Qwen-Image"], parts["Wan's"], [words, eyes["3B"]])
    with pytest.raises(ParameterError, match="mmproj-7B.*holds no text_encoder of Lumina"):
        plan_model(parts["Lumina"], parts["16 channels"], eyes["7B"])
