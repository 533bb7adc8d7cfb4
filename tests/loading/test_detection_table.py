"""Every full-size model in every layout is found to be its family's, and no other family's by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdengine.families import (
    FAMILIES,
    PIXART_ALPHA,
    PIXART_SIGMA,
    SD1,
    SD2,
    SDXL,
    SDXL_REFINER,
    Family,
)
from sdengine.loading import detect
from tests import detection_table
from tests.inventories import index_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "model-files.md"
CASES = detection_table.cases()
WIDER: dict[str, list[Family]] = {
    SD2.name: [SD1],
    SDXL_REFINER.name: [SDXL],
    PIXART_SIGMA.name: [PIXART_ALPHA],
}
"""Families that take any widths, or have members with another's tensors: asked behind it, to be had by `family=`."""


@pytest.mark.parametrize(("name", "layout"), CASES, ids=[f"{n}, {kind}" for n, kind in CASES])
def test_each_is_its_family_alone(name: str, layout: str) -> None:
    model = detection_table.models()[name]
    index = index_of(model.layouts[layout]())
    found = detect(index)
    assert (found.family, found.title) == (model.family, model.title)
    wider = [] if name == "SD 2 depth" else WIDER.get(model.family.name, [])
    assert detection_table.fitting(index) == [model.family, *wider]


def test_no_family_is_left_out() -> None:
    present = {model.family.name for model in detection_table.models().values()}
    assert present == {family.name for family in FAMILIES}


def test_the_documented_table_is_true() -> None:
    assert detection_table.table() in PAGE.read_text("utf-8")
