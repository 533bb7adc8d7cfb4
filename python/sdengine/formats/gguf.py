"""GGUF headers, versions 2 and 3 (layout: ``docs/gguf.md`` of the ggml project).

magic "GGUF", u32 version, u64 tensor count, u64 key count, the key/values, the tensor records,
padding, the data. Everything is little-endian; a record's offset counts from the start of the data.
"""

from __future__ import annotations

import math
from struct import Struct, unpack_from
from typing import Any, Final, NamedTuple

from sdengine.errors import FormatError
from sdengine.formats.cursor import Cursor
from sdengine.formats.dtypes import DTYPES, GGML_TYPE_NAMES
from sdengine.formats.index import MAX_NAME_LENGTH, TensorEntry, TensorIndex, is_shape
from sdengine.formats.source import DOWNLOAD_AGAIN, Source, format_error, quoted

MAGIC: Final = b"GGUF"
BIG_ENDIAN_MAGIC: Final = b"FUGG"

_STRING, _ARRAY = 8, 9
_SCALARS: Final[dict[int, str]] = {  # GGUF value type -> struct code
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_SCALAR_LAYOUTS: Final = {kind: Struct("<" + code) for kind, code in _SCALARS.items()}
_TYPE_AND_OFFSET: Final = Struct("<IQ")

_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4  # ggml's GGML_MAX_DIMS
_MAX_KEY_LENGTH = 65535  # bytes, from the specification
_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, one letter, type, one byte
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8  # length, one letter, rank, type, offset
# Far above every published header (the largest tokenizers: 40 MB, 1.3 million array elements),
# far below what hurts.
_MAX_HEADER_BYTES = 256 << 20
_MAX_ARRAY_ELEMENTS = 8 << 20
_MAX_ARRAY_DEPTH = 4

_RETIRED_TYPES: Final[dict[int, str]] = {
    4: "q4_2",
    5: "q4_3",
    9: "q8_1",
    15: "q8_k",
    31: "q4_0_4_4",
    32: "q4_0_4_8",
    33: "q4_0_8_8",
    36: "iq4_nl_4_4",
    37: "iq4_nl_4_8",
    38: "iq4_nl_8_8",
}
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


class _TensorRecord(NamedTuple):
    name: str
    shape: tuple[int, ...]  # torch order
    type_id: int
    offset: int  # bytes, from the start of the data


def read_gguf(source: Source) -> TensorIndex:
    """The index of a GGUF file. Raises FormatError for everything that is not sound."""
    with source.mapped() as buffer:
        cursor = Cursor(source, buffer, _MAX_HEADER_BYTES)
        tensor_count, key_count = _read_counts(cursor)
        metadata = _KeyValues(cursor).read(key_count)
        records = [_read_record(cursor) for _ in range(tensor_count)]
        header_end = cursor.position
    alignment = _alignment(source, metadata)
    data_start = -(-header_end // alignment) * alignment
    tensors: dict[str, TensorEntry] = {}
    for record in records:
        if record.name in tensors:
            raise _tensor_error(source, record.name, "a second tensor of that name", "one")
        tensors[record.name] = _entry(source, record, data_start, alignment, metadata)
    return TensorIndex(source.path, "gguf", tensors, metadata)


def _read_counts(cursor: Cursor) -> tuple[int, int]:
    """Check magic and version; return the number of tensors and of keys."""
    path = cursor.source.path
    if cursor.take(4, "the magic") == BIG_ENDIAN_MAGIC:
        raise _big_endian_error(cursor.source)
    version = cursor.u32("the version")
    if version and version & 0xFFFF == 0:
        raise _big_endian_error(cursor.source)
    if version not in (2, 3):
        remedy = "Convert it with the current tools." if version < 2 else "Update sdengine."
        raise format_error(path, f"GGUF version {version}", "version 2 or 3", remedy)
    tensor_count = cursor.u64("the tensor count")
    key_count = cursor.u64("the key count")
    if tensor_count * _MIN_TENSOR_BYTES + key_count * _MIN_KEY_BYTES > cursor.source.size:
        raise cursor.error(
            f"{tensor_count} tensors and {key_count} keys announced in {cursor.source.size} bytes",
            "as many as the file can hold",
        )
    return tensor_count, key_count


def _big_endian_error(source: Source) -> FormatError:
    remedy = "Convert it with gguf-py's gguf_convert_endian.py, or get the usual file."
    return format_error(source.path, "a big-endian GGUF file", "little-endian", remedy)


class _KeyValues:
    """Reads the key/value section; a limit on all array elements together bounds its memory."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._elements_left = _MAX_ARRAY_ELEMENTS

    def read(self, count: int) -> dict[str, Any]:
        """`count` pairs. Numbers, booleans and strings become Python's; arrays become lists."""
        cursor = self._cursor
        values: dict[str, Any] = {}
        for _ in range(count):
            key = cursor.name("a key", _MAX_KEY_LENGTH)
            if key in values:
                raise cursor.error(f"key {quoted(key)} twice", "once")
            kind = cursor.u32("a value type")
            values[key] = self._value(kind, key)
        return values

    def _value(self, kind: int, key: str) -> Any:
        cursor = self._cursor
        layout = _SCALAR_LAYOUTS.get(kind)
        if layout is not None:
            return cursor.unpack(layout, "a value")[0]
        if kind == _STRING:
            return cursor.strings(1, "a value")[0]
        if kind == _ARRAY:
            return self._array(key, depth=1)
        raise cursor.error(f"value type {kind} for key {quoted(key)}", "a type from 0 to 12")

    def _array(self, key: str, depth: int) -> list[Any]:
        cursor = self._cursor
        kind, count = cursor.u32("an array type"), cursor.u64("an array length")
        self._elements_left -= count
        if self._elements_left < 0:
            limit = f"at most {_MAX_ARRAY_ELEMENTS} array elements in a file"
            raise cursor.error(f"{count} elements in array {quoted(key)}", limit)
        if kind == _STRING:
            return cursor.strings(count, "an array")
        if kind in _SCALARS:
            start = cursor.position
            nbytes = count * _SCALAR_LAYOUTS[kind].size
            cursor.require(nbytes, f"array {quoted(key)}")
            cursor.position += nbytes
            return list(unpack_from(f"<{count}{_SCALARS[kind]}", cursor.buffer, start))
        if kind != _ARRAY:
            raise cursor.error(f"array type {kind} for key {quoted(key)}", "a type from 0 to 12")
        if depth == _MAX_ARRAY_DEPTH:
            raise cursor.error(f"arrays in key {quoted(key)} nested deeper", f"{depth} levels")
        return [self._array(key, depth + 1) for _ in range(count)]


def _read_record(cursor: Cursor) -> _TensorRecord:
    name = cursor.name("a tensor name", MAX_NAME_LENGTH)
    rank = cursor.u32("a tensor's rank")
    if rank > _MAX_DIMS:
        raise _tensor_error(cursor.source, name, f"{rank} dimensions", f"at most {_MAX_DIMS}")
    sizes = cursor.unpack(_DIMENSIONS[rank], "a tensor's shape")
    type_id, offset = cursor.unpack(_TYPE_AND_OFFSET, "a tensor's type and offset")
    return _TensorRecord(name, sizes[::-1], type_id, offset)


_DIMENSIONS: Final = [Struct(f"<{rank}Q") for rank in range(_MAX_DIMS + 1)]


def _alignment(source: Source, metadata: dict[str, Any]) -> int:
    """Bytes to which the data and every tensor are aligned; also refuses parts of a split file."""
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        remedy = "Join the parts with llama.cpp's `llama-gguf-split --merge`."
        raise format_error(source.path, f"one of {quoted(parts)} parts", "a whole file", remedy)
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise format_error(source.path, f"alignment {quoted(alignment)}", "a power of two")
    return alignment


def _entry(
    source: Source,
    record: _TensorRecord,
    data_start: int,
    alignment: int,
    metadata: dict[str, Any],
) -> TensorEntry:
    """The checked entry of one tensor."""
    name, shape, type_id, offset = record
    dtype_name = GGML_TYPE_NAMES.get(type_id)
    if dtype_name is None:
        retired = _RETIRED_TYPES.get(type_id)
        found = f"type {type_id}" + (f" ({retired}, not meant for files today)" if retired else "")
        remedy = "Quantize the model again, or update sdengine if the type is new."
        raise _tensor_error(source, name, found, "a ggml type that holds weights", remedy)
    dtype = DTYPES[dtype_name]
    if not is_shape(shape):
        raise _tensor_error(source, name, f"shape {list(shape)}", "fewer than 2**63 elements")
    row = shape[-1] if shape else 1
    if row % dtype.block_elements:
        expected = f"a multiple of {dtype.block_elements}"
        raise _tensor_error(source, name, f"{row} {dtype_name} elements per row", expected)
    if offset % alignment:
        expected = f"a multiple of {alignment}"
        raise _tensor_error(source, name, f"offset {offset}", expected)
    start, nbytes = data_start + offset, dtype.nbytes(math.prod(shape))
    if start + nbytes > source.size:
        expected = f"at least {start + nbytes}"
        raise _tensor_error(source, name, f"a file of {source.size} bytes", expected)
    shape = _original_shape(source, name, shape, metadata)
    return TensorEntry(name, dtype_name, shape, source.path, start, nbytes)


def _original_shape(
    source: Source, name: str, shape: tuple[int, ...], metadata: dict[str, Any]
) -> tuple[int, ...]:
    """The shape before ComfyUI-GGUF's converter made rows of 256 that fit a block."""
    original = metadata.get(_ORIGINAL_SHAPE + name)
    if original is None:
        return shape
    if not is_shape(original) or math.prod(original) != math.prod(shape):
        expected = f"a shape of {math.prod(shape)} elements"
        raise _tensor_error(source, name, f"original shape {quoted(original)}", expected)
    return tuple(original)


def _tensor_error(
    source: Source, name: str, found: str, expected: str, remedy: str = DOWNLOAD_AGAIN
) -> FormatError:
    return format_error(source.path, f"{found} (tensor {quoted(name)})", expected, remedy)
