"""What is written into a picture makes it again: options -> text -> options, on the demo model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdengine import Pipeline, TiledDiffusion, load
from sdengine.api import demo_pipeline
from sdengine.errors import ParameterError
from sdengine.guidance import (
    AdaptiveProjection,
    Guidance,
    MimicScale,
    NormalizedAttention,
    PerturbedAttention,
    SkipLayers,
)
from sdengine.metadata import format_parameters, parse_parameters
from sdengine.options import DEFAULTS, GenerateOptions, guidance_of, restored
from sdengine.run import Run
from sdengine.sampling import SAMPLERS, SCHEDULES
from tests.unet_models import tiny_folder

PICTURE = Image.effect_noise((128, 128), 90).convert("RGB")
MASK = Image.new("L", (128, 128))
MASK.paste(255, (32, 32, 96, 96))


def again(run: Run, index: int = 0, pipe: Pipeline | None = None, **pictures: Any) -> Run:
    """The run that the text in a picture describes."""
    found = parse_parameters(format_parameters(run.described[index]))
    options = restored(found)
    return (pipe or demo_pipeline()).start(
        found["prompt"], found["negative_prompt"] or None, **options, **pictures
    )


OPTIONS: list[dict[str, Any]] = [
    {},
    {"width": 64, "height": 96, "steps": 5, "guidance_scale": 2.5, "seed": 2**64 - 9},
    {"sampler": "euler_a", "eta": 0.3, "s_noise": 1.01},
    {"sampler": "heun", "s_churn": 1.5, "s_tmin": 0.5, "s_tmax": 9.25},
    {"sampler": "ipndm", "order": 3, "schedule": "exponential"},
    {"sampler": "dpm++2m_sde", "brownian": False},
    {"sigmas": [14.6, 3.3, 0.1, 0]},
    {"timesteps": (999, 500, 1), "sampler": "lms"},
    {"steps": 3, "guidance_scale": (5.0, 2.5, 1.0)},
    {"variation_seed": 5, "variation_strength": 0.25},
    {"compat": "a1111", "clip_skip": 2},
    {"compat": "a1111", "noise": "torch-cpu"},
    {"compat": "diffusers", "clip_skip": 0},
    {"compat": "comfyui", "weighting": "a1111"},
    {"noise": "torch-cuda", "weighting": "compel", "seamless": "xy"},
    {"seamless": "x", "denoising_end": 0.5},
    {"cache": "balanced", "steps": 12},
    {"tiled_diffusion": True, "width": 256},
    {"tiled_diffusion": TiledDiffusion(24, 16, "uniform")},
    {"hires_scale": 1.5, "hires_upscaler": "latent-bicubic", "hires_strength": 0.5},
    {"hires_width": 192, "hires_height": 256, "hires_upscaler": "lanczos", "hires_steps": 9},
    {
        "hires_scale": 2.0,
        "hires_sampler": "euler_a",
        "hires_schedule": "karras",
        "hires_guidance_scale": 4.5,
        "hires_prompt": "sharp, [a|b]",
        "hires_negative_prompt": "soft",
    },
    {"guidance_rescale": 0.7, "guidance": Guidance(interval=(0.2, 0.8))},
    {"guidance": Guidance(scale=4.0, projection=AdaptiveProjection(0.25, 0.0, -0.6))},
    {"guidance": Guidance(mimic=MimicScale(), normalized_attention=NormalizedAttention())},
    {
        "guidance": Guidance(
            skip_layers=SkipLayers(("mid_block",), interval=(0.0, 0.5)),
            perturbed_attention=PerturbedAttention(("mid_block", "up_blocks.1"), 2.0),
        )
    },
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "defaults")
def test_options_come_back(options: dict[str, Any]) -> None:
    options = {"seed": 3, **options}
    run = demo_pipeline().start("a (red:1.2) circle, [a|b]", "blurry", **options)
    assert again(run).parameters == run.parameters


@pytest.mark.filterwarnings("ignore::sdengine.UnwiseWarning")
def test_every_sampler_and_schedule_comes_back() -> None:
    for name in SAMPLERS:
        assert parse_parameters(format_parameters({"sampler": name}))["sampler"] == name
    for name in SCHEDULES:
        assert parse_parameters(format_parameters({"schedule": name}))["schedule"] == name


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 11, "sampler": "euler_a"},
        {"seed": 11, "sampler": "euler_a", "variation_seed": 5, "variation_strength": 0.5},
        {"seed": 11, "sampler": "euler_a", "compat": "comfyui"},
    ],
    ids=["seeds", "variation", "one-generator"],
)
def test_each_picture_of_a_batch_can_be_made_again(options: dict[str, Any]) -> None:
    run = demo_pipeline().start("a red circle", steps=3, batch_size=2, **options)
    first = run.latents
    while not run.done:
        run.step()
    for index in range(2):
        single = again(run, index)
        while not single.done:
            single.step()
        position = index if len(single.latents) == 2 else 0
        np.testing.assert_array_equal(single.latents[position], run.latents[index])
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize(
    ("pictures", "task", "strength"),
    [
        ({"image": PICTURE}, "image to image", 0.75),
        ({"image": PICTURE, "strength": 1.0}, "image to image", 1.0),
        ({"image": PICTURE, "mask": MASK, "resize_mode": "pad"}, "inpainting", 1.0),
    ],
)
def test_tasks_come_back(pictures: dict[str, Any], task: str, strength: float) -> None:
    run = demo_pipeline().start("a red circle", seed=1, steps=4, **pictures)
    found = parse_parameters(format_parameters(run.metadata()[0]))
    assert (found["task"], found["strength"]) == (task, strength)
    given = {name: pictures[name] for name in ("image", "mask") if name in pictures}
    copy = again(run, **given)
    assert copy.parameters == run.parameters
    np.testing.assert_array_equal(copy.latents, run.latents)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(tiny_folder(tmp_path_factory.mktemp("sdxl") / "base", "sdxl"))


SIZE = {"width": 64, "height": 64, "steps": 2, "seed": 1}


def test_what_an_sdxl_is_told_comes_back(sdxl: Pipeline) -> None:
    sizes = {"original_width": 512, "crop_top": 8.5}
    negative_sizes = {"crop_top": 0}
    run = sdxl.start(
        *("a cat", "ugly"),
        prompt_2="a dog",
        negative_prompt_2="bad",
        sizes=sizes,
        negative_sizes=negative_sizes,
        **SIZE,
    )
    found = run.metadata()[0]
    assert (found["sizes"], found["negative_sizes"]) == (sizes, negative_sizes)
    assert again(run, pipe=sdxl).parameters == run.parameters
    plain = sdxl.start("a cat", **SIZE)
    assert (plain.metadata()[0]["sizes"], plain.metadata()[0]["negative_sizes"]) == (None, None)
    assert again(plain, pipe=sdxl).parameters == plain.parameters


def test_both_guidances_of_a_distilled_model_come_back(tmp_path: Path) -> None:
    pipe = load(tiny_folder(tmp_path / "lcm", "sd1-lcm"))
    run = pipe.start("a cat", "ugly", guidance_scale=6.5, true_cfg_scale=2.0, **SIZE)
    assert again(run, pipe=pipe).parameters == run.parameters


def test_a_refined_picture_names_both_models(sdxl: Pipeline, tmp_path: Path) -> None:
    refiner = load(tiny_folder(tmp_path / "fine", "refiner"))
    options = {**SIZE, "steps": 5, "sampler": "euler"}
    result = sdxl.generate("a cat", refiner=refiner, denoising_end=0.6, **options)
    found = parse_parameters(format_parameters(result.metadata[0]))
    assert [found[k] for k in ("model", "refiner", "denoising_end")] == ["base", "fine", 0.6]
    assert "denoising_start" not in found
    repeated = sdxl.generate(found["prompt"], refiner=refiner, **restored(found))
    np.testing.assert_array_equal(repeated.latents, result.latents)


def test_the_text_of_an_unusual_picture_is_readable() -> None:
    run = demo_pipeline().start(
        "a cat",
        seed=1,
        steps=2,
        sampler="euler_a",
        schedule="karras",
        guidance=Guidance(
            scale=4.0, interval=(0.0, 0.5), perturbed_attention=PerturbedAttention(scale=2.0)
        ),
        variation_seed=2,
        variation_strength=0.1,
        compat="a1111",
    )
    assert format_parameters({**run.metadata()[0], "version": "v"}) == (
        "a cat\nSteps: 2, Sampler: Euler a, Schedule type: Karras, CFG scale: 4, Seed: 1, Size: 128x128, Model: demo, "
        "Variation seed: 2, Variation seed strength: 0.1, RNG: NV, Conventions: a1111, CFG interval: 0 0.5, "
        "Perturbed attention: layers=mid_block scale=2 interval=0/1, Version: v"
    )


def test_foreign_pictures_restore_what_is_known_here() -> None:
    text = (
        "p\nSteps: 28, Sampler: DPM++ 2M SDE Heun, Schedule type: Uniform, CFG scale: 7, Seed: 12, Size: 832x1216, "
        "Model: x, Denoising strength: 0.5, RNG: CPU, Tiling: True, Eta: 0.67, Hires upscale: 2, Version: v1.10.1"
    )
    assert restored(parse_parameters(text)) == {
        "steps": 28,
        "sampler": "dpm++2m_sde_heun",
        "schedule": "discrete",
        "guidance_scale": 7.0,
        "seed": 12,
        "width": 832,
        "height": 1216,
        "hires_scale": 2.0,
        "hires_strength": 0.5,
        "noise": "torch-cpu",
        "seamless": "xy",
        "eta": 0.67,
    }


def test_what_control_networks_were_told_comes_back() -> None:
    told = {"control_scales": (0.5, 1.0), "control_end": (0.8, 1.0), "guess_mode": True}
    told |= {"control_mode": "prompt", "ip_scale": 0.6}
    found = parse_parameters(format_parameters({"prompt": "a", **told}))
    assert restored(found) == told


def test_kinds_of_guidance_by_name() -> None:
    assert guidance_of({"perturbed_attention": {"layers": "mid_block"}}) == Guidance(
        perturbed_attention=PerturbedAttention()
    )
    with pytest.raises(
        ParameterError,
        match="no guidance 'magic'; choose one of interval, norms, projection",
    ):
        guidance_of({"magic": {}})
    with pytest.raises(
        ParameterError, match="takes eta, norm_threshold, momentum; given were etta"
    ):
        guidance_of({"projection": {"etta": 1}})


def test_every_option_is_written_or_is_known_to_be_no_text() -> None:
    written = set(asdict(demo_pipeline().start("a", seed=1).parameters))
    composed = {"guidance_scale", "true_cfg_scale", "guidance_rescale", "image_guidance_scale"}
    pictures = {"image", "mask", "depth", "resize_mode", "latents", "conditioning"}
    pictures |= {
        "control_images",
        "ip_images",
        "references",
        "loras",
    }  # LoRAs are named beside the parameters
    sizes = {"aspect_ratio", "tile"}
    sizes |= {name for name in DEFAULTS if name.startswith("hires_")}  # one field, `hires`
    assert set(GenerateOptions.__annotations__) == set(DEFAULTS)
    assert set(DEFAULTS) - written == composed | pictures | sizes
