"""The option ``cache`` of a generation, on the demo models."""

from __future__ import annotations

import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from demo.checker import check
from demo.evaluate import HELD_OUT
from demo.shapes import draw_edges, random_scene
from sdengine import ParameterError, UnwiseWarning
from sdengine.adapters import Lora
from sdengine.api import demo_pipeline
from sdengine.metadata import format_parameters
from sdengine.step_cache import FIGURES, MODES, figures, unwise
from tests.guidance.conftest import relative_error

PROMPT = "a red circle on a blue background"
DEMO = Path(HELD_OUT).parent
STEPS = 12
SAME: dict[str, Any] = {"steps": STEPS, "seed": 3, "guidance_scale": 3.0}


@pytest.fixture(scope="module", params=["unet", "transformer"])
def pipe(request: pytest.FixtureRequest) -> sdengine.Pipeline:
    return demo_pipeline() if request.param == "unet" else sdengine.load(DEMO / "dit.gguf")


def finished(run: sdengine.Run) -> sdengine.Run:
    while not run.done:
        run.step()
    return run


def test_modes_go_further_and_show_the_same(pipe: sdengine.Pipeline) -> None:
    runs = {mode: finished(pipe.start(PROMPT, cache=mode, **SAME)) for mode in MODES}
    off = runs["off"]
    np.testing.assert_array_equal(off.latents, finished(pipe.start(PROMPT, **SAME)).latents)
    errors = {mode: relative_error(run.latents, off.latents) for mode, run in runs.items()}
    assert 0.0 == errors["off"] < errors["balanced"] < errors["fast"] < 0.4
    assert 0.0 == off.reused < runs["balanced"].reused < runs["fast"].reused < 0.8
    for run in runs.values():
        assert run.evaluations == off.evaluations
        assert check(run.result().image).triple == ("circle", "red", "blue")


@pytest.mark.parametrize("sampler", ["heun", "dpm++2m", "dpm2", "unipc"])
def test_samplers(pipe: sdengine.Pipeline, sampler: str) -> None:
    options = {**SAME, "sampler": sampler}
    run = finished(pipe.start(PROMPT, cache="balanced", **options))
    assert run.reused >= 0.25
    assert relative_error(run.latents, finished(pipe.start(PROMPT, **options)).latents) < 0.2


def test_pickled_in_the_middle(pipe: sdengine.Pipeline) -> None:
    run = pipe.start([PROMPT, "a green star on white"], cache="fast", **SAME)
    for _ in range(7):
        run.step()
    assert run.reused > 0.0
    again, fork = pickle.loads(pickle.dumps(run)), run.fork()
    expected = finished(run)
    for one in (finished(again), finished(fork)):
        np.testing.assert_array_equal(one.latents, expected.latents)
        assert one.reused == expected.reused


def test_a_batch_is_as_each_alone(pipe: sdengine.Pipeline) -> None:
    prompts = [PROMPT, "a green star on white"]
    both = finished(pipe.start(prompts, cache="fast", **SAME)).latents
    for index, prompt in enumerate(prompts):
        alone = pipe.start(prompt, cache="fast", **{**SAME, "seed": 3 + index})
        np.testing.assert_array_equal(both[index], finished(alone).latents[0])


def test_a_prompt_that_changes_takes_nothing_over(pipe: sdengine.Pipeline) -> None:
    steady = finished(pipe.start(PROMPT, cache="fast", **SAME))
    turning = finished(pipe.start("a [red|green] circle on blue", cache="fast", **SAME))
    assert turning.reused == 0.0 < steady.reused


def test_other_tasks(pipe: sdengine.Pipeline) -> None:
    image = Image.effect_noise((128, 128), 80).convert("RGB")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (32, 32, 96, 96))
    for more in ({"image": image, "strength": 0.9}, {"image": image, "mask": mask}):
        plain = finished(pipe.start(PROMPT, **more, **SAME))
        run = finished(pipe.start(PROMPT, cache="balanced", **more, **SAME))
        assert run.reused > 0.0
        assert relative_error(run.latents, plain.latents) < 0.3


def test_a_hires_pass_begins_with_nothing() -> None:
    run = demo_pipeline().start(PROMPT, cache="fast", hires_scale=1.5, **SAME)
    second = finished(run).next_pass()
    assert second is not None
    second.step()
    assert second.reused == 0.0
    assert finished(second).reused > 0.3


def test_controls_and_loras() -> None:
    lora = DEMO / "frame_lora.safetensors"
    pipe = sdengine.load(
        sdengine.api.DEMO_MODEL, loras=[lora], controlnets=[DEMO / "edges_controlnet.gguf"]
    )
    hint = draw_edges(random_scene(("circle", "red", "blue"), random.Random(4)))
    plain = finished(pipe.start(PROMPT, control_images=hint, **SAME))
    run = finished(pipe.start(PROMPT, control_images=hint, cache="balanced", **SAME))
    assert run.reused > 0.3
    assert relative_error(run.latents, plain.latents) < 0.3
    # A strength that changes from step to step leaves nothing to take over.
    changing = {"loras": Lora(lora, tuple(i / STEPS for i in range(STEPS))), "control_scales": 0}
    assert finished(pipe.start(PROMPT, cache="fast", **changing, **SAME)).reused == 0.0


def test_where_strengths_change_nothing_is_taken_over(tmp_path: Path) -> None:
    loras = (Lora("a", start=0.5), Lora("b", (1.0, 1.0, 0.5)), Lora("c"))
    interval, threshold, fresh = figures("fast", "features", 10, loras) or (0, 0.0, [])
    assert (interval, threshold) == (FIGURES["features"]["fast"].interval, 0.0)
    assert fresh == [0, 1, 2, 5]
    assert figures("off", "features", 10, loras) is None
    for modes in FIGURES.values():
        assert set(modes) == set(MODES) - {"off"}


def test_few_steps_are_warned_of() -> None:
    assert unwise("fast", 9) is unwise("off", 4) is None
    with pytest.warns(UnwiseWarning, match="cache='fast' over 4 steps"):
        demo_pipeline().start(PROMPT, steps=4, cache="fast")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo_pipeline().start(PROMPT, steps=4, cache="off")
        demo_pipeline().start(PROMPT, steps=9, cache="fast")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": "slow"}, "cache must be .*off.*balanced.*fast"),
        ({"cache": True}, "cache must be"),
        ({"cache": "fast", "tiled_diffusion": True}, "step caching and tiled_diffusion do not go"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        demo_pipeline().start(PROMPT, **options)


def test_it_stands_in_the_parameters() -> None:
    assert "cache" not in demo_pipeline().start(PROMPT, **SAME).metadata()[0]
    run = demo_pipeline().start(PROMPT, cache="balanced", **SAME)
    assert run.metadata()[0]["cache"] == "balanced"
    assert "Step cache: balanced" in format_parameters(run.metadata()[0])
