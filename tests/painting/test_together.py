"""Masks beside what else a generation can do: control pictures, depth maps, refiners, pickles, text in pictures."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.metadata import format_parameters, parse_parameters
from sdengine.options import restored
from tests.control.models import controlnet_folder

from .conftest import Folders, box_mask, picture

QUICK = {"steps": 2, "seed": 1, "guidance_scale": 2.0}
BOX = (64, 32, 128, 96)
"""Of 160 x 120 pixels; a mask of its inner half with a padding of 16 is generated at its own size."""


@pytest.fixture(scope="module")
def controlled(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> sdengine.Pipeline:
    net = controlnet_folder(tmp_path_factory.mktemp("net") / "net", "sd1")
    return sdengine.load(folders("sd1"), controlnets=[net])


def parts(option: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options for a part of a picture, and for that part cut out by hand."""
    image, other = picture(160, 120, 1), picture(160, 120, 2)
    mask = box_mask(image.size, 80, 48, 112, 80)
    given = {"image": image, "mask": mask, option: other}
    by_hand = {key: value.crop(BOX) for key, value in given.items()}
    return {**given, "only_masked": True, "mask_padding": 16, "width": 64, "height": 64}, by_hand


def test_control_pictures_are_cut_alike(controlled: sdengine.Pipeline) -> None:
    whole, by_hand = parts("control_images")
    found = controlled.generate("a cat", **whole, **QUICK)
    expected = controlled.generate("a cat", **by_hand, **QUICK)
    assert np.array_equal(found.latents, expected.latents)
    assert np.array_equal(found.image.crop(BOX), np.asarray(expected.image))
    uncontrolled = controlled.generate("a cat", **whole, **QUICK, control_scales=0)
    assert not np.array_equal(found.latents, uncontrolled.latents)


def test_depth_maps_are_cut_alike(folders: Folders) -> None:
    pipe = sdengine.load(folders("sd2-depth"))
    whole, by_hand = parts("depth")
    found = pipe.generate("a cat", **whole, **QUICK)
    assert np.array_equal(found.latents, pipe.generate("a cat", **by_hand, **QUICK).latents)


@pytest.mark.parametrize(
    "options",
    [{}, {"only_masked": True, "width": 64, "height": 64}, {"outpaint": "0,16,0,0"}],
    ids=["whole", "only-masked", "outpaint"],
)
def test_a_refiner_keeps_to_the_mask(folders: Folders, options: dict[str, Any]) -> None:
    base, refiner = sdengine.load(folders("sdxl")), sdengine.load(folders("refiner"))
    image, mask = picture(75, 61), box_mask((75, 61), 16, 16, 48, 48)
    given = options if "outpaint" in options else {"mask": mask, **options}
    found = base.generate(
        "a cat", refiner=refiner, image=image, denoising_end=0.5, **given, **{**QUICK, "steps": 4}
    ).image
    kept = np.asarray(mask) == 0
    if "outpaint" in options:
        kept[:], kept[:, 75 - 16 :] = True, False
    differs = (np.asarray(found)[:61, :75] != np.asarray(image)).any(axis=2)
    assert not differs[kept].any()
    assert differs[~kept].mean() > 0.5


def test_a_run_with_a_mask_can_be_pickled(folders: Folders) -> None:
    image, mask = picture(75, 61, channels=4), box_mask((75, 61), 16, 16, 48, 48)
    run = sdengine.load(folders("sd1")).start(
        "a cat", image=image, mask=mask, differential=True, **QUICK
    )
    run.step()
    copy = pickle.loads(pickle.dumps(run))
    for one in (run, copy):
        while not one.done:
            one.step()
    assert copy.result().image.tobytes() == run.result().image.tobytes()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "Size: 75x61"),
        ({"width": 96, "height": 64}, "Size: 96x64"),
        ({"mask_blur": 4, "invert_mask": True}, "Mask mode: Inpaint not masked, Mask blur: 4"),
        (
            {"only_masked": True, "width": 64, "height": 64},
            "Size: 64x64, .*, Inpaint area: Only masked, Masked area padding: 32",
        ),
        ({"only_masked": True, "mask_padding": 5}, "Masked area padding: 5"),
        ({"mask_fill": "blur", "strength": 0.5}, "Masked content: fill"),
        ({"mask_fill": "noise", "strength": 0.5}, "Masked content: latent noise"),
        ({"differential": True}, "Differential diffusion: yes"),
        ({"outpaint": "16,0,0,3", "mask_blur": 2}, "Size: 91x64, .*, Outpaint: 16 0 0 3"),
        ({"outpaint": "16:9"}, "Task: outpainting, .*Outpaint: 1.7777777777777777"),
    ],
)
def test_what_is_written_makes_the_picture_again(
    folders: Folders, options: dict[str, Any], text: str
) -> None:
    pipe = sdengine.load(folders("sd1"))
    given: dict[str, Any] = {"image": picture(75, 61)}
    if "outpaint" not in options:
        given["mask"] = box_mask((75, 61), 16, 16, 48, 48)
    run = pipe.start("a cat", **given, **options, **QUICK)
    written = format_parameters(run.metadata()[0])
    assert re.search(text, written)
    copy = pipe.start("a cat", **given, **restored(parse_parameters(written)))
    assert copy.parameters == run.parameters
    assert np.array_equal(copy.latents, run.latents)


def test_text_of_a1111_is_understood() -> None:
    found = parse_parameters(
        "p\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.75, "
        "Mask mode: Inpaint not masked, Mask blur: 4, Inpaint area: Only masked, Masked area padding: 32, "
        "Masked content: latent nothing, Version: v1.10.1"
    )
    options = restored(found)
    names = ("invert_mask", "mask_blur", "only_masked", "mask_padding", "mask_fill")
    assert [options[name] for name in names] == [True, 4.0, True, 32, "nothing"]


def test_a_picture_on_disk(folders: Folders, tmp_path: Path) -> None:
    image, mask = picture(64, 64), box_mask((64, 64), 16, 16, 48, 48)
    image.save(tmp_path / "a.png")
    mask.save(tmp_path / "m.png")
    pipe = sdengine.load(folders("sd1"))
    found = pipe.generate("a", image=tmp_path / "a.png", mask=str(tmp_path / "m.png"), **QUICK)
    assert np.array_equal(
        found.image, pipe.generate("a", image=np.asarray(image), mask=mask, **QUICK).image
    )
