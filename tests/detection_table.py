"""Every full-size model in every layout, and all families whose denoiser it could be.

``python -m tests.detection_table`` prints the table of docs/model-files.md, which
`tests/loading/test_detection_table.py` keeps true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

from sdengine import _core
from sdengine.families import FAMILIES, QWEN_IMAGE, Family
from sdengine.formats import TensorIndex
from sdengine.loading import detect
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of
from sdengine.loading.locate import locate
from tests import unet_inventories
from tests.dit import hunyuan_models, test_hunyuan_files, test_lumina_pixart_files
from tests.families import test_dit_families, test_qwen_family
from tests.inventories import State, index_of, with_prefix
from tests.keys import test_dit_inventories

Layouts = Mapping[str, Callable[[], State]]
PUBLISHER, FOLDER = "reference", "diffusers"
SHOWN = (PUBLISHER, FOLDER)


@dataclass(frozen=True)
class Model:
    """A published model, and the names under which its tensors are published."""

    family: Family
    title: str
    layouts: Layouts
    """The denoiser alone, or the whole model."""


def _unets() -> Iterator[tuple[str, Model]]:
    for member, (family, title, _) in unet_inventories.MEMBERS.items():
        layouts = {
            layout: partial(build, member)
            for layout, (_, build) in unet_inventories.LAYOUTS.items()
            if (member, layout) in set(unet_inventories.cases())
        }
        yield member, Model(family, title, layouts)


def _sd3_and_flux() -> Iterator[tuple[str, Model]]:
    for member in test_dit_inventories.MODELS:
        family, title = test_dit_families.EXPECTED[member]
        layouts = {
            layout: partial(_sd3_or_flux, member, layout)
            for layout in test_dit_inventories.layouts(member)
        }
        yield member, Model(family, title or family.title, layouts)


def _sd3_or_flux(member: str, layout: str) -> State:
    state = test_dit_inventories.layouts(member)[layout][1]
    return with_prefix("transformer/", state) if layout == FOLDER else state


def _published(original: Callable[[], State], diffusers: Callable[[], State]) -> Layouts:
    """The publisher's names, ComfyUI's prefix before them, and a diffusers folder."""
    return {
        PUBLISHER: original,
        "all in one": lambda: with_prefix("model.diffusion_model.", original()),
        FOLDER: lambda: with_prefix("transformer/", diffusers()),
    }


def _others() -> Iterator[tuple[str, Model]]:
    lumina, hunyuan = test_lumina_pixart_files, test_hunyuan_files
    qwen = test_qwen_family.denoiser
    yield "Qwen-Image", Model(QWEN_IMAGE, "Qwen-Image", _published(qwen, qwen))
    for member, family in lumina.FAMILIES.items():
        layouts = dict(
            _published(partial(lumina.original, member), partial(lumina.full_size, member))
        )
        if member == "PixArt-alpha 512":  # diffusers' names leave out what tells it from sigma
            del layouts[FOLDER]
        yield member, Model(family, member, layouts)
    for member, (_, family) in hunyuan.MODELS.items():
        diffusers = partial(hunyuan.full_size, member)
        original = partial(_hunyuan_original, member)
        yield member, Model(family, member, _published(original, diffusers))


def _hunyuan_original(member: str) -> State:
    return hunyuan_models.to_original(test_hunyuan_files.full_size(member))


@cache
def transformers() -> Mapping[str, Model]:
    return dict((*_sd3_and_flux(), *_others()))


@cache
def models() -> Mapping[str, Model]:
    return dict((*_unets(), *transformers().items()))


def cases() -> list[tuple[str, str]]:
    """(model, layout)."""
    return [(name, layout) for name, model in models().items() for layout in model.layouts]


def fitting(index: TensorIndex) -> list[Family]:
    """The families whose denoiser is in the file with hyper-parameters of theirs, in the order of asking."""
    found = []
    for family in FAMILIES:
        located = locate(index, family.component(family.denoiser))
        if located is not None and family.shape.fits(config_of(located, family)):
            found.append(family)
    return found


def mapped(name: str, layout: str) -> int:
    """How many tensors hold parameters of the denoiser; AssertionError if one is left."""
    located = detect(index_of(models()[name].layouts[layout]())).components["transformer"]
    config = config_of(located, models()[name].family)
    bindings, left = bind(located, _core.parameters(located.component.kind, config))
    assert set(left) <= {f"{located.prefix}y_embedder.y_embedding"}  # PixArt's null caption
    return len({binding.entry.name for binding in bindings})


def table() -> str:
    """The table of docs/model-files.md."""
    rows = [["denoiser", "family", *SHOWN], ["---"] * (len(SHOWN) + 2)]
    for name, model in transformers().items():
        counts = [str(mapped(name, layout)) if layout in model.layouts else "" for layout in SHOWN]
        rows.append([name, f"`{model.family.name}`", *counts])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
