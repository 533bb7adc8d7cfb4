"""Image to image, repainting and divided schedules with the demo model: the results show what was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from demo.checker import check
from sdengine.api import demo_pipeline

GROUND = "on a blue background"


@pytest.fixture(scope="module")
def circle() -> Image.Image:
    image = demo_pipeline().generate(f"a red circle {GROUND}", seed=1).image
    assert check(image).triple == ("circle", "red", "blue")
    return image


def changed(image: Image.Image, prompt: str, strength: float) -> Image.Image:
    # Without guidance: this model follows its prompt so closely that guidance overrules the picture at any strength.
    options = {"image": image, "strength": strength, "guidance_scale": 1.0, "seed": 2}
    return demo_pipeline().generate(f"{prompt} {GROUND}", **options).image


def test_strength_decides_between_picture_and_prompt(circle: Image.Image) -> None:
    assert check(changed(circle, "a red star", 0.3)).triple == ("circle", "red", "blue")
    assert check(changed(circle, "a red star", 0.9)).triple == ("star", "red", "blue")
    assert check(changed(circle, "a green circle", 0.3)).colour != "green"
    assert check(changed(circle, "a green circle", 0.9)).triple == ("circle", "green", "blue")


def test_little_strength_keeps_the_picture(circle: Image.Image) -> None:
    before = np.asarray(circle, np.float32)
    little, much = (
        float(np.abs(np.asarray(changed(circle, "a red circle", s), np.float32) - before).mean())
        for s in (0.3, 0.9)
    )
    assert little < 3.0  # of 255; encoding and decoding alone cost about 1
    assert much > 2 * little


def test_strength_is_the_part_of_the_steps_that_is_done(circle: Image.Image) -> None:
    pipe = demo_pipeline()
    for strength, steps in ((0.3, 6), (0.9, 18), (1.0, 20)):
        run = pipe.start("a red star", image=circle, strength=strength, steps=20, seed=2)
        assert run.steps == steps


@pytest.mark.parametrize("strength", [None, 0.8])
def test_repainting_changes_the_inside_only(circle: Image.Image, strength: float | None) -> None:
    inside = np.zeros((128, 128), np.uint8)
    inside[16:112, 16:112] = 255
    result = demo_pipeline().generate(
        f"a green star {GROUND}",
        image=circle,
        mask=Image.fromarray(inside),
        strength=strength,
        seed=1,
    )
    before, after = np.asarray(circle), np.asarray(result.image)
    np.testing.assert_array_equal(after[inside == 0], before[inside == 0])
    assert check(result.image).triple == ("star", "green", "blue")


def test_a_batch_of_given_pictures(circle: Image.Image) -> None:
    pipe, prompt = demo_pipeline(), f"a red circle {GROUND}"
    other = pipe.generate(f"a green star {GROUND}", seed=3).image
    options = {"strength": 0.5, "steps": 8}
    both = pipe.generate(prompt, image=[circle, other], seed=5, **options)
    for index, image in enumerate((circle, other)):
        alone = pipe.generate(prompt, image=image, seed=5 + index, **options)
        np.testing.assert_array_equal(both.latents[index], alone.latents[0])


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm2", "ddim"])
@pytest.mark.parametrize("cut", [0.3, 0.5, 0.8])
def test_a_divided_schedule_equals_the_whole(sampler: str, cut: float) -> None:
    pipe, options = demo_pipeline(), {"steps": 10, "sampler": sampler, "seed": 1}
    prompt = f"a red circle {GROUND}"
    whole = pipe.start(prompt, **options)
    first = pipe.start(prompt, denoising_end=cut, **options)
    for run in (whole, first):
        while not run.done:
            run.step()
    second = pipe.start(prompt, denoising_start=cut, latents=first.latents, **options)
    assert first.steps + second.steps == whole.steps
    assert second.sigma == first.sigma > 0
    while not second.done:
        second.step()
    assert np.abs(second.latents - whole.latents).max() <= 1e-4
