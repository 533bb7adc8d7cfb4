"""Previews: known latents give known colours, and fitted factors find the map that made the pictures."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.errors import ParameterError
from sdengine.families import FAMILIES, FLUX, KOLORS, SDXL, LatentFormat
from sdengine.families.sdxl import PLAYGROUND_LATENTS
from sdengine.previews import PROJECTIONS, Projection, fit_factors, known, preview


def test_colours_are_the_linear_map() -> None:
    latents = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)
    projection = PROJECTIONS["sdxl"]
    pictures = preview(latents, projection.factors, projection.bias, scale=1)
    assert [picture.size for picture in pictures] == [(5, 6), (5, 6)]
    for index, picture in enumerate(pictures):
        found = np.asarray(picture)
        assert found.shape == (6, 5, 3)
        for y, x in [(0, 0), (5, 4), (2, 3)]:
            colour = latents[index, :, y, x] @ np.array(projection.factors) + np.array(
                projection.bias
            )
            expected = np.clip((colour + 1) / 2, 0, 1) * 255
            np.testing.assert_allclose(found[y, x], expected, atol=1)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((8, 8), (64, 64)), ((64, 32), (256, 512)), ((128, 128), (512, 512)), ((96, 160), (512, 307))],
)
def test_size_is_at_most_512(shape: tuple[int, int], size: tuple[int, int]) -> None:
    (picture,) = preview(np.zeros((1, 4, *shape)), np.zeros((4, 3)))
    assert picture.size == size


def test_nearest_keeps_blocks_and_bilinear_does_not() -> None:
    latents = np.array([[[[-1.0, 1.0]]]])
    nearest = np.asarray(preview(latents, np.ones((1, 3)), resample="nearest")[0])
    assert set(nearest.ravel().tolist()) == {0, 255}
    assert len(np.unique(np.asarray(preview(latents, np.ones((1, 3)))[0]))) > 4


def test_what_is_no_number_is_drawn_all_the_same() -> None:
    latents = np.array([[[[np.nan, np.inf, -np.inf, 0.0]]]])
    (picture,) = preview(latents, np.ones((1, 3)), scale=1)
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 255, 0, 127]


def test_fit_finds_the_map_again() -> None:
    rng = np.random.default_rng(1)
    true = rng.uniform(-0.25, 0.25, (4, 3))
    bias = np.array([0.1, -0.05, 0.0])
    latents = rng.uniform(-1, 1, (3, 4, 16, 16))
    colours = np.einsum("nchw,cd->nhwd", latents, true) + bias
    # Eight by eight pixels a latent; the rounding to bytes is the only error.
    images = np.rint((colours + 1) * 127.5).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    found = fit_factors(latents, images)
    np.testing.assert_allclose(found.factors, true, atol=1e-3)
    np.testing.assert_allclose(found.bias, bias, atol=1e-3)
    (drawn, *_) = preview(latents, found.factors, found.bias, scale=1)
    np.testing.assert_allclose(
        np.asarray(drawn).astype(int), images[0, ::8, ::8].astype(int), atol=2
    )


def test_numbers_and_back() -> None:
    for name, projection in PROJECTIONS.items():
        assert len(projection.factors) == (16 if name in ("sd3", "flux", "wan") else 4)
        assert Projection.of_numbers(projection.numbers()) == projection
    for values in ([], [1.0] * 3, [1.0] * 7, [np.nan] * 6):
        with pytest.raises(ParameterError, match="3 finite numbers"):
            Projection.of_numbers(values)


def test_every_family_has_colours() -> None:
    for family in FAMILIES:
        found = known(family.latents)
        assert found is not None, family.name
        assert len(found.factors) == family.latents.channels
    assert known(SDXL.latents) == known(KOLORS.latents) == PROJECTIONS["sdxl"]
    assert known(PLAYGROUND_LATENTS) == PROJECTIONS["playground"]
    tiny = LatentFormat(16, 1.0, 0.0, 8)
    assert known(tiny) is None
    assert known(tiny, FLUX.latents) == PROJECTIONS["flux"]


def test_bad_arguments() -> None:
    good = np.zeros((1, 4, 8, 8))
    for latents, factors, bias in [
        *((good[0], np.zeros((4, 3)), np.zeros(3)), (good, np.zeros((16, 3)), np.zeros(3))),
        *((good, np.zeros((4, 3)), np.zeros(1)), (good[:, :, :0], np.zeros((4, 3)), np.zeros(3))),
    ]:
        with pytest.raises(ParameterError, match="takes latents"):
            preview(latents, factors, bias)
    with pytest.raises(ParameterError, match="scale"):
        preview(good, np.zeros((4, 3)), scale=0)
    with pytest.raises(ParameterError, match="resample"):
        preview(good, np.zeros((4, 3)), resample="cubic")  # type: ignore[arg-type]
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    for latents, images, words in [
        *((good, picture.astype(np.float32), "uint8"), (good[0], picture, "expected latents")),
        *((good, picture[:, :63], "multiples"), (good[:, :, :1, :1], picture, "too few")),
    ]:
        with pytest.raises(ParameterError, match=words):
            fit_factors(latents, images)
