"""LoRAs on tiny SD1 and SDXL models against diffusers with PEFT: same files, same scales."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from tests.parity.conftest import relative_error
from tests.unet_models import tiny_folder

from .files import ATTENTION, CONVOLUTIONS, ENCODER, dotted, lora, write

PROMPT, NEGATIVE, SEED = "a red circle on a blue background", "blurry, low quality", 7
PEFT = (".lora_A.weight", ".lora_B.weight")
SIZE = {"width": 64, "height": 64}
PIPELINES = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


class Model:
    """A tiny model with two LoRAs, in diffusers and in sdengine."""

    def __init__(self, folder: Path, family: str) -> None:
        import diffusers

        path = tiny_folder(folder / "model", family, seed=3)
        kind = getattr(diffusers, PIPELINES[family])
        absent: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
        if family == "sd1":
            absent |= {"safety_checker": None, "requires_safety_checker": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.reference = kind.from_pretrained(path, **absent)
        self.reference.set_progress_bar_config(disable=True)
        self.encoders = [
            name for name in ("text_encoder", "text_encoder_2") if hasattr(self.reference, name)
        ]
        self.files = {
            name: write(folder / f"{name}.safetensors", self._state(seed, endings, rank))
            for name, seed, endings, rank in (
                ("one", 1, (*ATTENTION, *CONVOLUTIONS), 4),
                ("two", 2, ATTENTION, 1),
            )
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, file in self.files.items():
                self.reference.load_lora_weights(str(file), adapter_name=name)
        self.pipe = sdengine.load(path)

    def _state(self, seed: int, endings: tuple[str, ...], rank: int) -> dict[str, torch.Tensor]:
        state = lora(
            self.reference.unet, endings, dotted("unet."), rank=rank, names=PEFT, seed=seed
        )
        for number, name in enumerate(self.encoders):
            encoder = getattr(self.reference, name)
            more = {"rank": rank, "names": PEFT, "seed": 10 * seed + number}
            state |= lora(encoder, ENCODER, dotted(f"{name}."), **more)
        return state

    def set(self, scales: dict[str, float]) -> None:
        self.reference.set_adapters(list(scales), list(scales.values()))
        self.pipe.set_loras([(self.files[name], scale) for name, scale in scales.items()])


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp(request.param), request.param)


CASES: list[dict[str, float]] = [
    {"one": 0.5},
    {"one": 1.0},
    {"one": 1.5},
    {"one": 0.7, "two": -0.6},
]


@pytest.mark.parametrize("scales", CASES, ids=str)
def test_one_evaluation(model: Model, scales: dict[str, float]) -> None:
    model.set(scales)
    unet = model.reference.unet
    rng = np.random.default_rng(5)
    width = unet.config.cross_attention_dim
    latents = rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
    context = rng.standard_normal((2, 77, width)).astype(np.float32)
    pooled = None
    told: dict[str, Any] = {}
    if model.reference.text_encoder is not model.reference.components.get("text_encoder_2") and (
        len(model.encoders) == 2
    ):
        pooled = rng.standard_normal((2, 128)).astype(np.float32)
        sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 2)
        told = {"added_cond_kwargs": {"text_embeds": torch.tensor(pooled), "time_ids": sizes}}
    with torch.no_grad():
        expected = unet(torch.tensor(latents), 501, torch.tensor(context), **told).sample.numpy()
    cond = sdengine.Conditioning(context, context, pooled, pooled)
    assert relative_error(model.pipe.predict(latents, 501, cond), expected) <= 1e-4


@pytest.mark.parametrize("scales", CASES, ids=str)
def test_text_encoders(model: Model, scales: dict[str, float]) -> None:
    model.set(scales)
    if len(model.encoders) == 2:
        expected, _, pooled, _ = model.reference.encode_prompt(
            PROMPT, negative_prompt=NEGATIVE, do_classifier_free_guidance=True
        )
    else:
        expected, _ = model.reference.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
        pooled = None
    found = model.pipe.encode_prompt(PROMPT, NEGATIVE)
    assert relative_error(found.context, expected.detach().numpy()) <= 1e-4
    if pooled is not None:
        assert relative_error(found.pooled, pooled.detach().numpy()) <= 1e-4


@pytest.mark.parametrize("scales", [{"one": 0.8}, {"one": 0.7, "two": -0.6}], ids=str)
def test_whole_pipeline(model: Model, scales: dict[str, float]) -> None:
    model.set(scales)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler: Callable[..., Any] = type(model.reference.scheduler)
        model.reference.scheduler = scheduler.from_config(model.reference.scheduler.config)
        expected = model.reference(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=6,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **SIZE,
        ).images
    loras = [(model.files[name], scale) for name, scale in scales.items()]
    model.pipe.set_loras([])
    options = {"steps": 6, "guidance_scale": 5.0, "seed": SEED, "sampler": "euler", **SIZE}
    found = model.pipe.generate(PROMPT, NEGATIVE, loras=loras, **options).latents
    plain = model.pipe.generate(PROMPT, NEGATIVE, **options).latents
    assert relative_error(found, np.asarray(expected)) <= 1e-3
    assert relative_error(plain, np.asarray(expected)) > 1e-2
