"""The model families that sdengine runs, and the list of those that it only recognises.

A new family is one file here and one entry in `FAMILIES`: see docs/adding-a-model.md.
"""

from __future__ import annotations

from sdengine.families.family import (
    Component,
    Config,
    Family,
    PredictionTest,
    Shape,
    SizeConditioning,
    Task,
    TextUse,
    Variant,
)
from sdengine.families.flux import FLUX, SCHNELL
from sdengine.families.kolors import KOLORS
from sdengine.families.sd1 import SD1
from sdengine.families.sd2 import SD2
from sdengine.families.sd3 import SD3
from sdengine.families.sdxl import SDXL
from sdengine.families.sdxl_refiner import SDXL_REFINER
from sdengine.families.settings import Betas, Defaults, Flow, LatentFormat, Prediction

FAMILIES: tuple[Family, ...] = (
    *(SD2, KOLORS, SDXL_REFINER, SDXL, SD1),
    *(SD3, FLUX, SCHNELL),
)
"""Asked in this order; the first whose denoiser fits wins."""

__all__ = [
    "FAMILIES",
    "KOLORS",
    "SD1",
    "SD2",
    "SDXL",
    "SDXL_REFINER",
    "Betas",
    "Component",
    "Config",
    "Defaults",
    "Family",
    "Flow",
    "LatentFormat",
    "Prediction",
    "PredictionTest",
    "Shape",
    "SizeConditioning",
    "Task",
    "TextUse",
    "Variant",
]
