"""The outpainting helper: canvases, masks, shapes, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine.outpainting import CANVAS_FILLS, extended, parse_sides, sides_for

from .conftest import picture


@pytest.mark.parametrize("fill", CANVAS_FILLS)
@pytest.mark.parametrize("channels", [3, 4])
def test_the_picture_stays_on_the_canvas(fill: str, channels: int) -> None:
    image = picture(50, 30, channels=channels)
    canvas, mask = sdengine.outpaint(image, 20, 3, 0, 40, fill=fill)
    assert canvas.size == mask.size == (73, 70)
    assert (canvas.mode, mask.mode) == (image.mode, "L")
    assert np.array_equal(canvas.crop((20, 0, 70, 30)), np.asarray(image))
    if channels == 4:
        new = np.ones((70, 73), bool)
        new[:30, 20:70] = False
        assert (np.asarray(canvas)[new][:, 3] == 255).all()


def test_the_mask_falls_from_the_new_parts_inwards() -> None:
    mask = np.asarray(sdengine.outpaint(picture(50, 30), left=10, bottom=20, feather=8)[1])
    assert (mask[:, :10] == 255).all()
    assert (mask[30:] == 255).all()
    ramp = np.rint(255 * (1 - (np.arange(8) + 0.5) / 8))
    assert np.array_equal(mask[0, 10:18], ramp)
    assert np.array_equal(mask[29:21:-1, 59], ramp)
    assert not mask[:22, 18:].any()  # the top and the right side were not extended
    hard = np.asarray(sdengine.outpaint(picture(50, 30), left=10, feather=0)[1])
    assert np.array_equal(np.unique(hard), [0, 255])
    assert (hard[:, :10] == 255).all()
    assert not hard[:, 10:].any()


def test_fills() -> None:
    image = Image.new("RGB", (40, 20), (200, 40, 40))
    image.paste((40, 40, 200), (20, 0, 40, 20))
    for fill in CANVAS_FILLS:
        canvas = np.asarray(sdengine.outpaint(image, 16, 16, 0, 0, fill=fill)[0], int)
        assert np.abs(canvas[:, :16] - (200, 40, 40)).max() <= 64, fill
        assert np.abs(canvas[:, -16:] - (40, 40, 200)).max() <= 64, fill
    framed = Image.new("RGB", (100, 100), (20, 90, 60))
    framed.paste("white", (20, 20, 80, 80))  # what is inside does not shine out
    assert (np.asarray(sdengine.outpaint(framed, 50)[0])[:, :50] == (20, 90, 60)).all()
    noisy = picture(40, 20)
    edge = np.asarray(sdengine.outpaint(noisy, left=8, fill="edge")[0])
    assert (edge[:, :8] == np.asarray(noisy)[:, :1]).all()
    mirrored = np.asarray(sdengine.outpaint(noisy, left=50, fill="reflect")[0])
    assert np.array_equal(mirrored[:, 10:50], np.asarray(noisy)[:, ::-1])
    assert np.array_equal(mirrored[:, :10], np.asarray(noisy)[:, 30:])


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((512, 512), 16 / 9, (199, 199, 0, 0)),
        ((512, 512), 9 / 16, (0, 0, 199, 199)),
        ((100, 101), 1.0, (0, 1, 0, 0)),
        ((300, 200), 1.0, (0, 0, 50, 50)),
    ],
)
def test_shapes(size: tuple[int, int], ratio: float, expected: tuple[int, ...]) -> None:
    assert sides_for(size, ratio) == expected
    canvas = sdengine.outpaint(Image.new("RGB", size), aspect_ratio=ratio)[0]
    assert abs(canvas.width - canvas.height * ratio) <= max(1.0, ratio)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("64,0,32,8", (64, 0, 32, 8)),
        ((64, 0, 32, 8), (64, 0, 32, 8)),
        ([1.0, 2.0, 3.0, 4.0], (1, 2, 3, 4)),
        ("16:9", 16 / 9),
        (1.5, 1.5),
    ],
)
def test_the_option(value: Any, expected: Any) -> None:
    assert parse_sides(value) == expected


@pytest.mark.parametrize(
    "value", ["1,2,3", "a,b,c,d", (1, 2, 3), (1.5, 0, 0, 0), "wide", {}, (1, 2, 3, None)]
)
def test_bad_options(value: Any) -> None:
    with pytest.raises(sdengine.ParameterError, match="64,0,64,0|aspect_ratio must be"):
        parse_sides(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to add to a picture of 20x10: give left, right, top or bottom"),
        ({"aspect_ratio": 2.0}, "nothing to add"),
        ({"left": -1}, "left must be a whole number of pixels from 0 to 8192, not -1"),
        ({"top": 1.5}, "top must be a whole number of pixels from 0 to 8192, not 1.5"),
        ({"left": 8190}, "a canvas has sides of at most 8192, not 8210x10"),
        ({"left": 8, "feather": -1}, "feather must be a whole number of pixels from 0 to 1024"),
        ({"left": 8, "fill": "pink"}, "fill must be one of 'blur', 'reflect', 'edge', not 'pink'"),
        ({"left": 8, "aspect_ratio": 1.0}, "and not both"),
        ({"aspect_ratio": "99:1"}, "aspect_ratio must be width over height"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(sdengine.ParameterError, match=message):
        sdengine.outpaint(Image.new("RGB", (20, 10)), **options)


def test_several_pictures_get_a_canvas_each() -> None:
    canvases, masks = extended([picture(20, 10), picture(20, 30)], 1.0)
    assert [canvas.size for canvas in canvases] == [(20, 20), (30, 30)]
    assert [mask.size for mask in masks] == [(20, 20), (30, 30)]
    assert extended(picture(20, 10), (0, 4, 0, 0))[0][0].size == (24, 10)
