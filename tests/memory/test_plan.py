"""Plans: their figures against what networks take, and what they say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine import _core
from sdengine.api import DEMO_MODEL
from sdengine.errors import ParameterError
from sdengine.memory import ground
from sdengine.memory.footprint import Stage, _most_held
from sdengine.memory.rehearsal import Asked, Rehearsal, Work

from .conftest import PROMPT

GRID: dict[str, dict[str, Any]] = {
    "one branch": {"guidance_scale": 1.0},
    "guided": {"guidance_scale": 5.0},
    "batch": {"batch_size": 3},
    "size": {"width": 192, "height": 64},
    "long prompt": {"prompt": PROMPT + ", a very large green square" * 20},
    "schedule": {"prompt": "a [red:blue:0.5] circle", "steps": 4},
    "tiles": {"width": 256, "tiled_diffusion": True},
    "layers": {
        "guidance": sdengine.Guidance(skip_layers=sdengine.guidance.SkipLayers(["mid_block"]))
    },
    "image": {"image": Image.new("RGB", (128, 128), "red"), "strength": 0.5},
    "two texts": {"prompt": [PROMPT, PROMPT + ", a large square" * 20], "batch_size": 2},
}


SLACK = 3 * 10**7
"""Bytes by which a process may have grown between two plans."""


def stage(plan: sdengine.Plan, name: str) -> Stage:
    return next(stage for stage in plan.stages if stage.name == name)


@pytest.mark.parametrize("name", GRID)
def test_activations_of_steps_are_those_that_were_planned(
    pipe: sdengine.Pipeline, name: str
) -> None:
    options = {"steps": 2, "seed": 1, "prompt": PROMPT, "batch_size": 1, **GRID[name]}
    planned = stage(pipe.plan(**options), "steps")
    for network in pipe.networks.values():
        network.release()
    run = pipe.start(**options)
    most = 0
    while not run.done:
        run.step()
        most = max(most, pipe.denoiser.activation_bytes)
    assert planned.parts[0].activations == most


def test_what_texts_became_is_still_there_while_a_picture_is_decoded(
    pipe: sdengine.Pipeline,
) -> None:
    """Of T5 it is some 20 MB."""
    short, long = pipe.plan(prompt=PROMPT), pipe.plan(prompt=GRID["long prompt"]["prompt"])
    grown = stage(long, "steps").arrays - stage(short, "steps").arrays
    assert grown > 0
    assert stage(long, "decode").arrays - stage(short, "decode").arrays == grown


def test_decoding_in_tiles_takes_what_was_planned(pipe: sdengine.Pipeline) -> None:
    plan = pipe.plan(width=512, height=512, steps=1)
    assert plan.tile == 0
    limit = plan.smallest_limit + SLACK
    small = pipe.plan(width=512, height=512, steps=1, memory_limit=limit)
    assert small.fits
    assert small.tile in (32, 48)
    assert stage(small, "decode").networks < stage(plan, "decode").networks


def test_nothing_is_computed(pipe: sdengine.Pipeline) -> None:
    for network in pipe.networks.values():
        network.release()
    before = {name: network.graphs_built for name, network in pipe.networks.items()}
    pipe.plan(width=1024, height=1024, batch_size=4)
    assert {name: network.graphs_built for name, network in pipe.networks.items()} == before
    assert all(network.activation_bytes == 0 for network in pipe.networks.values())


def test_limits_decide(pipe: sdengine.Pipeline) -> None:
    free = pipe.plan(width=512, height=512, batch_size=2)
    assert free.fits
    assert not free.needed
    assert free.entries == 4
    assert free.placement.together == 0
    limit = free.smallest_limit + SLACK
    least = pipe.plan(width=512, height=512, batch_size=2, memory_limit=limit)
    assert least.fits
    assert least.peak_memory <= limit < free.peak_memory
    refused = pipe.plan(width=512, height=512, batch_size=2, memory_limit=10**6)
    assert not refused.fits
    assert "memory_limit=" in refused.needed[0]
    assert refused.smallest_limit == pytest.approx(free.smallest_limit, abs=SLACK)


def test_cutting_is_no_finer_than_it_must_be(
    pipe: sdengine.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ground, "resident_bytes", lambda: (200 << 20, 50 << 20))  # it grows
    options = {"width": 512, "height": 512, "batch_size": 4}
    peaks = []
    whole = pipe.plan(**options)
    limit = stage(whole, "steps")
    for share in (1.0, 0.55, 0.3, 0.16):
        activations = limit.parts[0].activations
        allowed = whole.device_bytes(limit) - round((1 - share) * activations) + 10**6
        plan = pipe.plan(**options, memory_limit=allowed)
        assert plan.device_bytes(stage(plan, "steps")) <= allowed
        peaks.append(plan.placement.together)
    assert peaks == [0, 4, 2, 1]


def test_a_plan_is_data(pipe: sdengine.Pipeline) -> None:
    plan = pipe.plan()
    told = json.loads(json.dumps(plan.as_dict()))
    assert told["peak_memory"] == plan.peak_memory == max(s["device"] for s in told["stages"])
    assert (told["width"], told["height"]) == (128, 128)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.width = 3  # type: ignore[misc]
    text = str(plan)
    for word in ("unet", "vae_decoder", "activations", "it fits", "smallest"):
        assert word in text
    assert "the smallest that works" in str(pipe.plan(memory_limit="1MB"))


def test_the_second_pass_is_planned_too(pipe: sdengine.Pipeline) -> None:
    plain, hires = pipe.plan(128, 128), pipe.plan(128, 128, hires_scale=2)
    assert [s.name for s in hires.stages] == ["text_encoder", "steps", "steps of hires", "decode"]
    assert (hires.width, hires.height) == (256, 256)
    assert stage(hires, "steps") == stage(plain, "steps")
    second = stage(hires, "steps of hires").parts[0]
    assert second.activations > stage(hires, "steps").parts[0].activations


@pytest.mark.parametrize("upscaler", ["lanczos", "latent-bicubic"])
def test_a_second_pass_over_pictures(pipe: sdengine.Pipeline, upscaler: str) -> None:
    plan = pipe.plan(128, 128, hires_scale=2, hires_upscaler=upscaler)
    assert ("encode" in [s.name for s in plan.stages]) == (upscaler == "lanczos")


def test_given_pictures_are_encoded_in_the_plan(pipe: sdengine.Pipeline) -> None:
    image = Image.new("RGB", (256, 256))
    names = [s.name for s in pipe.plan(image=image, strength=0.5).stages]
    assert names == ["text_encoder", "encode", "steps", "decode"]


def test_options_are_checked(pipe: sdengine.Pipeline) -> None:
    for options in ({"width": 3}, {"steps": 0}, {"nonsense": 1}, {"memory_limit": "big"}):
        with pytest.raises(ParameterError):
            pipe.plan(**options)


def test_a_rehearsal_leaves_the_pipeline_as_it_is(pipe: sdengine.Pipeline) -> None:
    before = pipe.generate(PROMPT, steps=2, seed=3).latents
    pipe.plan(256, 256, batch_size=2, prompt="another", hires_scale=2)
    assert np.array_equal(pipe.generate(PROMPT, steps=2, seed=3).latents, before)


def test_kept_graphs_count_together() -> None:
    network = Rehearsal.__new__(Rehearsal)  # any object: networks are not asked here
    asked = [
        Asked({"latents": [n]}, {}, (), kept)
        for n, kept in ((1, 2), (2, 2), (4, 2), (1, 3), (8, 3))
    ]
    work = Work("unet", network, tuple(asked))  # type: ignore[arg-type]
    sizes = {one.key: one.shapes["latents"][0] for one in asked}
    assert _most_held(work, sizes) == 13  # 4, 1 and 8; those before had left


def test_rehearsed_networks_answer_with_noise(pipe: sdengine.Pipeline) -> None:
    twin = pipe.denoiser.rehearsal()
    width = pipe.model.context_width
    inputs = {
        "latents": np.zeros((1, 4, 16, 16), np.float32),
        "timesteps": np.zeros(1, np.float32),
        "context": np.zeros((1, 77, width), np.float32),
    }
    found = twin.run(inputs)["prediction"]
    assert found.shape == (1, 4, 16, 16)
    assert 0.5 < found.std() < 0.65
    ((shapes, options, _, kept),) = twin.rehearsed
    assert (shapes["latents"], options, kept) == ([1, 4, 16, 16], {}, 2)
    assert pipe.denoiser.rehearsed == []
    assert isinstance(twin, _core.Network)


def test_the_command(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from sdengine.cli import main

    runner = CliRunner()
    done = runner.invoke(
        main, ["plan", "--width", "256", "--height", "256", "--memory-limit", "20GB"]
    )
    assert done.exit_code == 0  # whatever other tests left in this process
    assert "256x256 on cpu (limit 20.00 GB)" in done.output
    done = runner.invoke(main, ["plan", "--memory-limit", "2MB", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.output)["fits"] is False
    done = runner.invoke(main, ["plan", str(tmp_path / "none.gguf")])
    assert done.exit_code == 2
    assert "none.gguf" in done.output


def test_as_many_weights_stay_as_the_limit_allows() -> None:
    """On a device with memory of its own, which counts every byte."""
    pipe = sdengine.load(DEMO_MODEL, device="cpu:portable", prompt_cache=False)
    options: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "prompt": PROMPT}
    free = stage(pipe.plan(**options), "steps").parts[0]
    bare = pipe.plan(**options, memory_limit=pipe.plan(**options).smallest_limit)
    least, whole = stage(bare, "steps").networks, free.device
    expected = pipe.generate(seed=1, **options).latents
    keeps = []
    for limit in (least + (whole - least) // 3, least + 2 * (whole - least) // 3):
        limited = sdengine.load(
            DEMO_MODEL, device="cpu:portable", prompt_cache=False, memory_limit=limit
        )
        plan = limited.plan(**options)
        part = stage(plan, "steps").parts[0]
        keeps.append(part.keep)
        assert part.policy == "stream"
        assert part.residence.startswith("stream, ")
        assert f"{part.residence}  " in str(plan)
        assert limit - 2 * 10**6 < plan.device_bytes(stage(plan, "steps")) <= limit
        assert np.array_equal(limited.generate(seed=1, **options).latents, expected)
        assert limited.devices.denoiser.peak_bytes <= limit
        assert limited.memory.placement.keep == {"unet": part.keep}
    assert 0 < keeps[0] < keeps[1] < free.weights


def test_what_runs_once_keeps_nothing() -> None:
    pipe = sdengine.load(DEMO_MODEL, device="cpu:portable")
    limit = pipe.plan().smallest_limit + 10**6
    for of_stage in pipe.plan(memory_limit=limit).stages:
        if of_stage.name == "text_encoder":
            assert of_stage.parts[0].keep == 0
