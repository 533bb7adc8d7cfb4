"""Local image generation: Stable Diffusion class models, quantized, on the machine you have.

::

    import sdengine

    sdengine.generate("a red circle on a blue background").image.save("circle.png")

    pipe = sdengine.load("model.gguf")
    result = pipe.generate("a lighthouse at dusk", steps=20, seed=42)
"""

from __future__ import annotations

from . import errors, guidance, profiling, random, sampling
from ._core import __version__
from .adapters import Lora
from .api import generate, load
from .conditioning import Conditioning
from .control import ControlNet
from .conversion import convert
from .devices import Device, devices
from .errors import (
    Cancelled,
    DeviceError,
    FormatError,
    NumericError,
    OutOfMemoryError,
    OutputError,
    ParameterError,
    SDEngineError,
    TokenizerError,
    UnsupportedModelError,
    UnwiseWarning,
    WeightsError,
)
from .events import StepEvent
from .grids import animation, grid, xy_grid
from .guidance import Guidance
from .inspection import ModelInfo, inspect
from .options import GenerateOptions
from .outpainting import outpaint
from .pipeline import Pipeline
from .previews import Frames
from .results import Result
from .run import Run
from .tiled_diffusion import TiledDiffusion
from .upscalers import Upscaler, load_upscaler

__all__ = [
    "Cancelled",
    "Conditioning",
    "ControlNet",
    "Device",
    "DeviceError",
    "FormatError",
    "Frames",
    "GenerateOptions",
    "Guidance",
    "Lora",
    "ModelInfo",
    "NumericError",
    "OutOfMemoryError",
    "OutputError",
    "ParameterError",
    "Pipeline",
    "Result",
    "Run",
    "SDEngineError",
    "StepEvent",
    "TiledDiffusion",
    "TokenizerError",
    "UnsupportedModelError",
    "UnwiseWarning",
    "Upscaler",
    "WeightsError",
    "__version__",
    "animation",
    "convert",
    "devices",
    "errors",
    "generate",
    "grid",
    "guidance",
    "inspect",
    "load",
    "load_upscaler",
    "outpaint",
    "profiling",
    "random",
    "sampling",
    "xy_grid",
]
