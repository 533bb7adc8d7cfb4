"""Writing a GGUF: its header, and room for the data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdengine.formats import DTYPES, open_index

_UNTYPED = np.dtype(np.void)  # the writer takes the ggml type that comes with it


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor that a new GGUF announces."""

    name: str
    """Longer than the 64 bytes that plain ggml allows where the usual names are; readers of image
    models take them.
    """
    dtype: str
    shape: tuple[int, ...]
    """Torch order. If it is quantized, rows of whole blocks."""
    original_shape: tuple[int, ...]
    """What readers make of it; differs from `shape` for a quantized kernel."""

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        elements = 1
        for size in self.shape:
            elements *= size
        return DTYPES[self.dtype].nbytes(elements)


def write_header(
    path: Path, architecture: str, fields: Mapping[str, Any], tensors: Sequence[NewTensor]
) -> dict[str, int]:
    """Write everything but the data, and make the file as long as it will be.

    Args:
        path: the file to write.
        architecture: ``general.architecture``.
        fields: further key/values: strings, bools, ints (stored as u32), lists of one type.
        tensors: in the order of the file.

    Returns:
        Tensor name -> offset of its data, in bytes from the start of the file.
    """
    import gguf  # takes as long as all of numpy, and only writing needs it

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        _add_field(writer, key, value)
    for tensor in tensors:
        if tensor.shape != tensor.original_shape:
            # The convention of city96's converter, which ComfyUI and its relatives read.
            writer.add_array(f"comfy.gguf.orig_shape.{tensor.name}", list(tensor.original_shape))
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.dtype.upper()]
        writer.add_tensor_info(tensor.name, tensor.shape, _UNTYPED, tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    _make_room(path, tensors, gguf.GGUF_DEFAULT_ALIGNMENT)
    entries = open_index(path).tensors  # our own reader places and checks every tensor
    return {tensor.name: entries[tensor.name].offset for tensor in tensors}


def _add_field(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:  # the format has no empty arrays
        writer.add_array(key, value)


def _make_room(path: Path, tensors: Sequence[NewTensor], align: int) -> None:
    size = -(-path.stat().st_size // align) * align
    size += sum(-(-tensor.nbytes // align) * align for tensor in tensors)
    os.truncate(path, size)
