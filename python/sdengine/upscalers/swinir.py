"""SwinIR: classical, lightweight and real-world upscaling, denoising, JPEG repair (arXiv 2108.10257)."""

from __future__ import annotations

import math
from typing import Any

from sdengine.errors import WeightsError
from sdengine.keys import KeyTable, Rule
from sdengine.loading.networks import Shapes
from sdengine.upscalers.kind import UpscalerKind, component, square_root

_KERNEL = 3
_BLOCK = "layers.{}.residual_group.blocks.{}."
_TABLE = _BLOCK + "attn.relative_position_bias_table"
# The models against JPEG's artefacts, and only those, have windows of 7 and see 0..255 (the
# published main_test_swinir.py).
_JPEG_WINDOW, _JPEG_RANGE = 7, 255.0

ORIGINAL = KeyTable(
    name="SwinIR",
    rules=(Rule("", ""),),
    markers=("conv_first.weight", _TABLE.format(0, 0)),
    # Computed from the window and from the size of the training pictures.
    ignored=("*.relative_position_index", "*.attn_mask"),
)


def _config(shapes: Shapes) -> dict[str, Any]:
    width = shapes.length("conv_first.bias")
    channels = shapes.columns("conv_first.weight", width, _KERNEL)
    layers = shapes.count("layers.")
    window = _window(shapes)
    return {
        "channels": channels,
        "width": width,
        "inner": shapes.length(_BLOCK.format(0, 0) + "mlp.fc1.bias"),
        "depths": [shapes.count(f"layers.{i}.residual_group.blocks.") for i in range(layers)],
        "heads": [shapes.size(_TABLE.format(i, 0), 1) for i in range(layers)],
        "window": window,
        "bottleneck": "conv_after_body.0.weight" in shapes,
        "range": _JPEG_RANGE if window == _JPEG_WINDOW else 1.0,
        **_upsampler(shapes, channels),
    }


def _window(shapes: Shapes) -> int:
    """The side of the windows: the table has a row for each of (2 side - 1)^2 distances."""
    name = _TABLE.format(0, 0)
    rows = shapes.size(name, 0)
    distances = math.isqrt(rows)
    if distances * distances != rows or distances % 2 == 0:
        raise WeightsError(
            f"{name!r} has {rows} rows; expected the square of an odd number. Is the file damaged?"
        )
    return (distances + 1) // 2


def _upsampler(shapes: Shapes, channels: int) -> dict[str, Any]:
    """How the output is made larger, told by which layers there are."""
    if "conv_before_upsample.0.bias" not in shapes:
        if "upsample.0.bias" not in shapes:
            return {"upsampler": "none", "factors": [], "upsampler_width": 0}
        factor = square_root("upsample.0.bias", shapes.length("upsample.0.bias"), channels)
        return {"upsampler": "pixelshuffledirect", "factors": [factor], "upsampler_width": 0}
    width = shapes.length("conv_before_upsample.0.bias")
    factors: list[int] = []
    if "conv_up1.bias" in shapes:
        while f"conv_up{len(factors) + 1}.bias" in shapes:
            factors.append(2)
        return {"upsampler": "nearest+conv", "factors": factors, "upsampler_width": width}
    while (name := f"upsample.{2 * len(factors)}.bias") in shapes:
        factors.append(square_root(name, shapes.length(name), width))
    return {"upsampler": "pixelshuffle", "factors": factors, "upsampler_width": width}


KIND = UpscalerKind(
    component("an upscaler (SwinIR)", "upscaler_swinir", (ORIGINAL,)),
    _config,
    lambda config: math.prod(config["factors"]),
    lambda config: int(config["window"]),
)
