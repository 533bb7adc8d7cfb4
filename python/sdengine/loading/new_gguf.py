"""Writing a GGUF: header, room for the data, and the new name only when it is complete."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from sdengine.errors import OutputError
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
    _make_room(path, tensors)
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


def _make_room(path: Path, tensors: Sequence[NewTensor]) -> None:
    align = gguf.GGUF_DEFAULT_ALIGNMENT
    size = -(-path.stat().st_size // align) * align
    size += sum(-(-tensor.nbytes // align) * align for tensor in tensors)
    os.truncate(path, size)


@contextmanager
def new_file(path: Path, nbytes: int) -> Iterator[Path]:
    """A file beside `path` that takes its name when the block ends, and is removed if it fails.

    What the block raises comes out as it is.

    Args:
        path: the name that the file will have.
        nbytes: how much will be written; checked against the space on the disk.

    Raises:
        OutputError: the folder is missing or read-only, or the disk is too small.
    """
    with output_errors(path):
        part = _reserve(path, nbytes)
    try:
        yield part
        with output_errors(path):
            _flush(part)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into an OutputError about `path`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error}") from error


def _reserve(path: Path, nbytes: int) -> Path:
    """An empty file beside `path`, on a disk with room for `nbytes`."""
    folder = path.absolute().parent
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OutputError(
            f"{path}: about {nbytes >> 20} MiB are needed, {folder} has {free >> 20} MiB free."
            " Make room, or choose a smaller weight type or another disk"
        )
    part = folder / f".{path.name[:100]}.{secrets.token_hex(4)}.part"
    # With the usual permissions, unlike what the tempfile module makes.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return part


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
