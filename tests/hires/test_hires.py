"""The hires pass against diffusers' pipelines, one after the other, and torch's interpolation between."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdengine
from sdengine import _core, hires, interpolation
from sdengine.api import demo_pipeline
from sdengine.errors import Cancelled, ParameterError
from sdengine.metadata import format_parameters, parse_parameters
from sdengine.options import restored
from sdengine.steps import plan_steps
from tests import upscaler_models
from tests.control.models import build_controlnet

from .conftest import NEGATIVE, PROMPT, SEED, Folders, reference, relative_error

SIZE = {"width": 64, "height": 48}


# ------------------------------ latents
@pytest.mark.parametrize("size", [(14, 18), (13, 20), (21, 9), (5, 6), (7, 9)])
@pytest.mark.parametrize("name", list(hires.LATENT))
def test_latents_are_enlarged_as_torch_does(name: str, size: tuple[int, int]) -> None:
    maps = torch.randn(2, 4, 7, 9, generator=torch.Generator().manual_seed(1))
    mode, antialias = hires.LATENT[name]
    more = {"antialias": antialias} if mode.startswith("b") else {}
    expected = torch.nn.functional.interpolate(maps, size=size, mode=mode, **more).numpy()
    found = interpolation.enlarge(maps.numpy(), size, mode, antialias)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_another_shape_is_covered_and_cut_evenly() -> None:
    maps = np.arange(32, dtype=np.float32).reshape(1, 1, 4, 8)
    wanted = hires.Hires(width=64, height=64, upscaler="latent-nearest")
    found = hires.enlarged_latents(maps, wanted, 8)
    np.testing.assert_array_equal(found, np.repeat(maps[..., 2:6], 2, 2).repeat(2, 3))
    picture = Image.fromarray(maps[0, 0].astype(np.uint8))
    wanted = hires.Hires(width=16, height=16, upscaler="nearest")
    (larger,) = hires.enlarged_pictures([picture], wanted, None, _core.CancelToken())
    expected = np.repeat(maps[0, 0, :, 2:6], 4, 0).repeat(4, 1)
    np.testing.assert_array_equal(np.asarray(larger), expected)


# ------------------------------ both passes
def passes(kind: str, folder: Path, image: Any, first: Any, second: Any) -> Any:
    """Final latents of diffusers' text to image, `image` of its latents, and its image to image."""
    common = {"output_type": "latent", "generator": torch.Generator()}
    small = reference(f"{kind}Pipeline", folder)
    common["generator"].manual_seed(SEED)
    latents = small(PROMPT, negative_prompt=NEGATIVE, **first, **SIZE, **common).images
    large = reference(f"{kind}Img2ImgPipeline", folder)
    common["generator"].manual_seed(SEED)
    return large(
        PROMPT, negative_prompt=NEGATIVE, image=image(small, latents), **second, **common
    ).images.numpy()


def twice(mode: str) -> Any:
    return lambda _, latents: torch.nn.functional.interpolate(latents, scale_factor=2, mode=mode)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sd1", "StableDiffusion"), ("sdxl", "StableDiffusionXL"), ("sd3", "StableDiffusion3")],
)
def test_both_passes_are_those_of_diffusers(folders: Folders, name: str, kind: str) -> None:
    expected = passes(
        kind,
        folders(name),
        twice("bilinear"),
        {"num_inference_steps": 6, "guidance_scale": 5.0},
        {"num_inference_steps": 5, "guidance_scale": 3.5, "strength": 0.6},
    )
    result = sdengine.load(folders(name)).generate(
        *(PROMPT, NEGATIVE),
        **SIZE,
        steps=6,
        guidance_scale=5.0,
        seed=SEED,
        sampler="euler",
        hires_scale=2,
        hires_steps=5,
        hires_strength=0.6,
        hires_guidance_scale=3.5,
    )
    assert result.image.size == (128, 96)
    assert relative_error(result.latents, expected) <= 1e-3


def test_pixels_between_the_passes(folders: Folders) -> None:
    def enlarged(pipe: Any, latents: Any) -> Any:
        with torch.no_grad():
            decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        (picture,) = pipe.image_processor.postprocess(decoded)
        return picture.resize((128, 96), Image.Resampling.LANCZOS)

    common = {"num_inference_steps": 6, "guidance_scale": 5.0}
    expected = passes(
        "StableDiffusion", folders("sd1"), enlarged, common, {**common, "strength": 0.5}
    )
    options = {"steps": 6, "guidance_scale": 5.0, "seed": SEED, "sampler": "euler", **SIZE}
    result = sdengine.load(folders("sd1")).generate(
        *(PROMPT, NEGATIVE),
        **options,
        hires_width=128,
        hires_upscaler="lanczos",
        hires_strength=0.5,
    )
    assert relative_error(result.latents, expected) <= 1e-3


def test_the_second_pass_is_image_to_image_under_the_same_control(
    folders: Folders, tmp_path: Path
) -> None:
    build_controlnet("sd1", seed=1).save_pretrained(tmp_path / "control")
    model = sdengine.load(folders("sd1"), controlnets=[tmp_path / "control"])
    control = Image.effect_noise((100, 100), 90)
    common = {"steps": 4, "seed": SEED, "sampler": "euler_a", "control_images": control}
    first = {**common, "width": 64, "height": 64}
    enlarge = {"hires_scale": 2, "hires_upscaler": "lanczos", "hires_strength": 0.5}
    found = model.generate(PROMPT, NEGATIVE, **first, **enlarge)
    small = model.generate(PROMPT, NEGATIVE, **first).image
    image = small.resize((128, 128), Image.Resampling.LANCZOS)
    expected = model.generate(PROMPT, NEGATIVE, image=image, strength=0.5, **common)
    np.testing.assert_array_equal(found.latents, expected.latents)


@pytest.mark.parametrize("upscaler", ["latent", "nearest"])
def test_an_editing_model_looks_at_its_picture_twice(folders: Folders, upscaler: str) -> None:
    model = sdengine.load(folders("sd1-pix2pix"))
    run = model.start(
        *(PROMPT, NEGATIVE),
        image=Image.effect_noise((64, 48), 90),
        steps=2,
        seed=SEED,
        hires_scale=2,
        hires_strength=0.5,
        hires_upscaler=upscaler,
    )
    second = finish(run).next_pass()
    (_, branches), *_ = second._inputs.phases
    seen = next(b.extra_channels for b in branches if b.role == "positive")
    assert seen.shape == (1, 4, 12, 16)
    assert finish(second).result().image.size == (128, 96)


def test_a_network_between_the_passes(tmp_path: Path) -> None:
    path = upscaler_models.write(tmp_path / "x4.pth", upscaler_models.make("rrdb-x4"))
    options = {"steps": 2, "seed": SEED, "hires_scale": 2, "hires_strength": 0.5}
    by_path = demo_pipeline().generate(PROMPT, hires_upscaler=path, **options)
    loaded = sdengine.load_upscaler(path)
    run = demo_pipeline().start(PROMPT, hires_upscaler=loaded, **options)
    finish(run)
    again = pickle.loads(pickle.dumps(run))
    for one in (run, again):
        second = finish(one.next_pass())
        np.testing.assert_array_equal(second.latents, by_path.latents)
    small, wanted = run.result().image, run.parameters.hires
    opened = hires.network_of(demo_pipeline(), wanted, None)
    (large,) = hires.enlarged_pictures([small], wanted, opened, _core.CancelToken())
    assert large == loaded.upscale(small, scale=2)
    assert by_path.metadata[0]["hires_upscaler"] == "x4.pth"


def finish(run: sdengine.Run) -> sdengine.Run:
    while not run.done:
        run.step()
    return run


# ------------------------------ how it is told, and what it tells
@pytest.fixture(scope="module")
def pipe() -> sdengine.Pipeline:
    return demo_pipeline()


SMALL = {"width": 64, "height": 64, "steps": 4, "seed": 5}


def test_a_callback_sees_both_passes(pipe: sdengine.Pipeline) -> None:
    seen: list[Any] = []
    options = {"hires_scale": 1.5, "hires_steps": 6, "hires_strength": 0.5}
    result = pipe.generate(PROMPT, **SMALL, **options, callback=seen.append)
    assert [(e.hires, e.step, e.steps) for e in seen] == [
        *((False, step, 4) for step in range(1, 5)),
        *((True, step, 3) for step in range(1, 4)),
    ]
    assert [e.seconds for e in seen] == sorted(e.seconds for e in seen)
    assert seen[-1].latents.shape[2:] == (12, 12)
    assert result.timings["denoise"] == pytest.approx(7 * result.timings["per_step"])


def test_a_run_gives_the_next(pipe: sdengine.Pipeline) -> None:
    options = {**SMALL, "hires_scale": 2, "hires_strength": 0.5, "sampler": "euler_a"}
    whole = pipe.generate(PROMPT, **options)
    run = pipe.start(PROMPT, **options)
    with pytest.raises(ParameterError, match="0 of 4 steps are done"):
        run.next_pass()
    run = pickle.loads(pickle.dumps(finish(run).fork()))
    assert not run.is_hires
    small = run.result()
    assert (small.image.size, small.metadata[0].get("hires_scale")) == ((64, 64), None)
    second = run.next_pass()
    second.step()
    second = finish(pickle.loads(pickle.dumps(second.fork())))
    assert second.is_hires
    assert second.next_pass() is None
    np.testing.assert_array_equal(second.latents, whole.latents)
    assert second.metadata() == whole.metadata
    assert pipe.start(PROMPT, **SMALL).next_pass() is None


def test_either_pass_can_be_cancelled(pipe: sdengine.Pipeline) -> None:
    for in_second in (False, True):

        def cancel(event: sdengine.StepEvent, when: bool = in_second) -> None:
            if event.hires == when:
                event.cancel()

        with pytest.raises(Cancelled):
            pipe.generate(PROMPT, **SMALL, hires_scale=2, hires_strength=1.0, callback=cancel)


def test_a_batch_is_single_pictures(pipe: sdengine.Pipeline) -> None:
    options = {**SMALL, "hires_scale": 2, "hires_strength": 0.5, "sampler": "euler_a"}
    prompts, sharper = ["a red circle", "a green square"], ["a circle", "a square"]
    batch = pipe.generate(prompts, hires_prompt=sharper, **options)
    for i, metadata in enumerate(batch.metadata):
        one = pipe.generate(prompts[i], hires_prompt=sharper[i], **{**options, "seed": 5 + i})
        assert relative_error(batch.latents[i : i + 1], one.latents) <= 1e-5
        assert metadata["hires_prompt"] == sharper[i]


def test_prompts_sampler_and_guidance_of_its_own(pipe: sdengine.Pipeline) -> None:
    first = finish(
        pipe.start(
            PROMPT,
            NEGATIVE,
            **SMALL,
            hires_scale=2,
            hires_strength=0.5,
            hires_sampler="Euler a",
            hires_schedule="karras",
            hires_prompt="a green square",
            hires_negative_prompt="soft",
            hires_guidance_scale=2.0,
        )
    )
    second = first.next_pass().parameters
    assert (second.sampler, second.schedule, second.guidance.scale) == ("euler_a", "karras", 2.0)
    assert (second.prompt, second.negative_prompt) == (["a green square"], ["soft"])
    assert (second.width, second.steps, second.strength, second.seed) == (128, 4, 0.5, 5)
    assert (first.parameters.sampler, first.parameters.guidance.scale) == ("euler", 3.0)


def test_image_to_image_before_it(pipe: sdengine.Pipeline) -> None:
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    result = pipe.generate(
        PROMPT, image=image, strength=0.5, steps=4, seed=5, hires_scale=2, hires_strength=0.75
    )
    text = format_parameters(result.metadata[0])
    assert "Denoising strength: 0.5, Hires upscale: 2" in text
    assert "Hires denoising strength: 0.75" in text
    again = pipe.generate(PROMPT, image=image, **restored(parse_parameters(text)))
    np.testing.assert_array_equal(again.latents, result.latents)


def test_what_a_picture_says_makes_it_again(pipe: sdengine.Pipeline) -> None:
    result = pipe.generate(
        PROMPT,
        NEGATIVE,
        **SMALL,
        hires_width=96,
        hires_height=128,
        hires_upscaler="Latent (bicubic)",
    )
    text = format_parameters({**result.metadata[0], "version": "v"})
    assert text.splitlines()[-1] == (
        "Steps: 4, Sampler: Euler, Schedule type: trailing, CFG scale: 3, Seed: 5, Size: 64x64, Model: demo, "
        "Denoising strength: 0.7, Hires resize: 96x128, Hires upscaler: Latent (bicubic), Version: v"
    )
    again = pipe.generate(PROMPT, NEGATIVE, **restored(parse_parameters(text)))
    assert again.image.size == (96, 128)
    np.testing.assert_array_equal(again.latents, result.latents)


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        ("0x0", {"hires_scale": 2.0}),
        ("1024x768", {"hires_width": 1024, "hires_height": 768}),
        ("1024x0", {"hires_width": 1024}),
    ],
)
def test_both_sizes_of_sd_next(resize: str, expected: dict[str, Any]) -> None:
    text = f"a\nSteps: 4, Seed: 1, Hires upscale: 2, Hires resize: {resize}, Hires upscaler: None"
    found = restored(parse_parameters(text))
    sizes = {name: value for name, value in found.items() if name in hires.OPTIONS[:3]}
    assert sizes == expected
    assert found["hires_upscaler"] == "lanczos"


def test_a1111_does_all_steps_of_its_second_pass(pipe: sdengine.Pipeline) -> None:
    options = {**SMALL, "compat": "a1111", "hires_scale": 2, "hires_strength": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sdengine.UnwiseWarning)
        run = finish(pipe.start(PROMPT, **options))
    assert run.next_pass().steps == 4
    second = hires.second_parameters(run.parameters)
    assert plan_steps(pipe.model, second).schedule.steps == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hires_strength": 0.5}, "hires_strength needs hires_scale"),
        ({"hires_scale": 2, "hires_width": 128}, "and not both"),
        ({"hires_scale": 0.5}, "hires_scale must be a number from 1 to 16, not 0.5"),
        ({"hires_scale": "2"}, "hires_scale must be a number"),
        ({"hires_width": 100}, "hires_width must be a multiple of 8, not 100"),
        ({"hires_width": 16384}, "width must be at most 8192, not 16384"),
        ({"hires_scale": 2, "hires_strength": 0.1}, "leaves none of 4 steps"),
        ({"hires_scale": 2, "hires_strength": 1.5}, "hires_strength must be a number from 0 to 1"),
        ({"hires_scale": 2, "hires_steps": -1}, "hires_steps must be a whole number from 0"),
        ({"hires_scale": 2, "hires_sampler": "best"}, "best"),
        ({"hires_scale": 2, "hires_schedule": "best"}, "best"),
        ({"hires_scale": 2, "hires_upscaler": "R-ESRGAN 4x+"}, "is no file, and none of latent"),
        ({"hires_scale": 2, "hires_upscaler": 4}, "hires_upscaler must be a name"),
        ({"hires_scale": 2, "hires_prompt": ["a", "b"]}, "2 texts do not fit batch_size 1"),
        ({"hires_scale": 2, "hires_prompt": 3}, "hires_prompt must be a text"),
        ({"hires_scale": 2, "denoising_end": 0.5}, "does not go with denoising_end"),
        ({"hires_scale": 2, "guidance_scale": [3, 2, 1, 1]}, "a number per step"),
        (
            {
                "hires_scale": 2,
                "image": Image.new("RGB", (64, 64)),
                "mask": Image.new("L", (64, 64), 255),
            },
            "does not go with a mask",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused_before_the_first_step(
    pipe: sdengine.Pipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        pipe.start(PROMPT, **{**SMALL, **options})


def test_a_conditioning_serves_both_passes(pipe: sdengine.Pipeline) -> None:
    options = {**SMALL, "hires_scale": 2, "hires_strength": 0.5}
    cond = pipe.encode_prompt(PROMPT, NEGATIVE)
    whole = pipe.generate(PROMPT, NEGATIVE, **options)
    np.testing.assert_array_equal(
        pipe.generate(conditioning=cond, **options).latents, whole.latents
    )
    other = pipe.generate(conditioning=cond, hires_prompt=PROMPT, **options)
    assert relative_error(other.latents, whole.latents) > 1e-3  # without its negative prompt
    with pytest.raises(ParameterError, match="a conditioning holds both prompts"):
        pipe.start(conditioning=cond, hires_negative_prompt="soft", **options)


def test_a_refiner_has_no_hires_pass(pipe: sdengine.Pipeline) -> None:
    with pytest.raises(ParameterError, match="a refiner and a hires pass do not go together"):
        pipe.generate(PROMPT, refiner=pipe, hires_scale=2)
