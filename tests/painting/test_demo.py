"""Painting with the demo model: what is asked for appears where the mask is white, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.checker import check
from sdengine.api import demo_pipeline

from .conftest import box_mask

GROUND = "on a blue background"
LEFT, RIGHT = (0, 0, 128, 128), (128, 0, 256, 128)


@pytest.fixture(scope="module")
def circle() -> Image.Image:
    return demo_pipeline().generate(f"a red circle {GROUND}", seed=1).image


@pytest.fixture(scope="module")
def two_shapes(circle: Image.Image) -> Image.Image:
    image = Image.new("RGB", (256, 128))
    image.paste(circle, LEFT[:2])
    image.paste(demo_pipeline().generate(f"a yellow square {GROUND}", seed=2).image, RIGHT[:2])
    return image


@pytest.mark.parametrize("options", [{}, {"mask_blur": 3}, {"differential": True}])
@pytest.mark.parametrize("which", ["left", "right"])
def test_one_of_two_shapes_is_replaced(
    two_shapes: Image.Image, which: str, options: dict[str, Any]
) -> None:
    x = 0 if which == "left" else 128
    mask = box_mask(two_shapes.size, x + 8, 8, x + 120, 120)
    result = demo_pipeline().generate(
        f"a green star {GROUND}",
        image=two_shapes,
        mask=mask,
        only_masked=True,
        mask_padding=8,
        seed=1,
        **options,
    )
    assert result.image.size == two_shapes.size
    new, old = (LEFT, RIGHT) if which == "left" else (RIGHT, LEFT)
    assert check(result.image.crop(new)).triple == ("star", "green", "blue")
    assert np.array_equal(result.image.crop(old), np.asarray(two_shapes.crop(old)))


def test_the_background_goes_on_around_a_picture(circle: Image.Image) -> None:
    small = circle.crop((24, 24, 104, 104))
    result = demo_pipeline().generate(
        f"a red circle {GROUND}", image=small, outpaint="24,24,24,24", seed=1
    )
    assert check(result.image).triple == ("circle", "red", "blue")
    inside = (16, 16, 64, 64)
    kept = result.image.crop((24, 24, 104, 104)).crop(inside)
    assert np.array_equal(kept, np.asarray(small.crop(inside)))
    pixels = np.asarray(result.image, np.float32)
    whole = np.asarray(circle, np.float32)
    assert np.abs(pixels - whole).mean() < 8  # of 255: nearly what the picture was cut from
    seam = np.abs(pixels[:, 24] - pixels[:, 23]).mean(), np.abs(pixels[24] - pixels[23]).mean()
    assert max(seam) < 6


@pytest.mark.parametrize(("grey", "strength"), [(102, 0.4), (153, 0.6), (255, 1.0)])
def test_one_grey_is_that_strength(circle: Image.Image, grey: int, strength: float) -> None:
    pipe, prompt = demo_pipeline(), f"a green circle {GROUND}"
    options = {"image": circle, "steps": 10, "sampler": "euler", "seed": 2}
    mask = Image.new("L", circle.size, grey)
    found = pipe.generate(prompt, mask=mask, differential=True, **options)
    expected = pipe.generate(prompt, strength=strength, **options)
    np.testing.assert_allclose(found.latents, expected.latents, atol=1e-5)
    assert np.abs(np.asarray(found.image, int) - np.asarray(expected.image)).max() <= 1
