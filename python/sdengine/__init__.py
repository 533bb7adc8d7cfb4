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
from .guidance import Guidance
from .inspection import ModelInfo, inspect
from .options import GenerateOptions
from .pipeline import Pipeline
from .results import Result
from .run import Run
from .upscalers import Upscaler, load_upscaler

__all__ = [
    "Cancelled",
    "Conditioning",
    "ControlNet",
    "Device",
    "DeviceError",
    "FormatError",
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
    "TokenizerError",
    "UnsupportedModelError",
    "UnwiseWarning",
    "Upscaler",
    "WeightsError",
    "__version__",
    "convert",
    "devices",
    "errors",
    "generate",
    "guidance",
    "inspect",
    "load",
    "load_upscaler",
    "profiling",
    "random",
    "sampling",
]
