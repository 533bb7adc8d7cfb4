"""ESRGAN, Real-ESRGAN, BSRGAN and ESRGAN+: residual dense blocks (arXiv 1809.00219, 2107.10833).

Three dialects: BasicSR's (canonical), the one of BSRGAN and Real-SR with trunks and HRconv, and the
first release of ESRGAN, which numbers the layers of a chain.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sdengine.errors import WeightsError
from sdengine.keys import KeyTable, Rule, numbers_at
from sdengine.keys.templates import Variables
from sdengine.loading.networks import Shapes
from sdengine.upscalers.kind import UpscalerKind, component, square_root

_KERNEL = 3
_DENSE_BLOCKS = (1, 2, 3)
_CONVOLUTIONS = (1, 2, 3, 4, 5)

BASICSR = KeyTable(
    name="BasicSR",
    rules=(Rule("", ""),),
    markers=("conv_first.weight", "body.0.rdb1.conv1.weight"),
)


def _bsrgan_variables(names: Collection[str]) -> Variables:
    return {
        "n": numbers_at(names, "RRDB_trunk."),
        "d": _DENSE_BLOCKS,
        "u": numbers_at(names, "upconv"),
    }


BSRGAN = KeyTable(
    name="BSRGAN",
    rules=(
        Rule("conv_first.", "conv_first."),
        Rule("body.{n}.rdb{d}.", "RRDB_trunk.{n}.RDB{d}."),
        Rule("conv_body.", "trunk_conv."),
        Rule("conv_up{u}.", "upconv{u}."),
        Rule("conv_hr.", "HRconv."),
        Rule("conv_last.", "conv_last."),
    ),
    markers=("conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight"),
    variables=_bsrgan_variables,
)


def _chain_variables(names: Collection[str]) -> Variables:
    blocks = numbers_at(names, "model.1.sub.")
    # First convolution, trunk, three layers per enlargement, convolution, activation, convolution.
    doublings = max(0, (numbers_at(names, "model.")[-1] - 4) // 3)
    return {
        "n": blocks[:-1],
        "trunk": blocks[-1:],
        "d": _DENSE_BLOCKS,
        "c": _CONVOLUTIONS,
        "u": [n // 3 for n in numbers_at(names, "model.") if n % 3 == 0 and 0 < n <= 3 * doublings],
        "k": [doublings],
    }


ESRGAN = KeyTable(
    name="ESRGAN",
    rules=(
        Rule("conv_first.", "model.0."),
        Rule("body.{n}.rdb{d}.conv{c}.", "model.1.sub.{n}.RDB{d}.conv{c}.0."),
        Rule("body.{n}.rdb{d}.conv1x1.", "model.1.sub.{n}.RDB{d}.conv1x1."),
        Rule("conv_body.", "model.1.sub.{trunk}."),
        Rule("conv_up{u}.", "model.{3*u}."),
        Rule("conv_hr.", "model.{3*k+2}."),
        Rule("conv_last.", "model.{3*k+4}."),
    ),
    markers=("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"),
    variables=_chain_variables,
)


def _config(shapes: Shapes) -> dict[str, Any]:
    width, channels = shapes.length("conv_first.bias"), shapes.length("conv_last.bias")
    folded = shapes.columns("conv_first.weight", width, _KERNEL)
    doublings = 0
    while f"conv_up{doublings + 1}.weight" in shapes:
        doublings += 1
    return {
        "channels": channels,
        "width": width,
        "growth": shapes.length("body.0.rdb1.conv1.bias"),
        "blocks": shapes.count("body."),
        "doublings": doublings,
        "unshuffle": square_root("conv_first.weight", folded, channels),
        "shortcuts": "body.0.rdb1.conv1x1.weight" in shapes,
    }


def _scale(config: dict[str, Any]) -> int:
    scale, rest = divmod(1 << int(config["doublings"]), int(config["unshuffle"]))
    if rest or not scale:
        raise WeightsError(
            f"the upscaler folds pictures by {config['unshuffle']} and doubles them"
            f" {config['doublings']} times, which is no whole scale. The file is damaged"
        )
    return scale


KIND = UpscalerKind(
    component("an upscaler (ESRGAN)", "upscaler_rrdb", (BASICSR, BSRGAN, ESRGAN)),
    _config,
    _scale,
    lambda config: int(config["unshuffle"]),
)
