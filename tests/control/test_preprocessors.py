"""Preprocessors against scipy.ndimage, closed forms, and pictures whose answer is known."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sdengine import preprocessors
from sdengine.errors import ParameterError

from .conftest import picture

GREY = np.asarray(Image.fromarray(picture(90, 70)).convert("L"), np.float32)


def levels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image, np.float32)


def square() -> np.ndarray:
    pixels = np.full((40, 60, 3), 30, np.uint8)
    pixels[10:30, 20:50] = 220
    return pixels


# ------------------------------ edges
def test_canny_finds_the_outline_of_a_square() -> None:
    edges = levels(preprocessors.canny(square()))[..., 0] > 0
    assert edges.any()
    near = np.zeros_like(edges)
    near[9:31, 19:51] = True
    near[12:28, 22:48] = False
    assert not (edges & ~near).any()
    assert edges[15:25].sum(axis=1).tolist() == [2] * 10  # a line on each side, one pixel wide


def test_canny_sees_colours_of_one_brightness() -> None:
    pixels = np.full((40, 60, 3), (0, 0, 255), np.uint8)
    pixels[10:30, 20:50] = (97, 0, 0)  # 29 of 255 in grey, both
    edges = levels(preprocessors.canny(pixels))[..., 0] > 0
    assert edges[15:25].sum(axis=1).tolist() == [2] * 10


def test_canny_against_its_definition() -> None:
    """Gradients and connected components by scipy; the thinning by hand, pixel by pixel."""
    low, high = 60.0, 120.0
    colours = np.moveaxis(np.asarray(picture(90, 70), np.float64), 2, 0)
    xs, ys = (
        np.stack([ndimage.sobel(colour, axis, mode="nearest") for colour in colours], axis=2)
        for axis in (1, 0)
    )
    strongest = (np.abs(xs) + np.abs(ys)).argmax(axis=2)[..., None]
    x, y = (np.take_along_axis(of, strongest, 2)[..., 0] for of in (xs, ys))
    magnitude = np.abs(x) + np.abs(y)
    padded = np.pad(magnitude, 1)
    steps = [(0, 1), (1, 1), (1, 0), (1, -1)]
    thin = np.zeros(GREY.shape, bool)
    for i, j in np.ndindex(*GREY.shape):
        angle = np.degrees(np.arctan2(y[i, j], x[i, j])) % 180
        down, right = steps[round(angle / 45) % 4]
        here = padded[i + 1, j + 1]
        before, after = padded[i + 1 - down, j + 1 - right], padded[i + 1 + down, j + 1 + right]
        thin[i, j] = here > before and here >= after
    weak, strong = thin & (magnitude > low), thin & (magnitude > high)
    parts, _ = ndimage.label(weak, np.ones((3, 3)))
    expected = np.isin(parts, np.unique(parts[strong])) & weak
    found = levels(preprocessors.canny(picture(90, 70), low, high))[..., 0] > 0
    assert expected.any()
    assert (weak & ~expected).any(), "the picture has no weak edge apart from strong ones"
    assert np.mean(found != expected) < 0.002  # directions that lie between two


def test_weak_edges_hang_on_strong_ones() -> None:
    weak = np.zeros((9, 9), bool)
    weak[1, 1:8] = weak[1:8, 7] = weak[5, 1:4] = True
    strong = np.zeros_like(weak)
    strong[7, 7] = True
    found = preprocessors._connected(weak, strong)
    assert found[1, 1:8].all()
    assert not found[5, 1:4].any()


# ------------------------------ filters
@pytest.mark.parametrize("sigma", [0.5, 2.0, 6.0])
def test_gaussian_against_scipy(sigma: float) -> None:
    expected = ndimage.gaussian_filter(GREY, sigma)
    assert np.allclose(preprocessors._gaussian(GREY, sigma), expected, atol=1e-3)


def test_blur_and_tile_keep_the_mean_and_lose_detail() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for found in (preprocessors.blur(colours), preprocessors.tile(colours)):
        assert abs(levels(found).mean() - colours.mean()) < 2
        assert levels(found).std() < colours.std() / 4
        assert found.size == (64, 64)
    assert np.array_equal(levels(preprocessors.tile(colours, 1.0)), colours)


def test_lines_are_where_it_is_dark() -> None:
    paper = np.full((50, 50, 3), 240, np.uint8)
    paper[:, 24:26] = 20
    for function in (preprocessors.scribble, preprocessors.lineart):
        lines = levels(function(paper))[..., 0]
        assert lines[:, 24:26].min() >= 120
        assert lines[:, :10].max() == 0
        assert levels(function(np.full((20, 20), 99, np.uint8))).max() == 0


def test_threshold() -> None:
    assert np.array_equal(
        levels(preprocessors.threshold(square(), 100))[..., 0] > 0, square()[..., 0] > 100
    )


# ------------------------------ colours and depth
def test_segmentation_snaps_to_the_palette() -> None:
    clean = np.zeros((20, 20, 3), np.uint8)
    clean[:10], clean[10:] = preprocessors.ADE20K["sky"], preprocessors.ADE20K["grass"]
    noisy = clean.astype(int) + np.random.default_rng(0).integers(-9, 10, clean.shape)
    found = preprocessors.segmentation(np.clip(noisy, 0, 255).astype(np.uint8))
    assert np.array_equal(np.asarray(found), clean)
    two = preprocessors.segmentation(clean, [(0, 128, 0), (0, 255, 255)])
    assert {tuple(c) for c in np.asarray(two).reshape(-1, 3)} == {(0, 255, 255), (0, 128, 0)}


def test_depth_is_spread_over_the_range() -> None:
    ramp = np.linspace(3.0, 7.0, 30)[None].repeat(10, 0)
    found = levels(preprocessors.depth(ramp))[..., 0]
    assert (found[0, 0], found[0, -1]) == (0, 255)
    assert np.array_equal(
        levels(preprocessors.depth(ramp, near_is_bright=False))[..., 0], 255 - found
    )
    assert levels(preprocessors.depth(np.ones((4, 4)))).max() == 0


def test_normals_of_a_plane() -> None:
    ramp = np.linspace(0.0, 1.0, 101)[None].repeat(20, 0)
    found = levels(preprocessors.normal(ramp, strength=1.0, background=0.0))[5, 50]
    slope = 101 / 100
    expected = np.array([slope, 0.0, 1.0]) / np.hypot(slope, 1.0) * 127.5 + 127.5
    assert np.abs(found - expected).max() <= 1
    assert np.abs(levels(preprocessors.normal(ramp))[5, 10] - [127.5, 127.5, 255]).max() <= 1


# ------------------------------ by name
def test_by_name() -> None:
    found = preprocessors.preprocess("canny", square(), low=50, high=100)
    assert np.array_equal(np.asarray(found), np.asarray(preprocessors.canny(square(), 50, 100)))
    with pytest.raises(ParameterError, match="choose one of blur, canny"):
        preprocessors.preprocess("cany", square())
    with pytest.raises(ParameterError, match="unexpected keyword"):
        preprocessors.preprocess("canny", square(), sigma=3)


def test_annotators_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    with pytest.raises(ParameterError, match="pip install controlnet-aux"):
        preprocessors.preprocess("openpose", square())

    class Detector:
        @classmethod
        def from_pretrained(cls, weights: str) -> Detector:
            assert weights == "lllyasviel/Annotators"
            return cls()

        def __call__(self, image: Image.Image) -> Image.Image:
            return image.resize((30, 20)).convert("L")

    package = types.ModuleType("controlnet_aux")
    package.OpenposeDetector = Detector  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "controlnet_aux", package)
    found = preprocessors.preprocess("openpose", square())
    assert (found.mode, found.size) == ("RGB", (60, 40))


def test_annotators_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessors, "_registered", {})
    preprocessors.register("mine", lambda image: Image.new("RGB", (1, 1)))
    assert preprocessors.preprocess("mine", square()).size == (1, 1)
    assert "mine" in preprocessors.names()
    with pytest.raises(ParameterError, match="choose another name"):
        preprocessors.register("canny", preprocessors.blur)
    with pytest.raises(ParameterError, match="must be a function"):
        preprocessors.register("text", "canny")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("canny", {"low": 300}),
        ("canny", {"high": float("nan")}),
        ("scribble", {"narrow": 6}),
        ("lineart", {"sigma": 0}),
        ("threshold", {"level": "high"}),
        ("tile", {"factor": 0.5}),
        ("blur", {"sigma": 1000}),
        ("normal", {"strength": 0}),
        ("segmentation", {"palette": []}),
        ("segmentation", {"palette": [(1, 2)]}),
        ("segmentation", {"palette": [(1, 2, 300)]}),
    ],
)
def test_bad_options(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        preprocessors.preprocess(name, square(), **options)


def test_bad_depth() -> None:
    with pytest.raises(ParameterError, match="NaN"):
        preprocessors.depth(np.full((4, 4), np.nan))
