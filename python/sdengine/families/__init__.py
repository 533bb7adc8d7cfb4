"""The model families that sdengine runs, and the list of those that it only recognises.

A new family is one file here and one entry in `FAMILIES`: see docs/adding-a-model.md.
"""

from __future__ import annotations

from sdengine.families.family import (
    Component,
    Config,
    Family,
    Shape,
    SizeConditioning,
    Task,
    TextUse,
    Variant,
)
from sdengine.families.sd1 import SD1
from sdengine.families.settings import Betas, Defaults, LatentFormat, Prediction

FAMILIES: tuple[Family, ...] = (SD1,)
"""Asked in this order; the first whose denoiser fits wins."""

__all__ = [
    "FAMILIES",
    "SD1",
    "Betas",
    "Component",
    "Config",
    "Defaults",
    "Family",
    "LatentFormat",
    "Prediction",
    "Shape",
    "SizeConditioning",
    "Task",
    "TextUse",
    "Variant",
]
