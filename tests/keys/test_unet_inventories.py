"""Every member of the UNet families in every layout: found for what it is, and wholly mapped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from tests import inventories, unet_inventories
from tests.renaming import unet_to_ldm

CASES = list(unet_inventories.cases())
PAGE = Path(__file__).resolve().parents[2] / "docs" / "model-files.md"


def documented() -> dict[tuple[str, str], int]:
    """(member, layout) -> tensors, as docs/model-files.md says."""
    rows = re.findall(r"^\| (.+) \|$", PAGE.read_text("utf-8"), re.M)
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    start = next(i for i, row in enumerate(cells) if row[1:] == list(unet_inventories.LAYOUTS))
    table = cells[start + 2 : start + 2 + len(unet_inventories.MEMBERS)]
    return {
        (row[0], layout): int(count)
        for row in table
        for layout, count in zip(unet_inventories.LAYOUTS, row[1:], strict=True)
        if count.strip(" |")
    }


@pytest.mark.parametrize(("member", "layout"), CASES, ids=[f"{m}, {kind}" for m, kind in CASES])
def test_every_tensor_maps(member: str, layout: str) -> None:
    assert unet_inventories.mapped(member, layout) == documented()[member, layout]


def test_the_documented_table_has_nothing_else() -> None:
    assert documented().keys() == set(CASES)


@pytest.mark.parametrize("member", ["SD 2.x, Turbo", "SDXL, Turbo, ...", "SDXL refiner"])
def test_the_names_are_those_that_diffusers_imports(member: str) -> None:
    """The tests' renaming, which the inventories are written with, against diffusers' importer."""
    reference, config = unet_inventories.unet(member), unet_inventories.MEMBERS[member][2]
    ldm = inventories.with_prefix("model.diffusion_model.", unet_to_ldm(reference))
    extra = {"class_embed_type": None, "addition_embed_type": config.get("addition_embed_type")}
    found = convert_ldm_unet_checkpoint(ldm, {**config, "layers_per_block": 2, **extra})
    assert found.keys() == reference.keys()
    assert all(found[name] is reference[name] for name in reference)


def test_parameters_of_sdxl_come_from_the_right_tensors() -> None:
    reference = unet_inventories.unet("SDXL, Turbo, ...")
    ldm = unet_to_ldm(reference)
    origin = {id(tensor): name for name, tensor in ldm.items()}
    sources = (
        unet_inventories.detected("SDXL, Turbo, ...", "single file").components["unet"].sources
    )
    assert {n: s.name for n, s in sources.items()} == {
        n: origin[id(t)] for n, t in reference.items()
    }
