"""What a kind of upscaler declares: its names, and how its hyper-parameters are told from shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Component
from sdengine.keys import KeyTable
from sdengine.loading.networks import Shapes


@dataclass(frozen=True)
class UpscalerKind:
    """One network that makes pictures larger or cleaner."""

    component: Component
    """Its native network, and its names in files."""
    config: Callable[[Shapes], dict[str, Any]]
    """The native network's config from shapes under canonical names; raises WeightsError."""
    scale: Callable[[dict[str, Any]], int]
    """How much larger a config makes pictures; raises WeightsError."""
    grid: Callable[[dict[str, Any]], int] = lambda config: 1
    """The squares of points it works on, at which tiles must begin."""


def component(
    title: str, kind: str, tables: tuple[KeyTable, ...], ignored: tuple[str, ...] = ()
) -> Component:
    """An upscaler's network, which files keep without a prefix and `convert` does not write."""
    return Component(
        name="upscaler",
        title=title,
        kind=kind,
        prefixes=("",),
        tables=tables,
        argument="",
        written=("", tables[0].name),
        ignored=ignored,
    )


def square_root(what: str, value: int, parts: int) -> int:
    """The root of ``value / parts``: a factor by which squares of points become channels.

    Raises:
        WeightsError: it is not a whole number.
    """
    root = math.isqrt(value // parts)
    if not root or root * root * parts != value:
        raise WeightsError(
            f"{what}: found {value} channels; expected {parts} times a square number. The file is"
            " damaged, or an upscaler of another kind"
        )
    return root
