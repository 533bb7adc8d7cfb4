"""The families of SD3 and FLUX.1 against the full-size models of `tests/keys/test_dit_inventories.py`."""

from __future__ import annotations

from typing import Any

import pytest

from sdengine.families.flux import FLUX, SCHNELL
from sdengine.families.sd3 import SD3
from sdengine.loading.locate import locate
from sdengine.sampling import SAMPLERS, SCHEDULES
from tests.inventories import index_of, with_prefix
from tests.keys.test_dit_inventories import MODELS, layouts
from tests.parity.dit import config_of

FAMILIES = (SD3, FLUX, SCHNELL)
EXPECTED: dict[str, tuple[Any, str | None]] = {
    "SD3-Medium": (SD3, "Stable Diffusion 3 Medium"),
    "SD3.5-Medium": (SD3, "Stable Diffusion 3.5 Medium"),
    "SD3.5-Large": (SD3, "Stable Diffusion 3.5 Large"),
    "FLUX.1-dev": (FLUX, None),
    "FLUX.1-schnell": (SCHNELL, None),
    "FLUX.1-Fill": (FLUX, "FLUX.1 Fill"),
    "FLUX.1-Canny": (FLUX, "FLUX.1 Canny or Depth"),
    "FLUX-mini": (FLUX, "FLUX-mini"),
}


@pytest.mark.parametrize("model", MODELS)
def test_every_layout_is_its_family_alone(model: str) -> None:
    family, title = EXPECTED[model]
    for layout, (_, state) in layouts(model).items():
        if layout == "diffusers":
            state = with_prefix("transformer/", state)
        index = index_of(state)
        fitting = []
        for candidate in FAMILIES:
            found = locate(index, candidate.component("transformer"))
            if found is not None and candidate.shape.fits(config := config_of(found)):
                fitting.append(candidate)
                variant = candidate.variant(config)
                assert (variant.title if variant else None) == title, layout
        assert fitting == [family], layout


def test_defaults_are_known_names() -> None:
    for family in FAMILIES:
        assert family.defaults.sampler in SAMPLERS
        assert family.defaults.schedule in SCHEDULES
        assert family.tokenizers.keys() <= {component.name for component in family.components}
        assert [use.component for use in family.text] == list(family.tokenizers)
