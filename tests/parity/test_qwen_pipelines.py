"""Whole pipelines of Qwen-Image against diffusers: same folder, prompt and seed."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sdengine
from tests.qwen_models import tiny_qwen_folder

from .conftest import relative_error

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
SIZE = {"width": 64, "height": 96}
SEED = 7
LIMIT = 1e-3


def reference(folder: Path, pipeline: str, prompt: Any = PROMPT, **options: Any) -> np.ndarray:
    """Latents that diffusers makes, unpacked."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, pipeline).from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        tokens = pipe(
            prompt=prompt,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            num_inference_steps=4,
            **SIZE,
            **options,
        ).images
    return pipe._unpack_latents(tokens, SIZE["height"], SIZE["width"], pipe.vae_scale_factor)[
        :, :, 0
    ].numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_folder(tmp_path_factory.mktemp("qwen") / "model")


def test_text_to_image(folder: Path) -> None:
    pipe = sdengine.load(folder)
    expected = reference(folder, "QwenImagePipeline", negative_prompt=NEGATIVE, true_cfg_scale=4.0)
    found = pipe.generate(PROMPT, NEGATIVE, steps=4, seed=SEED, **SIZE)
    assert relative_error(found.latents, expected) <= LIMIT
    assert found.image.size == (64, 96)
    # No negative prompt is a space, as in the published examples.
    expected = reference(folder, "QwenImagePipeline", negative_prompt=" ", true_cfg_scale=4.0)
    found = pipe.generate(PROMPT, steps=4, seed=SEED, **SIZE)
    assert relative_error(found.latents, expected) <= LIMIT


def test_without_guidance(folder: Path) -> None:
    expected = reference(folder, "QwenImagePipeline", true_cfg_scale=1.0)
    run = sdengine.load(folder).start(PROMPT, guidance_scale=1.0, steps=4, seed=SEED, **SIZE)
    while not run.done:
        run.step()
    assert run.evaluations == 4
    assert relative_error(run.latents, expected) <= LIMIT


def test_prompts_of_different_lengths(folder: Path) -> None:
    prompts = [PROMPT, "a cat"]
    expected = reference(
        folder, "QwenImagePipeline", prompts, negative_prompt=[NEGATIVE, " "], true_cfg_scale=4.0
    )
    found = sdengine.load(folder).generate(
        prompts, [NEGATIVE, " "], steps=4, seed=SEED, compat="diffusers", **SIZE
    )
    assert relative_error(found.latents, expected) <= LIMIT


def test_image_to_image(folder: Path) -> None:
    image = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (96, 64, 3), np.uint8).astype(np.uint8)
    )
    expected = reference(
        folder,
        "QwenImageImg2ImgPipeline",
        image=image,
        strength=0.75,
        negative_prompt=NEGATIVE,
        true_cfg_scale=4.0,
    )
    found = sdengine.load(folder).generate(
        PROMPT, NEGATIVE, image=image, strength=0.75, steps=4, seed=SEED, compat="diffusers", **SIZE
    )
    assert relative_error(found.latents, expected) <= LIMIT


@pytest.mark.parametrize("strength", [1.0, 0.75])
def test_inpainting(folder: Path, strength: float) -> None:
    image = given_picture(64, 96, 1)
    mask = Image.new("L", (64, 96))
    mask.paste(255, (16, 16, 48, 64))
    expected = reference(
        folder,
        "QwenImageInpaintPipeline",
        image=image,
        mask_image=mask,
        strength=strength,
        negative_prompt=NEGATIVE,
        true_cfg_scale=4.0,
    )
    found = sdengine.load(folder).generate(
        PROMPT, NEGATIVE, image=image, mask=mask, strength=strength, steps=4, seed=SEED
    )
    assert relative_error(found.latents, expected) <= LIMIT
    kept = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(found.image)[kept], np.asarray(image)[kept])


# ------------------------------ editing
AREA, SMALL_AREA = 96 * 96, 64 * 64
"""What pictures are brought to here, instead of a million pixels and 384 x 384."""


def given_picture(width: int, height: int, seed: int) -> Image.Image:
    """A smooth picture, so that resizing matters little to its values."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8).astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def sees_rows_and_columns(pipe: Any) -> None:
    """transformers 5 places the tokens of pictures in rows and columns, as the model was trained, only where it is
    told which tokens they are; diffusers' pipelines do not tell."""
    forward = pipe.text_encoder.forward
    mark = pipe.text_encoder.config.image_token_id

    def told(input_ids: torch.Tensor, **options: Any) -> Any:
        return forward(input_ids=input_ids, mm_token_type_ids=(input_ids == mark).int(), **options)

    pipe.text_encoder.forward = told


class Processor:
    """transformers' Qwen2VLProcessor, which cannot be made without torchvision: the parts that pictures need."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers import Qwen2VLImageProcessorPil

        self.tokenizer, self.image_processor = tokenizer, Qwen2VLImageProcessorPil()

    def __call__(self, text: list[str], images: Any, **options: Any) -> Any:
        made = self.image_processor(images=images, return_tensors="pt")
        mark, places = "<|image_pad|>", iter(made["image_grid_thw"].prod(-1).tolist())
        parts = text[0].split(mark)
        filled = "".join(part + mark * (next(places) // 4) for part in parts[:-1]) + parts[-1]
        made.update(self.tokenizer([filled], **options))
        return made


def in_small(pipe: sdengine.Pipeline, seen: int) -> sdengine.Pipeline:
    """The pipeline with smaller pictures to look at."""
    family = pipe.model.family
    assert family.references is not None
    family = replace(family, references=replace(family.references, area=AREA))
    pipe.model = replace(pipe.model, family=family)
    encoder = pipe.text_encoders.encoders[0]
    encoder.use = replace(encoder.use, sight=replace(encoder.use.sight, area=seen))
    return pipe


def edited(folder: Path, pipeline: str, pictures: Any, **options: Any) -> np.ndarray:
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, pipeline).from_pretrained(folder, processor=None)
        pipe.processor = Processor(pipe.tokenizer)
        pipe.set_progress_bar_config(disable=True)
        sees_rows_and_columns(pipe)
        tokens = pipe(
            image=pictures,
            prompt=PROMPT,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            num_inference_steps=4,
            **SIZE,
            **options,
        ).images
    return pipe._unpack_latents(tokens, SIZE["height"], SIZE["width"], pipe.vae_scale_factor)[
        :, :, 0
    ].numpy()


def test_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as module

    original = module.calculate_dimensions
    monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio: original(AREA, ratio))
    folder = tiny_qwen_folder(tmp_path / "model", "QwenImageEditPipeline")
    picture = given_picture(150, 110, 1)
    expected = edited(
        folder, "QwenImageEditPipeline", picture, negative_prompt=NEGATIVE, true_cfg_scale=4.0
    )
    pipe = sdengine.load(folder)
    assert pipe.model.title == "Qwen-Image-Edit"
    pipe = in_small(pipe, AREA)
    found = pipe.generate(PROMPT, NEGATIVE, image=picture, steps=4, seed=SEED, **SIZE)
    assert relative_error(found.latents, expected) <= LIMIT


@pytest.mark.parametrize("still", [False, True], ids=["2509", "2511"])
def test_edit_plus(still: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    monkeypatch.setattr(module, "CONDITION_IMAGE_SIZE", SMALL_AREA)
    monkeypatch.setattr(module, "VAE_IMAGE_SIZE", AREA)
    folder = tiny_qwen_folder(tmp_path / "model", "QwenImageEditPlusPipeline", still)
    pictures = [given_picture(150, 110, 1), given_picture(60, 130, 2)]
    expected = edited(
        folder, "QwenImageEditPlusPipeline", pictures, negative_prompt=" ", true_cfg_scale=4.0
    )
    pipe = sdengine.load(folder)
    assert pipe.model.title == "Qwen-Image-Edit-Plus"
    pipe = in_small(pipe, SMALL_AREA)
    found = pipe.generate(PROMPT, references=pictures, steps=4, seed=SEED, **SIZE)
    assert relative_error(found.latents, expected) <= LIMIT
    # The same by hand: what encode_prompt() returns has seen the pictures.
    seen = pipe.encode_prompt(PROMPT, " ", references=pictures)
    again = pipe.generate(conditioning=seen, references=pictures, steps=4, seed=SEED, **SIZE)
    np.testing.assert_array_equal(again.latents, found.latents)


# ------------------------------ Lightning
def lightning_file(folder: Path, path: Path) -> Path:
    """A LoRA under the names of ModelTC/Qwen-Image-Lightning's files."""
    from diffusers import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel.from_pretrained(folder / "transformer")
    generator = torch.Generator().manual_seed(9)
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("transformer_blocks"):
            down = torch.randn(2, module.in_features, generator=generator)
            state[f"{name}.lora_down.weight"] = down * 0.2
            state[f"{name}.lora_up.weight"] = (
                torch.randn(module.out_features, 2, generator=generator) * 0.2
            )
            state[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(state, path)
    return path


def test_lightning(folder: Path, tmp_path: Path) -> None:
    """Steps, guidance and a fixed shift come from the LoRA's name."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline

    file = lightning_file(folder, tmp_path / "Qwen-Image-Lightning-4steps-V2.0.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = QwenImagePipeline.from_pretrained(folder)
        shift = math.log(3)
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=shift,
            max_shift=shift,
            max_image_seq_len=8192,
            shift_terminal=None,
            time_shift_type="exponential",
        )
        pipe.load_lora_weights(file)
        pipe.set_progress_bar_config(disable=True)
        tokens = pipe(
            PROMPT,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            num_inference_steps=4,
            **SIZE,
        ).images
    expected = pipe._unpack_latents(tokens, SIZE["height"], SIZE["width"], 8)[:, :, 0].numpy()
    run = sdengine.load(folder).start(PROMPT, seed=SEED, loras=file, **SIZE)
    while not run.done:
        run.step()
    assert (run.evaluations, run.parameters.steps) == (4, 4)
    assert relative_error(run.latents, expected) <= LIMIT
    assert [picture.size for picture in sdengine.load(folder).preview(run.latents)] == [(64, 96)]
