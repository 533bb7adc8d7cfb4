"""The rectified-flow demo model (Stable Diffusion 3's build): do its pictures show what the prompts say?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sdengine
from demo.checker import check
from demo.dit import T5_TOKENS, AlikeTokens, new_model
from demo.evaluate import HELD_OUT
from demo.shapes import read_held_out
from tests.models import randomise

MODEL = Path(HELD_OUT).with_name("dit.gguf")
TESTS = read_held_out(HELD_OUT)
GROUND = "on a blue background"


@pytest.fixture(scope="module")
def pipe() -> sdengine.Pipeline:
    return sdengine.load(MODEL)


def test_the_file_is_small_and_complete() -> None:
    assert MODEL.stat().st_size <= 6_000_000
    info = sdengine.inspect(MODEL).to_dict()
    assert info["family"] == "sd3"
    assert list(info["missing"]) == ["text_encoder_3"]  # a T5, which may be absent


def right(pipe: sdengine.Pipeline, count: int, **options: object) -> float:
    """Part of `count` held-out captions, spread over all of them, that come out all right."""
    tests = TESTS[:: len(TESTS) // count][:count]
    images = [pipe.generate(t.caption, seed=t.seed, **options).image for t in tests]
    return float(np.mean([check(i).matches(t.triple) for i, t in zip(images, tests, strict=True)]))


def test_held_out_captions(pipe: sdengine.Pipeline) -> None:
    # All 200 are measured in demo/MODEL_CARD.md.
    assert right(pipe, 20, steps=20) >= 0.75


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_circle_is_red(pipe: sdengine.Pipeline, seed: int) -> None:
    result = pipe.generate(f"a red circle {GROUND}", seed=seed)
    assert check(result.image).triple == ("circle", "red", "blue")
    assert result.image.size == (128, 128)
    assert result.latents.shape == (1, 16, 16, 16)


@pytest.mark.parametrize("sampler", ["heun", "dpm++2m", "euler_a", "unipc"])
def test_samplers_of_flows(pipe: sdengine.Pipeline, sampler: str) -> None:
    assert right(pipe, 4, sampler=sampler, steps=16) >= 0.75


def test_a_batch_equals_single_runs(pipe: sdengine.Pipeline) -> None:
    prompts = [f"a red circle {GROUND}", "a green star on white"]
    both = pipe.generate(prompts, seed=5, steps=4).latents
    for index, prompt in enumerate(prompts):
        alone = pipe.generate(prompt, seed=5 + index, steps=4).latents
        np.testing.assert_array_equal(both[index], alone[0])


@pytest.fixture(scope="module")
def circle(pipe: sdengine.Pipeline) -> Image.Image:
    return pipe.generate(f"a red circle {GROUND}", seed=1).image


def test_strength_decides_between_picture_and_prompt(
    pipe: sdengine.Pipeline, circle: Image.Image
) -> None:
    def changed(prompt: str, strength: float) -> Image.Image:
        given = {"image": circle, "strength": strength, "seed": 2}
        return pipe.generate(f"{prompt} {GROUND}", **given).image

    assert check(changed("a red star", 0.3)).triple == ("circle", "red", "blue")
    assert check(changed("a red star", 0.95)).triple == ("star", "red", "blue")
    assert check(changed("a yellow circle", 0.95)).triple == ("circle", "yellow", "blue")


def test_only_the_inside_is_repainted(pipe: sdengine.Pipeline, circle: Image.Image) -> None:
    mask = Image.new("L", circle.size, 0)
    mask.paste(255, (16, 16, 112, 112))
    result = pipe.generate(f"a green star {GROUND}", image=circle, mask=mask, seed=1).image
    kept = np.asarray(mask) == 0
    np.testing.assert_array_equal(np.asarray(result)[kept], np.asarray(circle)[kept])
    assert check(result).triple == ("star", "green", "blue")


def test_one_token_stands_for_the_absent_t5() -> None:
    model = new_model().eval()
    randomise(model, 1)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 16, 16, 16, generator=generator)
    context = torch.randn(2, 24, 128, generator=generator)
    pooled = torch.randn(2, 2048, generator=generator)

    def flow(tokens: int) -> torch.Tensor:
        zeros = torch.zeros(2, tokens, 128)
        return model(
            latents, torch.cat([context, zeros], dim=1), pooled, torch.tensor([300.0, 800.0])
        ).sample

    with torch.no_grad():
        expected = flow(T5_TOKENS)
        for block in model.transformer_blocks:
            block.attn.set_processor(AlikeTokens())
        torch.testing.assert_close(flow(1), expected, rtol=1e-4, atol=1e-4)
