"""Whole pipelines with control networks against diffusers': same folders, prompt, seed and steps."""

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
from sdengine.errors import ParameterError

from .conftest import Folders, picture, relative_error

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
SIZE = {"width": 64, "height": 64}
SEED, STEPS = 7, 5
LIMIT = 1e-3
FIRST = Image.fromarray(picture(64, 64, 1))
SECOND = Image.fromarray(picture(64, 64, 2))


def reference(kind: str, folder: Path, *, parts: dict[str, Any], **options: Any) -> Any:
    """Final latents of a diffusers pipeline; `parts` are its further networks."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        absent: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
        if "XL" not in kind:
            absent |= {"safety_checker": None, "requires_safety_checker": False}
        pipe = getattr(diffusers, kind).from_pretrained(folder, **parts, **absent)
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        return pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **{"height": 64, "width": 64, **options},
        ).images.numpy()


def controlnets(folders: Folders, *names: str) -> dict[str, Any]:
    from diffusers import ControlNetModel

    nets = [ControlNetModel.from_pretrained(folders[name]) for name in names]
    return {"controlnet": nets if len(nets) > 1 else nets[0]}


def generate(pipe: sdengine.Pipeline, guidance: float, **options: Any) -> np.ndarray:
    common = {"steps": STEPS, "seed": SEED, "sampler": "euler", **SIZE, **options}
    return pipe.generate(PROMPT, NEGATIVE, guidance_scale=guidance, **common).latents


@pytest.fixture(scope="module")
def sd1(folders: Folders) -> sdengine.Pipeline:
    return sdengine.load(folders["sd1"], controlnets=[folders["sd1-control"]])


@pytest.fixture(scope="module")
def plain(folders: Folders) -> np.ndarray:
    return generate(sdengine.load(folders["sd1"]), 7.5)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "weight": ({"controlnet_conditioning_scale": 0.4}, {"control_scales": 0.4}),
    "start and end": (
        {"control_guidance_start": 0.2, "control_guidance_end": 0.8},
        {"control_start": 0.2, "control_end": 0.8},
    ),
    "guess mode": ({"guess_mode": True}, {"guess_mode": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_sd1(folders: Folders, sd1: sdengine.Pipeline, plain: np.ndarray, case: str) -> None:
    theirs, ours = CASES[case]
    expected = reference(
        "StableDiffusionControlNetPipeline",
        folders["sd1"],
        image=FIRST,
        parts=controlnets(folders, "sd1-control"),
        guidance_scale=7.5,
        **theirs,
    )
    found = generate(sd1, 7.5, control_images=[FIRST], **ours)
    assert relative_error(found, expected) <= LIMIT
    assert relative_error(plain, expected) > 10 * LIMIT


def test_two_networks_and_a_batch(folders: Folders) -> None:
    names = ("sd1-control", "sd1-control-1")
    expected = reference(
        "StableDiffusionControlNetPipeline",
        folders["sd1"],
        image=[FIRST, SECOND],
        parts=controlnets(folders, *names),
        guidance_scale=5.0,
        controlnet_conditioning_scale=[0.5, 0.8],
        control_guidance_end=[1.0, 0.6],
    )
    pipe = sdengine.load(folders["sd1"], controlnets=[folders[name] for name in names])
    options = {"control_scales": [0.5, 0.8], "control_end": [1.0, 0.6]}
    found = generate(pipe, 5.0, control_images=[FIRST, SECOND], **options)
    assert relative_error(found, expected) <= LIMIT
    images = [[FIRST, SECOND], SECOND]
    batch = generate(pipe, 5.0, control_images=images, batch_size=2, **options)
    assert np.array_equal(batch[:1], found)
    left_out = generate(pipe, 5.0, control_images=[None, SECOND], **options)
    scaled = generate(pipe, 5.0, control_images=images, **{**options, "control_scales": [0, 0.8]})
    assert np.array_equal(left_out, scaled[:1])


def test_sd2(folders: Folders) -> None:
    expected = reference(
        "StableDiffusionControlNetPipeline",
        folders["sd2"],
        image=FIRST,
        parts=controlnets(folders, "sd2-control"),
        guidance_scale=6.0,
    )
    pipe = sdengine.load(folders["sd2"], controlnets=folders["sd2-control"])
    found = generate(pipe, 6.0, control_images=FIRST)
    assert relative_error(found, expected) <= LIMIT
    assert relative_error(generate(pipe, 6.0, control_scales=0), expected) > 10 * LIMIT


def test_sdxl(folders: Folders) -> None:
    expected = reference(
        "StableDiffusionXLControlNetPipeline",
        folders["sdxl"],
        image=FIRST,
        parts=controlnets(folders, "sdxl-control"),
        guidance_scale=5.0,
        controlnet_conditioning_scale=1.0,
    )
    pipe = sdengine.load(folders["sdxl"], controlnets=folders["sdxl-control"])
    found = generate(pipe, 5.0, control_images=FIRST)
    assert relative_error(found, expected) <= LIMIT


def test_pooled_residuals(folders: Folders, tmp_path: Path) -> None:
    """As ControlNets for shuffled pictures are run: means of the residuals, the positive branch only."""
    from diffusers import ControlNetModel

    net = ControlNetModel.from_pretrained(folders["sd1-control"])
    net.register_to_config(global_pool_conditions=True)
    net.save_pretrained(tmp_path / "pooled")
    expected = reference(
        "StableDiffusionControlNetPipeline",
        folders["sd1"],
        image=FIRST,
        parts={"controlnet": ControlNetModel.from_pretrained(tmp_path / "pooled")},
        guidance_scale=4.0,
    )
    for given in (
        tmp_path / "pooled",
        sdengine.ControlNet(folders["sd1-control"], pooled=True),
    ):
        pipe = sdengine.load(folders["sd1"], controlnets=[given])
        assert relative_error(generate(pipe, 4.0, control_images=[FIRST]), expected) <= LIMIT


def test_modes_weigh_the_residuals(sd1: sdengine.Pipeline, plain: np.ndarray) -> None:
    found = {
        mode: generate(sd1, 7.5, control_images=FIRST, control_mode=mode)
        for mode in ("balanced", "prompt", "control")
    }
    distance = {mode: relative_error(latents, plain) for mode, latents in found.items()}
    assert 0 < distance["prompt"] < distance["balanced"]
    assert not np.array_equal(found["prompt"], found["control"])
    # The weights of the residuals, from the deepest one up.
    factors = sd1.controls[0]._factors(
        sdengine.control_options.ControlInput(
            0, np.zeros((1, 3, 8, 8), np.float32), [1.0], "prompt"
        )
    )
    assert list(factors.values())[-1] == 1.0
    assert list(factors.values())[-2] == pytest.approx(0.825)


def test_weights_of_zero_change_nothing(sd1: sdengine.Pipeline, plain: np.ndarray) -> None:
    assert np.array_equal(generate(sd1, 7.5, control_scales=0), plain)
    assert np.array_equal(generate(sd1, 7.5, control_images=FIRST, control_start=0.9), plain)


def test_runs_go_on_after_pickling(sd1: sdengine.Pipeline) -> None:
    options = {"steps": 3, "seed": SEED, "control_images": FIRST, **SIZE}
    expected = sd1.generate(PROMPT, **options).latents
    run = sd1.start(PROMPT, **options)
    run.step()
    copy = pickle.loads(pickle.dumps(run))
    while not copy.done:
        copy.step()
    assert np.array_equal(copy.latents, expected)


def test_with_other_sizes_samplers_and_guidance(sd1: sdengine.Pipeline) -> None:
    found = sd1.generate(
        PROMPT, steps=2, seed=1, width=72, height=56, control_images=FIRST, sampler="heun"
    )
    assert found.latents.shape == (1, 4, 7, 9)
    guided = sdengine.Guidance(perturbed_attention=sdengine.guidance.PerturbedAttention())
    result = sd1.generate(PROMPT, steps=2, seed=1, control_images=SECOND, guidance=guided)
    assert result.metadata[0]["control_scales"] == (1.0,)
    assert result.image.size == SECOND.size


# ------------------------------ bad input
def test_pictures_must_be_given_for_each_network(folders: Folders, sd1: sdengine.Pipeline) -> None:
    with pytest.raises(ParameterError, match="give control_images="):
        generate(sd1, 1.0)
    with pytest.raises(ParameterError, match="2 control_images were given for 1"):
        generate(sd1, 1.0, control_images=[FIRST, SECOND])
    with pytest.raises(ParameterError, match="2 control pictures were given for a batch of 3"):
        generate(sd1, 1.0, control_images=[[FIRST, SECOND]], batch_size=3)
    with pytest.raises(ParameterError, match="an empty list"):
        generate(sd1, 1.0, control_images=[[]])
    with pytest.raises(ParameterError, match="without a control network"):
        generate(sdengine.load(folders["sd1"]), 1.0, control_images=[FIRST])
    with pytest.raises(ParameterError, match="a picture must be"):
        generate(sd1, 1.0, control_images=[7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control_scales": -1}, "control_scales must be"),
        ({"control_scales": float("nan")}, "control_scales must be"),
        ({"control_scales": [1, 1]}, "2 entries for 1"),
        ({"control_start": 0.5, "control_end": 0.5}, "must be less than"),
        ({"control_end": 2}, "between 0 and 1"),
        ({"control_mode": "strong"}, "must be one of"),
        ({"guess_mode": 1}, "True or False"),
        ({"guess_mode": True, "control_mode": "prompt"}, "leave control_mode out"),
    ],
)
def test_numbers_out_of_range(
    sd1: sdengine.Pipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        generate(sd1, 1.0, control_images=[FIRST], **options)


def test_networks_of_other_families(folders: Folders) -> None:
    with pytest.raises(ParameterError, match="made for Stable Diffusion XL"):
        sdengine.load(folders["sdxl"], controlnets=[folders["sd1-control"]])
    with pytest.raises(ParameterError, match="the width of the text is 1024, expected 64"):
        sdengine.load(folders["sd1"], controlnets=[folders["sd2-control"]])
    with pytest.raises(ParameterError, match="holds no control network"):
        sdengine.load(folders["sd1"], controlnets=[folders["sd1"] / "unet"])
    with pytest.raises(sdengine.UnsupportedModelError, match="a ControlNet"):
        sdengine.load(folders["sd1-control"])
