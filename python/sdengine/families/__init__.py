"""The model families that sdengine runs, and the list of those that it only recognises.

A new family is one file here and one entry in `FAMILIES`: see docs/adding-a-model.md.
"""

from __future__ import annotations

from sdengine.families.family import (
    CONTEXT,
    Component,
    Config,
    Family,
    PredictionTest,
    Shape,
    Sight,
    SizeConditioning,
    Task,
    TextUse,
    Variant,
)
from sdengine.families.flux import FLUX, SCHNELL
from sdengine.families.hunyuan_dit import HUNYUAN_DIT, HUNYUAN_DIT_1_1
from sdengine.families.kolors import KOLORS
from sdengine.families.lumina2 import LUMINA2
from sdengine.families.pixart import PIXART_ALPHA, PIXART_SIGMA
from sdengine.families.qwen_image import QWEN_IMAGE
from sdengine.families.sd1 import SD1
from sdengine.families.sd2 import SD2
from sdengine.families.sd3 import SD3
from sdengine.families.sdxl import SDXL
from sdengine.families.sdxl_refiner import SDXL_REFINER
from sdengine.families.settings import Betas, Defaults, Flow, LatentFormat, Prediction, References

FAMILIES: tuple[Family, ...] = (
    *(SD2, KOLORS, SDXL_REFINER, SDXL, SD1),
    *(SD3, FLUX, SCHNELL, QWEN_IMAGE),
    *(HUNYUAN_DIT, HUNYUAN_DIT_1_1),
    *(LUMINA2, PIXART_SIGMA, PIXART_ALPHA),
)
"""Asked in this order; the first whose denoiser fits wins."""

__all__ = [
    "CONTEXT",
    "FAMILIES",
    "HUNYUAN_DIT",
    "HUNYUAN_DIT_1_1",
    "KOLORS",
    "LUMINA2",
    "PIXART_ALPHA",
    "PIXART_SIGMA",
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
    "References",
    "Shape",
    "Sight",
    "SizeConditioning",
    "Task",
    "TextUse",
    "Variant",
]
