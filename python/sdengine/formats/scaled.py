"""Scaled 8-bit weights: a factor per tensor stands in a tensor of its own.

ComfyUI's files have a mark ``scaled_fp8`` and, beside each 8-bit ``weight``, ``scale_weight`` (later ``weight_scale``);
what its GPU kernels are told about their input (``scale_input``, ``input_scale``, ``comfy_quant``) has no use here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import replace

from sdengine.formats.index import TensorEntry, TensorIndex
from sdengine.formats.source import format_error

_SCALES = ("scale_weight", "weight_scale")
_SUPERFLUOUS = ("scale_input", "input_scale", "comfy_quant")
_MARK = "scaled_fp8"
_EIGHT_BIT = ("f8_e4m3", "f8_e5m2")


def with_scales(index: TensorIndex) -> TensorIndex:
    """The index with every factor in the entry that it belongs to, and without the tensors that hold them.

    Raises:
        FormatError: a factor is no single positive number.
    """
    scales: dict[str, str] = {}
    for name in index.tensors:
        module, dot, last = name.rpartition(".")
        weight = f"{module}{dot}weight"
        if last in _SCALES and _is_eight_bit(index.tensors, weight):
            scales[weight] = name
    marked = {name for name in index.tensors if name.rpartition(".")[2].rpartition("/")[2] == _MARK}
    if not scales and not marked:
        return index
    modules = {weight.removesuffix("weight") for weight in scales}
    dropped = {*scales.values(), *marked, *(m + last for m in modules for last in _SUPERFLUOUS)}
    return replace(
        index,
        tensors={
            name: replace(entry, scale=_factor(index.tensors[scales[name]]))
            if name in scales
            else entry
            for name, entry in index.tensors.items()
            if name not in dropped
        },
    )


def _is_eight_bit(tensors: Mapping[str, TensorEntry], name: str) -> bool:
    return name in tensors and tensors[name].dtype in _EIGHT_BIT


def _factor(entry: TensorEntry) -> float:
    """The one number of a tensor."""
    if entry.elements != 1 or entry.dtype not in ("f32", "f16", "bf16"):
        found = f"{entry.name!r} of {entry.dtype} {list(entry.shape)}"
        remedy = "Convert the model to bf16 or f16, or take another 8-bit file of it."
        raise format_error(entry.path, found, "one number per 8-bit weight", remedy)
    with open(entry.path, "rb") as file:
        file.seek(entry.offset)
        data = file.read(entry.nbytes)
    if entry.dtype == "bf16":
        data = b"\0\0" + data
    value: float = struct.unpack("<e" if entry.dtype == "f16" else "<f", data)[0]
    if not (math.isfinite(value) and value > 0):
        raise format_error(entry.path, f"a factor of {value} ({entry.name!r})", "a positive number")
    return value
