"""From an upscaler's file to a validated plan; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

from sdengine import _core
from sdengine.errors import ParameterError, UnsupportedModelError, WeightsError
from sdengine.formats import TensorIndex, open_index
from sdengine.loading import ComponentPlan, detect
from sdengine.loading.bind import bind
from sdengine.loading.locate import Located, locate
from sdengine.loading.networks import Shapes
from sdengine.upscalers import rrdb, srvgg, swinir
from sdengine.upscalers.kind import UpscalerKind

KINDS: tuple[UpscalerKind, ...] = (swinir.KIND, rrdb.KIND, srvgg.KIND)

_CHANNELS = (1, 3)
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class UpscalerPlan:
    """An upscaler, validated and ready to be loaded."""

    title: str
    network: ComponentPlan
    scale: int
    """The output is so many times as wide and high as the input."""
    grid: int
    """The network works on squares of so many pixels, at which tiles begin."""
    channels: int
    """3 for colour, 1 for grey pictures."""


def plan_upscaler(path: str | PathLike[str]) -> UpscalerPlan:
    """Find out which upscaler `path` is and where every parameter of it lies.

    Raises:
        UnsupportedModelError: it is none, or one that sdengine does not run; the message says what.
        WeightsError: a parameter is missing or does not fit.
        FormatError: the file is damaged.
    """
    index = open_index(path)
    for kind in KINDS:
        located = locate(index, kind.component)
        if located is not None:
            return _planned(kind, located)
    raise UnsupportedModelError(f"{index.path} is no upscaler that sdengine runs: {_found(index)}")


def _found(index: TensorIndex) -> str:
    found = detect(index)
    return found.reason or f"this is {found.title}; load it with sdengine.load"


def _planned(kind: UpscalerKind, located: Located) -> UpscalerPlan:
    path = located.index.path
    shapes = Shapes({name: source.shape for name, source in located.sources.items()})
    try:
        config = kind.config(shapes)
        scale = kind.scale(config)
        expected = _core.parameters(kind.component.kind, config)
    except (WeightsError, ParameterError) as error:
        raise WeightsError(f"{path}: {error}") from None
    channels = int(config["channels"])
    if channels not in _CHANNELS:
        raise UnsupportedModelError(
            f"{path}: the upscaler takes pictures of {channels} channels; expected 3 (colour) or 1"
            " (grey). Use one for colour pictures"
        )
    bindings, spare = bind(located, expected)
    if spare:
        shown = ", ".join(map(repr, spare[:_NAMES_SHOWN]))
        raise UnsupportedModelError(
            f"{path}: looks like {kind.component.title}, but has {len(spare)} tensors that such a"
            f" network does not have: {shown}. It is a relative that sdengine does not run; use a"
            " model of one of the kinds in docs/upscaling.md"
        )
    plan = ComponentPlan(
        located.component.name, kind.component.kind, config, bindings, path, located.table.name
    )
    return UpscalerPlan(kind.component.title, plan, scale, kind.grid(config), channels)
