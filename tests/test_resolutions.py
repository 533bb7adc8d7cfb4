"""Sizes that models are at home in, and the one nearest to a shape."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdengine.api import demo_pipeline
from sdengine.errors import ParameterError
from sdengine.families import FAMILIES
from sdengine.resolutions import nearest, parse_ratio, resolutions

FAMILY = {family.name: family for family in FAMILIES}


def test_sdxl_has_the_published_list() -> None:
    # Podell et al. 2023, appendix I: aspect ratios (height / width) of the table, to two digits.
    ratios = "0.25 0.26 0.27 0.28 0.32 0.33 0.35 0.4 0.42 0.48 0.5 0.52 0.57 0.6 0.68 0.72 0.78 0.82 0.88 0.94 1.0"
    sizes = resolutions(FAMILY["sdxl"], FAMILY["sdxl"].defaults)
    assert [round(w / h, 2) for w, h in sizes[:21]] == [float(r) for r in ratios.split()]
    assert sizes == sorted(sizes, key=lambda size: size[0] / size[1])
    assert {(h, w) for w, h in sizes} == set(sizes)
    for name in ("sdxl_refiner", "kolors"):
        assert resolutions(FAMILY[name], FAMILY[name].defaults) == sizes


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
@pytest.mark.parametrize("side", [64, 128, 512, 768, 1024])
def test_every_list_fits_its_model(family: object, side: int) -> None:
    defaults = replace(family.defaults, width=side, height=side)  # type: ignore[attr-defined]
    sizes = resolutions(family, defaults)  # type: ignore[arg-type]
    assert (side, side) in sizes
    assert len(set(sizes)) == len(sizes)
    assert all(w % 8 == 0 and h % 8 == 0 for w, h in sizes)
    # Hunyuan-DiT has larger and smaller ones too, which no aspect ratio chooses.
    taken = {nearest(sizes, w / h, side**2) for w, h in sizes}
    assert all(0.89 <= w * h / side**2 <= 1.13 for w, h in taken)


def test_of_one_shape_the_size_of_the_model_s_area_is_taken() -> None:
    family = FAMILY["hunyuan_dit"]
    sizes = resolutions(family, family.defaults)
    assert len(sizes) == 10  # Tencent/HunyuanDiT, README.md
    found = [nearest(sizes, ratio, 1024**2) for ratio in (0.6, 0.75, 1, 4 / 3, 5 / 3)]
    assert found == [(768, 1280), (864, 1152), (1024, 1024), (1152, 864), (1280, 768)]
    assert nearest(sizes, 1) == (1280, 1280)


def test_an_sdxl_for_small_pictures_does_not_get_the_list() -> None:
    turbo = replace(FAMILY["sdxl"].defaults, width=512, height=512)
    assert resolutions(FAMILY["sdxl"], turbo) == resolutions(FAMILY["sd1"], FAMILY["sd1"].defaults)


@pytest.mark.parametrize(
    ("family", "ratio", "size"),
    [
        *[("sdxl", "16:9", (1344, 768)), ("sdxl", "9:16", (768, 1344)), ("sdxl", 1, (1024, 1024))],
        *[
            ("sdxl", "3:2", (1216, 832)),
            ("sdxl", "4/3", (1152, 896)),
            ("sdxl", "16:1", (2048, 512)),
        ],
        *[("sd1", "3:2", (640, 448)), ("sd1", "1.78", (704, 384)), ("sd1", 0.5, (384, 704))],
    ],
)
def test_the_nearest_size(family: str, ratio: str | float, size: tuple[int, int]) -> None:
    sizes = resolutions(FAMILY[family], FAMILY[family].defaults)
    assert nearest(sizes, parse_ratio(ratio)) == size


def test_of_equals_the_largest_is_taken() -> None:
    assert nearest([(64, 64), (128, 128), (96, 96)], 1.0) == (128, 128)


@pytest.mark.parametrize("ratio", ["wide", "16:0", "0:9", "", "-1", 0, 17, float("nan"), True, [1]])
def test_ratios_that_are_none(ratio: object) -> None:
    with pytest.raises(ParameterError, match="aspect_ratio must be width over height"):
        parse_ratio(ratio)


def test_the_option() -> None:
    pipe = demo_pipeline()
    assert (128, 128) in pipe.resolutions
    parameters = pipe.start("a", aspect_ratio="3:2", steps=1).parameters
    assert (parameters.width, parameters.height) == (160, 112)
    with pytest.raises(ParameterError, match="aspect_ratio, or width and height, and not both"):
        pipe.start("a", aspect_ratio="3:2", width=64)
