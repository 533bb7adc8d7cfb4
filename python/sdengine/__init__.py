"""Local image generation: Stable Diffusion class models, quantized, on the machine you have.

::

    import sdengine

    sdengine.generate("a red circle on a blue background").image.save("circle.png")

    pipe = sdengine.load("model.gguf")
    result = pipe.generate("a lighthouse at dusk", steps=20, seed=42)
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from . import errors
from ._core import __version__
from .devices import Device, devices, unusable_backends
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

if TYPE_CHECKING:
    from . import guidance, profiling, random, sampling
    from .adapters import Lora
    from .api import generate, load
    from .conditioning import Conditioning
    from .control import ControlNet
    from .conversion import convert
    from .events import StepEvent
    from .grids import animation, grid, xy_grid
    from .guidance import Guidance
    from .inspection import ModelInfo, inspect
    from .memory.plan import Plan
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
    "Plan",
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
    "unusable_backends",
    "xy_grid",
]

_HOMES = {
    "adapters": ("Lora",),
    "api": ("generate", "load"),
    "conditioning": ("Conditioning",),
    "control": ("ControlNet",),
    "conversion": ("convert",),
    "events": ("StepEvent",),
    "grids": ("animation", "grid", "xy_grid"),
    "guidance": ("Guidance",),
    "inspection": ("ModelInfo", "inspect"),
    "memory.plan": ("Plan",),
    "options": ("GenerateOptions",),
    "outpainting": ("outpaint",),
    "pipeline": ("Pipeline",),
    "previews": ("Frames",),
    "results": ("Result",),
    "run": ("Run",),
    "tiled_diffusion": ("TiledDiffusion",),
    "upscalers": ("Upscaler", "load_upscaler"),
}
"""What each module gives to this one when it is first asked for, so that importing costs next to nothing."""
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
