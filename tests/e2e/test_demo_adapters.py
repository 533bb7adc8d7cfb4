"""The demo model's LoRA and ControlNet: do they do what they say, alone, together and on a quantized model?

The LoRA frames every picture in the figure's colour; the ControlNet puts the figure where the edges are
(demo/MODEL_CARD.md, which has the figures for all held-out captions).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdengine
from demo.checker import MIN_IOU, check, check_framed
from demo.evaluate import HELD_OUT, control_scenes
from demo.shapes import (
    HeldOut,
    Scene,
    draw,
    draw_edges,
    draw_framed,
    draw_mask,
    held_out_triples,
    random_scene,
    read_held_out,
)
from sdengine import preprocessors
from sdengine.api import DEMO_MODEL, demo_pipeline

DEMO = Path(HELD_OUT).parent
LORA = DEMO / "frame_lora.safetensors"
CONTROLNET = DEMO / "edges_controlnet.gguf"
TESTS = read_held_out(HELD_OUT)[::20]
PROMPT = "a red circle on a blue background"
ASIDE = Scene("circle", "red", "blue", radius=26.0, centre=(38.0, 88.0))


@pytest.fixture(scope="module")
def pipe() -> sdengine.Pipeline:
    return sdengine.load(DEMO_MODEL, loras=[LORA])


@pytest.fixture(scope="module")
def controlled() -> sdengine.Pipeline:
    return sdengine.load(DEMO_MODEL, controlnets=[CONTROLNET])


def pictures(
    pipe: sdengine.Pipeline, tests: Sequence[HeldOut], **options: object
) -> list[Image.Image]:
    return [pipe.generate(test.caption, seed=test.seed, **options).image for test in tests]


def is_there(image: Image.Image, scene: Scene) -> bool:
    mask = np.asarray(draw_mask(scene.shape, scene.radius, scene.centre)) >= 128
    return check(image).covers(mask) >= MIN_IOU


# -------------------------------------------------------------------------------------------- LoRA
def test_files_are_small() -> None:
    assert LORA.stat().st_size < 300_000
    assert CONTROLNET.stat().st_size < 3_000_000


def test_the_checker_knows_frames() -> None:
    rng = random.Random(1)
    scenes = [random_scene(triple, rng) for triple in held_out_triples()]
    framed = [check_framed(draw_framed(scene)) for scene in scenes]
    assert all(v.matches(s.triple) and found for (v, found), s in zip(framed, scenes, strict=True))
    assert not any(check_framed(draw(scene))[1] for scene in scenes)


def test_the_lora_frames_what_the_prompt_says(pipe: sdengine.Pipeline) -> None:
    judged = [check_framed(image) for image in pictures(pipe, TESTS)]
    assert np.mean([framed for _, framed in judged]) >= 0.8
    right = [verdict.matches(t.triple) for (verdict, _), t in zip(judged, TESTS, strict=True)]
    assert np.mean(right) >= 0.7


@pytest.mark.parametrize("loras", [[], [(LORA, 0.0)]])
def test_without_the_lora_there_is_no_frame(pipe: sdengine.Pipeline, loras: list[object]) -> None:
    images = pictures(pipe, TESTS[:5], loras=loras)
    assert not any(framed for _, framed in map(check_framed, images))
    right = [check(image).matches(t.triple) for image, t in zip(images, TESTS[:5], strict=True)]
    assert np.mean(right) >= 0.8


def test_a_tag_calls_the_lora(pipe: sdengine.Pipeline) -> None:
    tagged = pipe.generate(f"{PROMPT} <lora:{LORA.stem}:1>", seed=1)
    assert check_framed(tagged.image)[1]
    untagged = pipe.generate(f"{PROMPT} <lora:{LORA.stem}:0>", seed=1)
    assert not check_framed(untagged.image)[1]


def test_the_lora_on_four_bits_and_merged(tmp_path: Path) -> None:
    sdengine.convert(DEMO_MODEL, tmp_path / "small.gguf", "q4_0")
    sdengine.convert(DEMO_MODEL, tmp_path / "merged.gguf", "q8_0", loras=[LORA])
    for model, loras in (("small.gguf", [LORA]), ("merged.gguf", [])):
        made = sdengine.load(tmp_path / model, loras=loras)
        verdict, framed = check_framed(made.generate(PROMPT, seed=1).image)
        assert framed
        assert verdict.triple == ("circle", "red", "blue")


# -------------------------------------------------------------------------------------- ControlNet
def test_the_figure_is_where_the_edges_are(controlled: sdengine.Pipeline) -> None:
    there, right = [], []
    for test, scene in zip(TESTS, control_scenes(TESTS), strict=True):
        image = controlled.generate(
            test.caption, seed=test.seed, control_images=[draw_edges(scene)]
        ).image
        there.append(is_there(image, scene))
        right.append(check(image).triple[1:] == test.triple[1:])
    assert np.mean(there) >= 0.8
    assert np.mean(right) >= 0.8


def test_without_control_the_figure_is_in_the_middle(controlled: sdengine.Pipeline) -> None:
    edges = {"control_images": [draw_edges(ASIDE)], "seed": 1}
    assert is_there(controlled.generate(PROMPT, **edges).image, ASIDE)
    assert not is_there(controlled.generate(PROMPT, control_scales=0.0, **edges).image, ASIDE)


def test_edges_of_a_picture(controlled: sdengine.Pipeline) -> None:
    # Red and blue are alike in brightness, which is all that canny sees.
    edges = preprocessors.canny(draw(replace(ASIDE, colour="white")))
    image = controlled.generate(
        "a yellow circle on a green background", control_images=[edges], seed=1
    ).image
    assert is_there(image, ASIDE)
    assert check(image).triple == ("circle", "yellow", "green")


def test_frame_and_edges_together(controlled: sdengine.Pipeline) -> None:
    scene = Scene("star", "red", "blue", radius=30.0, centre=(78.0, 56.0))
    image = controlled.generate(
        "a red star on a blue background", control_images=[draw_edges(scene)], loras=[LORA], seed=1
    ).image
    assert check_framed(image)[1]
    inside = Image.new("RGB", image.size, image.getpixel((20, 20)))
    inside.paste(image.crop((18, 18, 110, 110)), (18, 18))
    assert is_there(inside, scene)


# ------------------------------------------------------------------------------------- repainting
@pytest.mark.parametrize(
    ("thing", "place"), [("yellow heart", "right"), ("black star", "right"), ("white moon", "left")]
)
def test_one_of_two_shapes_is_repainted(thing: str, place: str) -> None:
    ground = "on a blue background"
    halves = {"left": (0, 0, 128, 128), "right": (128, 0, 256, 128)}
    both = Image.new("RGB", (256, 128))
    for half, prompt, seed in (("left", "a red circle", 1), ("right", "a green star", 3)):
        image = demo_pipeline().generate(f"{prompt} {ground}", seed=seed).image
        both.paste(image, halves[half][:2])
    mask = Image.new("L", both.size, 0)
    mask.paste(255, halves[place])
    result = demo_pipeline().generate(f"a {thing} {ground}", image=both, mask=mask, seed=1).image
    other = next(half for half in halves if half != place)
    np.testing.assert_array_equal(
        np.asarray(result.crop(halves[other])), np.asarray(both.crop(halves[other]))
    )
    colour, shape = thing.split()
    assert check(result.crop(halves[place])).triple == (shape, colour, "blue")
