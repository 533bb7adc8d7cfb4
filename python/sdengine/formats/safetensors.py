"""Safetensors headers (layout: the README of huggingface/safetensors).

u64 header length, a JSON object ``{name: {dtype, shape, data_offsets: [begin, end]}}``, the data.
Offsets count from the start of the data; as in the reference implementation the tensors must fill
the data without overlap, hole or rest.
"""

from __future__ import annotations

import math
from typing import Any, Final

from sdengine.errors import FormatError
from sdengine.formats.dtypes import DTYPES
from sdengine.formats.index import TensorEntry, TensorIndex, is_shape
from sdengine.formats.source import (
    DOWNLOAD_AGAIN,
    Source,
    format_error,
    parse_json_object,
    quoted,
)

LENGTH_BYTES: Final = 8
_MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit

_DTYPES: Final[dict[str, str]] = {
    "F64": "f64",
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "F8_E4M3": "f8_e4m3",
    "F8_E5M2": "f8_e5m2",
    "I64": "i64",
    "I32": "i32",
    "I16": "i16",
    "I8": "i8",
    "U8": "u8",
    "BOOL": "bool",
}


def read_safetensors(source: Source) -> TensorIndex:
    """The index of a safetensors file. Raises FormatError for everything that is not sound."""
    length = int.from_bytes(source.head[:LENGTH_BYTES], "little")
    if length > _MAX_HEADER_BYTES:
        expected = f"at most {_MAX_HEADER_BYTES}"
        raise format_error(source.path, f"a safetensors header of {length} bytes", expected)
    data_start = LENGTH_BYTES + length
    if data_start > source.size:
        expected = f"at least {data_start}, its safetensors header alone"
        raise format_error(source.path, f"a file of {source.size} bytes", expected)
    data = source.read(LENGTH_BYTES, length)
    header = parse_json_object(data, source.path, "a safetensors header")
    metadata = _metadata(source, header.pop("__metadata__", {}))
    tensors = {name: _entry(source, name, value, data_start) for name, value in header.items()}
    _check_coverage(source, tensors, data_start)
    return TensorIndex(source.path, "safetensors", tensors, metadata)


def _metadata(source: Source, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise format_error(source.path, "a __metadata__ of another kind", "text by name")
    return value


def _entry(source: Source, name: str, value: Any, data_start: int) -> TensorEntry:
    """The entry of one tensor (that they fill the data is checked by :func:`_check_coverage`)."""
    if not isinstance(value, dict) or not value.keys() >= {"dtype", "shape", "data_offsets"}:
        expected = "dtype, shape and data_offsets"
        raise _tensor_error(source, name, f"record {quoted(value)}", expected)
    dtype_name = _DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype_name is None:
        remedy = "Convert the tensor to one of these types."
        expected = f"one of {', '.join(_DTYPES)}"
        raise _tensor_error(source, name, f"dtype {quoted(value['dtype'])}", expected, remedy)
    shape, offsets = value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or not is_shape(shape):
        raise _tensor_error(source, name, f"shape {quoted(shape)}", "a list of sizes")
    if not _is_range(offsets, source.size):
        raise _tensor_error(source, name, f"data_offsets {quoted(offsets)}", "begin and end")
    begin, end = offsets
    nbytes = DTYPES[dtype_name].nbytes(math.prod(shape))
    if end - begin != nbytes:
        expected = f"{nbytes} for {dtype_name} {shape}"
        raise _tensor_error(source, name, f"{end - begin} bytes", expected)
    return TensorEntry(name, dtype_name, tuple(shape), source.path, data_start + begin, nbytes)


def _is_range(value: object, size: int) -> bool:
    """True for ``[begin, end]`` inside a file of `size` bytes."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(type(number) is int and 0 <= number <= size for number in value)


def _check_coverage(source: Source, tensors: dict[str, TensorEntry], data_start: int) -> None:
    """The tensors fill the data section exactly."""
    position = data_start
    for entry in sorted(tensors.values(), key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != position:
            kind = "a hole before it" if entry.offset > position else "an overlap"
            expected = f"data_offsets from {position - data_start}"
            raise _tensor_error(source, entry.name, kind, expected)
        position += entry.nbytes
    if position != source.size:
        remedy = DOWNLOAD_AGAIN if position > source.size else "Save the file again."
        found = f"a file of {source.size} bytes"
        raise format_error(source.path, found, f"{position} bytes by its header", remedy)


def _tensor_error(
    source: Source, name: str, found: str, expected: str, remedy: str = DOWNLOAD_AGAIN
) -> FormatError:
    return format_error(source.path, f"{found} (tensor {quoted(name)})", expected, remedy)
