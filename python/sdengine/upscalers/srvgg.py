"""Real-ESRGAN's compact upscalers: a chain of convolutions and PReLUs (arXiv 2107.10833)."""

from __future__ import annotations

from typing import Any

from sdengine.errors import WeightsError
from sdengine.keys import KeyTable, Rule, numbers_at
from sdengine.loading.networks import Shapes
from sdengine.upscalers.kind import UpscalerKind, component, square_root

_KERNEL = 3

BASICSR = KeyTable(
    name="BasicSR", rules=(Rule("", ""),), markers=("body.0.weight", "body.1.weight")
)


def _config(shapes: Shapes) -> dict[str, Any]:
    last = max(numbers_at(shapes, "body."))
    if last < 2 or last % 2:
        raise WeightsError(
            f"the upscaler's layers end at body.{last}; expected convolutions at even numbers and"
            " PReLUs between them. The file is damaged, or an upscaler of another kind"
        )
    width = shapes.length("body.0.bias")
    channels = shapes.columns("body.0.weight", width, _KERNEL)
    return {
        "channels": channels,
        "width": width,
        "blocks": last // 2 - 1,
        "scale": square_root(f"body.{last}.bias", shapes.length(f"body.{last}.bias"), channels),
    }


KIND = UpscalerKind(
    component("an upscaler (Real-ESRGAN compact)", "upscaler_srvgg", (BASICSR,)),
    _config,
    lambda config: int(config["scale"]),
)
