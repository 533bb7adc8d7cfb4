"""What is not to be changed comes back exactly: 0 different pixels where the mask is black."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine.masks import MaskOptions, prepared

from .conftest import Folders, box_mask, picture

QUICK = {"steps": 2, "seed": 1, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def pipes(folders: Folders) -> dict[str, sdengine.Pipeline]:
    return {name: sdengine.load(folders(name)) for name in ("sd1", "sd1-inpaint", "sd3")}


def assert_untouched(found: Image.Image, original: Image.Image, mask: Any) -> None:
    """Nothing changed below black, and something elsewhere."""
    assert found.size == original.size
    assert found.mode == original.mode
    kept = np.asarray(mask) == 0
    differs = (np.asarray(found) != np.asarray(original)).any(axis=2)
    assert not differs[kept].any()
    assert differs[~kept].mean() > 0.5


@pytest.mark.parametrize("name", ["sd1", "sd1-inpaint", "sd3"])
@pytest.mark.parametrize("size", [(64, 64), (75, 61)])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_blur": 2.5},
        {"invert_mask": True},
        {"only_masked": True, "mask_padding": 4, "width": 64, "height": 64, "mask_blur": 1.0},
        {"strength": 0.6, "mask_fill": "blur"},
    ],
    ids=["plain", "blurred", "inverted", "only-masked", "filled"],
)
def test_kept_pixels(
    pipes: dict[str, sdengine.Pipeline],
    name: str,
    size: tuple[int, int],
    channels: int,
    options: dict[str, Any],
) -> None:
    image, mask = picture(*size, channels=channels), box_mask(size, 16, 24, 45, 61)
    found = pipes[name].generate("a cat", image=image, mask=mask, **QUICK, **options)
    chosen = {k: v for k, v in options.items() if k in MaskOptions.__dataclass_fields__}
    assert_untouched(found.image, image, prepared(mask, MaskOptions(**chosen)))


def test_a_differential_mask_keeps_what_is_black(pipes: dict[str, sdengine.Pipeline]) -> None:
    image, mask = picture(64, 64), np.zeros((64, 64), np.uint8)
    mask[20:] = np.linspace(128, 255, 44).astype(np.uint8)[:, None]
    found = pipes["sd1"].generate("a cat", image=image, mask=mask, differential=True, **QUICK)
    assert_untouched(found.image, image, mask)


@pytest.mark.parametrize("name", ["sd1", "sd1-inpaint"])
@pytest.mark.parametrize("outpaint", ["16,0,0,13", "3:2"])
def test_outpainting(pipes: dict[str, sdengine.Pipeline], name: str, outpaint: str) -> None:
    image, feather = picture(64, 60), 16
    found = pipes[name].generate("a cat", image=image, outpaint=outpaint, **QUICK).image
    left, top, size = {"16,0,0,13": (16, 0, (80, 73)), "3:2": (13, 0, (90, 60))}[outpaint]
    assert found.size == size
    inner = (feather, 0, 64 if outpaint == "16,0,0,13" else 64 - feather, 60 - feather)
    part = found.crop((left, top, left + 64, top + 60)).crop(inner)
    assert np.array_equal(part, np.asarray(image.crop(inner)))
    assert np.asarray(found)[:, :left].std() > 1


def test_a_batch_of_pictures_each_with_its_mask(pipes: dict[str, sdengine.Pipeline]) -> None:
    images = [picture(64, 64, 1), picture(64, 64, 2, channels=4)]
    masks = [box_mask((64, 64), 0, 0, 30, 30), box_mask((64, 64), 30, 30, 64, 64)]
    pipe = pipes["sd1"]
    for options in ({}, {"only_masked": True, "width": 64, "height": 64}):
        both = pipe.generate("a cat", image=images, mask=masks, **QUICK, **options)
        for index in range(2):
            assert_untouched(both.images[index], images[index], masks[index])
            alone = pipe.generate(
                "a cat",
                image=images[index],
                mask=masks[index],
                **{**QUICK, "seed": QUICK["seed"] + index},
                **options,
            )
            assert np.array_equal(both.images[index], np.asarray(alone.image))


def test_pictures_of_several_sizes_below_only_masked(pipes: dict[str, sdengine.Pipeline]) -> None:
    images = [picture(64, 64), picture(150, 90)]
    masks = [box_mask(image.size, 10, 10, 40, 40) for image in images]
    options = {"only_masked": True, "width": 64, "height": 64}
    found = pipes["sd1"].generate("a cat", image=images, mask=masks, **QUICK, **options)
    for result, image, mask in zip(found.images, images, masks, strict=True):
        assert_untouched(result, image, mask)


def test_one_picture_and_one_mask_for_a_batch(pipes: dict[str, sdengine.Pipeline]) -> None:
    image, mask = picture(64, 64), box_mask((64, 64), 0, 0, 30, 30)
    found = pipes["sd1"].generate("a cat", image=image, mask=mask, batch_size=2, **QUICK)
    for result in found.images:
        assert_untouched(result, image, mask)
    assert not np.array_equal(*found.images)


@pytest.mark.parametrize("options", [{}, {"only_masked": True, "width": 64, "height": 64}])
@pytest.mark.parametrize("channels", [3, 4])
def test_an_empty_mask_returns_the_picture(
    pipes: dict[str, sdengine.Pipeline], options: dict[str, Any], channels: int
) -> None:
    image, mask = picture(70, 50, channels=channels), Image.new("L", (70, 50))
    for given in ({"mask": mask}, {"mask": Image.new("L", (70, 50), 255), "invert_mask": True}):
        for name in ("sd1", "sd1-inpaint"):
            with pytest.warns(sdengine.UnwiseWarning, match="the mask is empty"):
                found = pipes[name].generate("a cat", image=image, **given, **QUICK, **options)
            assert found.image.tobytes() == image.tobytes()


# ------------------------------ bad input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": Image.new("L", (32, 64))}, "the mask has 32x64 pixels and its image 64x64"),
        ({"mask": Image.new("L", (0, 0))}, "the picture is empty: it has 0x0 pixels"),
        ({"mask": []}, "an empty list of pictures"),
        ({"mask_blur": 4}, "mask_blur is for a given mask; there is none"),
        ({"differential": True}, "differential is for a given mask"),
        ({"mask": box_mask((64, 64), 0, 0, 9, 9), "outpaint": "2:1"}, "makes the mask itself"),
        ({"outpaint": "2:1", "image": None}, "outpaint extends a given image"),
        ({"image": None, "mask": box_mask((64, 64), 0, 0, 9, 9)}, "without the image"),
    ],
)
def test_what_is_refused(
    pipes: dict[str, sdengine.Pipeline], options: dict[str, Any], message: str
) -> None:
    given = {"image": picture(64, 64), **QUICK, **options}
    with pytest.raises(sdengine.ParameterError, match=message):
        pipes["sd1"].start("a cat", **given)


def test_inpainting_models_read_black_and_white(pipes: dict[str, sdengine.Pipeline]) -> None:
    with pytest.raises(sdengine.ParameterError, match="leave differential out"):
        pipes["sd1-inpaint"].start(
            "a cat",
            image=picture(64, 64),
            mask=box_mask((64, 64), 0, 0, 9, 9),
            differential=True,
        )


def test_a_fill_at_full_strength_is_unwise(pipes: dict[str, sdengine.Pipeline]) -> None:
    given = {"image": picture(64, 64), "mask": box_mask((64, 64), 0, 0, 32, 32), **QUICK}
    with pytest.warns(sdengine.UnwiseWarning, match="mask_fill='noise' does nothing at strength 1"):
        pipes["sd1"].start("a cat", mask_fill="noise", **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipes["sd1"].start("a cat", mask_fill="noise", strength=0.5, **given)


def test_fills_decide_where_a_run_starts(pipes: dict[str, sdengine.Pipeline]) -> None:
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (16, 16, 48, 48))
    mask = box_mask((64, 64), 16, 16, 48, 48)
    given = {"image": image, "mask": mask, "strength": 0.5, "steps": 10, "seed": 1}
    pipe = pipes["sd1"]
    first = {
        fill: pipe.start("a", mask_fill=fill, **given).latents
        for fill in ("original", "blur", "noise", "nothing")
    }
    white = pipe.start(
        "a", image=Image.new("RGB", (64, 64), "white"), strength=0.5, steps=10, seed=1
    )
    np.testing.assert_allclose(first["blur"], white.latents, atol=1e-4)
    cells = (slice(None), slice(None), slice(2, 6), slice(2, 6))
    sigma = pipe.start("a", **given).sigma
    noise = first["nothing"][cells]
    np.testing.assert_allclose(first["noise"][cells], noise * (1 + sigma) / sigma, rtol=1e-4)
    for fill in ("noise", "nothing"):
        assert np.array_equal(first[fill][:, :, :2], first["original"][:, :, :2])
