"""The demo model inside the package: do its pictures show what the prompts say?

The checker judges colour, background and shape from pixels (demo/checker.py); the captions are held out from training.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdengine
from demo.checker import check
from demo.evaluate import HELD_OUT
from demo.shapes import read_held_out
from sdengine.api import DEMO_MODEL, demo_pipeline
from sdengine.sampling import SAMPLERS, SCHEDULES

TESTS = read_held_out(HELD_OUT)


def accuracy(pipe: sdengine.Pipeline, count: int, **options: object) -> float:
    """Part of the first `count` held-out captions, spread over all of them, that come out all right."""
    tests = TESTS[:: max(1, len(TESTS) // count)][:count]
    pictures = [
        pipe.generate(test.caption, seed=test.seed, steps=20, **options).image for test in tests
    ]
    right = [check(image).matches(test.triple) for image, test in zip(pictures, tests, strict=True)]
    return float(np.mean(right))


def test_the_file_is_small_and_complete() -> None:
    assert DEMO_MODEL.stat().st_size <= 10_500_000
    info = sdengine.inspect(DEMO_MODEL).to_dict()
    assert info["family"] == "sd1"
    assert not info["missing"]


def test_one_call() -> None:
    result = sdengine.generate("a red circle on a blue background", seed=1)
    verdict = check(result.image)
    assert verdict.triple == ("circle", "red", "blue")
    assert result.image.size == (128, 128)
    assert result.latents.shape == (1, 4, 16, 16)
    assert result.timings["total"] > 0


@pytest.fixture(scope="module")
def as_shipped() -> float:
    return accuracy(demo_pipeline(), 100)


def test_held_out_captions(as_shipped: float) -> None:
    # All 200 are measured in demo/MODEL_CARD.md.
    assert as_shipped >= 0.85


def test_four_bits(tmp_path: Path, as_shipped: float) -> None:
    path = tmp_path / "demo.gguf"
    sdengine.convert(DEMO_MODEL, path, weight_type="q4_0")
    assert accuracy(sdengine.load(path), 100) >= as_shipped - 0.05


@pytest.mark.parametrize("weight_type", ["f16", "q8_0"])
def test_fast_arithmetic(weight_type: str, as_shipped: float) -> None:
    """Bfloat16, and 8 bits."""
    pipe = sdengine.load(DEMO_MODEL, weight_type=weight_type, arithmetic="fast")
    assert accuracy(pipe, 50) >= as_shipped - 0.05


@pytest.mark.filterwarnings("ignore::sdengine.UnwiseWarning")  # tcd is for distilled models
@pytest.mark.parametrize(
    "sampler", [s for s in SAMPLERS if s != "lcm"]
)  # lcm is for models distilled for it
def test_every_sampler(sampler: str) -> None:
    assert accuracy(demo_pipeline(), 5, sampler=sampler) >= 0.6


# Not for the demo model's noise levels, or not for 20 steps.
OTHER_MODELS = {"ays", "ays_sdxl", "gits", "turbo"}


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s not in OTHER_MODELS])
def test_every_schedule(schedule: str) -> None:
    assert accuracy(demo_pipeline(), 5, schedule=schedule, sampler="dpm++2m") >= 0.6


def test_guidance_one_costs_one_evaluation() -> None:
    pipe = demo_pipeline()
    before = pipe.graphs_built["unet"]
    pipe.generate("a red circle", guidance_scale=1.0, steps=2)
    pipe.generate("a red circle", guidance_scale=3.0, steps=2)
    assert pipe.graphs_built["unet"] <= before + 2


def test_the_same_seed_gives_the_same_picture() -> None:
    first, second = (sdengine.generate("a green star on white", seed=7).image for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_callback_sees_every_step() -> None:
    events: list[sdengine.StepEvent] = []
    sdengine.generate("a red circle on blue", steps=5, callback=events.append)
    assert [event.step for event in events] == [1, 2, 3, 4, 5]
    assert all(event.steps == 5 for event in events)
    sigmas = [event.sigma for event in events]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == 0
    assert events[0].denoised.shape == events[0].latents.shape == (1, 4, 16, 16)


def test_command_line(tmp_path: Path) -> None:
    path = tmp_path / "circle.png"
    command = [sys.executable, "-m", "sdengine", "generate", "a red circle on a blue background"]
    subprocess.run([*command, "--seed", "1", "-o", str(path)], check=True, capture_output=True)
    with Image.open(path) as image:
        assert check(image).triple == ("circle", "red", "blue")
    shown = subprocess.run(
        [sys.executable, "-m", "sdengine", "inspect", str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "a red circle on a blue background" in shown.stdout
    assert "Seed" in shown.stdout or "seed" in shown.stdout


def test_import_is_quick() -> None:
    code = "import time; t = time.process_time(); import sdengine; print(time.process_time() - t)"
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            ).stdout
        )
        for _ in range(3)
    ]
    assert min(times) <= 0.5
