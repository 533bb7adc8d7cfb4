"""Masks by themselves: blur, the part that is generated, how it comes back, and what fills it."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from scipy import ndimage

import sdengine
from sdengine.masks import MaskOptions, blurred, masked_box, read_frames, surroundings
from sdengine.options import DEFAULTS

from .conftest import box_mask, picture

ERASED = (0, 0, 0, 0)


def frame(image: Image.Image, mask: Image.Image, size: tuple[int | None, int | None], **options):
    return read_frames(image, mask, size, (64, 64), 8, "crop", MaskOptions(**options))[0]


# ------------------------------ blur
@pytest.mark.parametrize("deviation", [0.1, 1.0, 4.0, 20.0, 200.0])
def test_blur_is_a_gaussian_with_a_kernel_that_ends(deviation: float) -> None:
    mask = np.asarray(box_mask((90, 60), 50, 20, 90, 45))
    expected = ndimage.gaussian_filter(
        mask.astype(np.float64), deviation, truncate=2.5, mode="mirror"
    )
    found = blurred(mask, deviation)
    assert np.abs(found - expected).max() <= 0.51
    far = ndimage.distance_transform_cdt(mask == 0, "chessboard") > int(2.5 * deviation + 0.5)
    assert not found[far].any()


# ------------------------------ the part that is generated
def test_the_part_equals_that_of_diffusers() -> None:
    rng = np.random.default_rng(0)
    processor = VaeImageProcessor()
    for _ in range(200):
        width, height = rng.integers(20, 200, 2)
        left, top = rng.integers(0, width - 1), rng.integers(0, height - 1)
        right, bottom = rng.integers(left + 1, width + 1), rng.integers(top + 1, height + 1)
        mask = box_mask((int(width), int(height)), left, top, right, bottom)
        pad, (wide, high) = int(rng.integers(0, 50)), (int(v) for v in rng.integers(1, 9, 2) * 64)
        expected = processor.get_crop_region(mask, wide, high, pad=pad)
        assert masked_box(np.asarray(mask), pad, wide / high) == expected


def test_cutting_and_putting_back_are_each_others_inverse() -> None:
    image, mask = picture(200, 100), box_mask((200, 100), 90, 40, 122, 72)
    found = frame(image, mask, (64, 64), only_masked=True, mask_padding=16)
    assert found.box == (74, 24, 138, 88)
    part = found.cut(image)
    assert np.array_equal(np.asarray(part), np.asarray(image.crop(found.box)))
    assert np.array_equal(np.asarray(found.put_back(part)), np.asarray(image))


def test_a_picture_too_narrow_for_the_shape_is_bordered() -> None:
    image, mask = Image.new("RGB", (40, 200), "red"), box_mask((40, 200), 10, 50, 30, 150)
    found = frame(image, mask, (64, 64), only_masked=True, mask_padding=0)
    assert (found.box, found.inner) == ((0, 50, 40, 150), (19, 0, 45, 64))
    assert found.cut(image).size == (64, 64)
    assert (np.asarray(found.cut(image)) == (255, 0, 0)).all()
    back = np.asarray(found.put_back(Image.new("RGB", (64, 64), "blue")))
    white = np.asarray(mask) > 0
    assert (back[white] == (0, 0, 255)).all()
    assert (back[~white] == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(None, None), (61, 43)])
def test_without_another_size_a_picture_keeps_its_own(size: tuple[int | None, int | None]) -> None:
    image = picture(61, 43)
    found = frame(image, box_mask((61, 43), 0, 0, 30, 30), size)
    assert found.size == (64, 48)
    canvas = np.asarray(found.cut(image))
    assert np.array_equal(canvas, np.pad(np.asarray(image), [(0, 5), (0, 3), (0, 0)], "edge"))
    assert np.array_equal(found.put_back(found.cut(image)), np.asarray(image))


def test_a_size_that_was_asked_for_is_resized_to() -> None:
    image, mask = picture(61, 43), box_mask((61, 43), 0, 0, 30, 30)
    assert frame(image, mask, (96, 64)).original.shape == (64, 96, 3)
    assert frame(image, mask, (96, None)).original.shape == (40, 96, 3)


# ------------------------------ putting back
def test_soft_edges_mix_and_transparent_pixels_stay() -> None:
    original = np.zeros((8, 8, 4), np.uint8)
    original[...] = (200, 100, 0, 255)
    original[:4] = (9, 8, 7, 0)  # colours below full transparency are kept too
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 2:4], mask[:, 4:] = 51, 255
    found = frame(Image.fromarray(original), Image.fromarray(mask), (None, None))
    back = np.asarray(found.put_back(Image.new("RGB", (8, 8), (100, 200, 50))))
    assert np.array_equal(back[:, :2], original[:, :2])
    assert (back[4:, 2:4] == (180, 120, 10, 255)).all()
    assert (
        back[:4, 2:4] == (100, 200, 50, 51)
    ).all()  # nothing of an invisible colour shines through
    assert (back[:, 4:] == (100, 200, 50, 255)).all()


def test_erased_parts_are_a_mask() -> None:
    image = picture(16, 16).convert("RGBA")
    image.paste(ERASED, (4, 4, 12, 12))
    found = frame(image, image, (None, None))
    assert np.array_equal(found.mask, np.asarray(box_mask((16, 16), 4, 4, 12, 12)))
    back = np.asarray(found.put_back(Image.new("RGB", (16, 16), "red")))
    assert (back[4:12, 4:12] == (255, 0, 0, 255)).all()
    assert np.array_equal(back[:4], np.asarray(image)[:4])


# ------------------------------ what fills the masked part
def test_the_surrounding_colours_fill_a_hole() -> None:
    image = np.zeros((1, 3, 60, 80), np.float32)
    image[:, 0, :, :40], image[:, 0, :, 40:] = -0.5, 0.5
    image[:, 1] = 0.25
    mask = np.zeros((1, 1, 60, 80), np.float32)
    mask[:, :, 10:50, 20:60] = 1.0
    filled = surroundings(np.where(mask > 0, 9.0, image).astype(np.float32), mask)
    outside = np.broadcast_to(mask == 0, image.shape)
    np.testing.assert_array_equal(filled[outside], image[outside])
    np.testing.assert_allclose(filled[:, 1], 0.25, atol=1e-5)
    red = filled[0, 0, 30]
    assert red[20:24].max() < -0.3
    assert red[56:60].min() > 0.3
    assert np.abs(np.diff(red)).max() < 0.25  # no edge of its own inside


def test_nothing_known_is_grey() -> None:
    whole = np.ones((2, 1, 7, 5), np.float32)
    assert not surroundings(np.ones((2, 3, 7, 5), np.float32), whole).any()


# ------------------------------ options and errors
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mask_blur", -1, "mask_blur must be a number from 0 to 256, not -1"),
        ("mask_blur", float("nan"), "mask_blur must be a number from 0 to 256"),
        ("mask_blur", "4", "mask_blur must be a number from 0 to 256"),
        (
            "mask_padding",
            1.5,
            "mask_padding must be a whole number of pixels from 0 to 4096, not 1.5",
        ),
        ("mask_padding", -1, "mask_padding must be a whole number of pixels from 0 to 4096"),
        ("mask_fill", "fill", "mask_fill must be one of 'original', 'blur', 'noise', 'nothing'"),
        ("mask_fill", ["blur"], "mask_fill must be one of"),
        ("invert_mask", 1, "invert_mask must be True or False, not 1"),
        ("only_masked", "yes", "only_masked must be True or False"),
        ("differential", 0.5, "differential must be True or False"),
    ],
)
def test_options_out_of_range(name: str, value: object, message: str) -> None:
    with pytest.raises(sdengine.ParameterError, match=message):
        MaskOptions.of({**DEFAULTS, name: value})


def test_a_mask_of_another_size_is_refused() -> None:
    message = "the mask has 32x16 pixels and its image 64x48; give a mask of the image's size"
    for masks in (Image.new("L", (32, 16)), [Image.new("L", (64, 48)), Image.new("L", (32, 16))]):
        with pytest.raises(sdengine.ParameterError, match=message):
            read_frames(*(picture(64, 48), masks, (None, None)), (64, 64), 8, "crop", MaskOptions())


def test_numbers_of_pictures_and_masks_that_do_not_fit() -> None:
    images, masks = [picture(8, 8)] * 3, [Image.new("L", (8, 8), 255)] * 2
    for given, message in (
        ((images, masks), "2 masks were given for 3 images"),
        ((images, []), "an empty list of pictures"),
    ):
        with pytest.raises(sdengine.ParameterError, match=message):
            read_frames(*given, (None, None), (64, 64), 8, "crop", MaskOptions())
