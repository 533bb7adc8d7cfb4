"""Tiny models with everything beside them, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

import sdengine
from tests.adapters.files import ATTENTION, kohya, lora, randn, write
from tests.control.models import build_vision, controlnet_folder, flat, ip_adapter_state
from tests.unet_models import build_unet, tiny_folder, write_safetensors

Models = Callable[..., sdengine.Pipeline]
QUICK: dict[str, Any] = {"steps": 4, "seed": 7, "sampler": "euler_a", "guidance_scale": 3.0}
WORD = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def latents(pipe: sdengine.Pipeline, prompt: Any = "a cat", **options: Any) -> np.ndarray:
    return pipe.generate(prompt, **{**QUICK, **options}).latents


@pytest.fixture(scope="package")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model ``sd1``, a ControlNet, two IP-Adapters, and LoRAs with and without a learned word."""
    root = tmp_path_factory.mktemp("together")
    tiny_folder(root / "sd1", "sd1", seed=4)
    controlnet_folder(root / "control", "sd1", 0)
    build_vision().save_pretrained(root / "image_encoder")
    unet = UNet2DConditionModel.from_pretrained(root / "sd1" / "unet")
    write_safetensors(flat(ip_adapter_state(unet, False)), root / "ip.safetensors")
    text = {
        f"{WORD}.lora_down.weight": randn((2, 64), 1),
        f"{WORD}.lora_up.weight": randn((64, 2), 2),
    }
    denoiser = lora(build_unet("sd1", 4), ATTENTION, kohya("lora_unet_"), seed=1)
    write(root / "ink.safetensors", denoiser | text)
    for seed in (1, 2):
        word = {"bundle_emb.inky.string_to_param.*": randn((2, 64), 5 + seed)}
        write(root / f"word{seed}.safetensors", denoiser | word)
    torch.save({"string_to_param": {"*": randn((2, 64), 9)}}, root / "glow.pt")
    return root


@pytest.fixture(scope="package")
def models(files: Path) -> Models:
    """The model with parts beside it, by their names in :func:`files`; each set is loaded once."""
    made: dict[tuple[str, ...], sdengine.Pipeline] = {}

    def get(*parts: str) -> sdengine.Pipeline:
        if parts not in made:
            given: dict[str, Any] = {}
            if "control" in parts:
                given["controlnets"] = files / "control"
            if "ip" in parts:
                given["ip_adapter"] = files / "ip.safetensors"
            if "uncached" in parts:
                given["prompt_cache"] = False
            made[parts] = sdengine.load(files / "sd1", lora_dir=files, **given)
        return made[parts]

    return get
