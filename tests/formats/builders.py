"""Small weight files, byte by byte, sound by default and wrong on request."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sdengine.formats import DTYPES, TensorEntry

ALIGNMENT = 32

GGUF_KINDS = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "str": (8, ""),
    "array": (9, ""),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}


@dataclass(frozen=True)
class Value:
    """A GGUF value of a chosen kind; for an array, `kind` is that of the items."""

    kind: str
    value: Any
    is_array: bool = False


@dataclass(frozen=True)
class GgufTensor:
    """A GGUF tensor record with zeros as data; `dims` in torch order."""

    name: str | bytes
    dims: Sequence[int]
    dtype: str | int = "f32"
    offset: int | None = None  # None: behind the tensor before
    nbytes: int | None = None  # None: what dtype and dims need

    @property
    def type_id(self) -> int:
        if isinstance(self.dtype, int):
            return self.dtype
        type_id = DTYPES[self.dtype].ggml_type
        assert type_id is not None
        return type_id

    @property
    def size(self) -> int:
        if self.nbytes is not None:
            return self.nbytes
        assert isinstance(self.dtype, str)
        return DTYPES[self.dtype].nbytes(math.prod(self.dims))


def gguf_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value: Any) -> bytes:
    """Kind and payload. Plain Python values get a usual kind."""
    if not isinstance(value, Value):
        value = _usual_kind(value)
    kind, code = GGUF_KINDS[value.kind]
    if value.is_array:
        head = struct.pack("<IIQ", GGUF_KINDS["array"][0], kind, len(value.value))
        return head + b"".join(_payload(value.kind, code, item) for item in value.value)
    return struct.pack("<I", kind) + _payload(value.kind, code, value.value)


def _payload(kind: str, code: str, value: Any) -> bytes:
    if kind == "str":
        return gguf_string(value)
    if kind == "array":
        return gguf_value(value)[4:]
    return struct.pack("<" + code, value)


def _usual_kind(value: Any) -> Value:
    if isinstance(value, list):
        return Value(_usual_kind(value[0]).kind, value, is_array=True)
    kinds = {bool: "bool", int: "u32", float: "f32", str: "str", bytes: "str"}
    return Value(kinds[type(value)], value)


def gguf_bytes(
    tensors: Sequence[GgufTensor] = (),
    metadata: Mapping[str, Any] | Sequence[tuple[str, Any]] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    alignment: int = ALIGNMENT,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    """A whole GGUF file whose data are zeros."""
    pairs = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if key_count is None else key_count,
    )
    for key, value in pairs:
        head += gguf_string(key) + gguf_value(value)
    position = 0
    for tensor in tensors:
        offset = position if tensor.offset is None else tensor.offset
        head += gguf_string(tensor.name) + struct.pack("<I", len(tensor.dims))
        head += struct.pack(f"<{len(tensor.dims)}Q", *reversed(tensor.dims))
        head += struct.pack("<IQ", tensor.type_id, offset)
        position = -(-(offset + tensor.size) // alignment) * alignment
    if not tensors:
        return head
    return head + bytes(-len(head) % alignment) + bytes(min(position, 1 << 20))


def safetensors_bytes(
    header: Mapping[str, Any] | bytes, data: bytes = b"", *, length: int | None = None
) -> bytes:
    """A safetensors file with this header (an object, or its raw text)."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def safetensors_record(
    dtype: Any = "F32", shape: Any = (2, 2), begin: Any = 0, end: Any = 16
) -> dict[str, Any]:
    """One tensor's entry in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def torch_zip_bytes(
    pickled: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    others: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A checkpoint archive around a hand-made pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        for name, content in (others or {"byteorder": b"little"}).items():
            archive.writestr(f"archive/{name}", content)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return stream.getvalue()


def global_opcode(dotted: str) -> bytes:
    """The opcode that names ``module.name``."""
    module, _, name = dotted.rpartition(".")
    return b"c" + f"{module}\n{name}\n".encode()


def text_opcode(text: str) -> bytes:
    """The opcode that pushes a short text."""
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def storage_opcodes(key: str = "0", kind: str = "torch.FloatStorage", elements: int = 4) -> bytes:
    """Opcodes that push a storage."""
    return (
        b"("
        + text_opcode("storage")
        + global_opcode(kind)
        + text_opcode(key)
        + text_opcode("cpu")
        + b"J"
        + struct.pack("<i", elements)
        + b"tQ"
    )


def tensor_opcodes(
    storage: bytes | None = None, offset: bytes = b"K\x00", shape: bytes = b"K\x04\x85"
) -> bytes:
    """Opcodes that push a 1-D tensor of the shape and stride 1."""
    call = global_opcode("torch._utils._rebuild_tensor_v2") + b"("
    body = (storage_opcodes() if storage is None else storage) + offset + shape + b"K\x01\x85"
    return call + body + b"\x89" + global_opcode("collections.OrderedDict") + b")RtR"


def dict_pickle(*items: tuple[str, bytes]) -> bytes:
    """A pickled dict of opcodes by name."""
    body = b"".join(text_opcode(name) + opcodes for name, opcodes in items)
    return b"\x80\x02}(" + body + b"u."


TORCH_DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}


def read_tensor(entry: TensorEntry) -> torch.Tensor:
    """The tensor that an entry of a plain type describes, read from its file."""
    dtype = TORCH_DTYPES[entry.dtype]
    if entry.nbytes == 0:
        return torch.zeros(entry.shape, dtype=dtype)
    with open(entry.path, "rb") as file:
        file.seek(entry.offset)
        raw = bytearray(file.read(entry.nbytes))
    assert len(raw) == entry.nbytes, "the entry leaves the file"
    flat = torch.frombuffer(raw, dtype=torch.uint8).view(dtype)
    if entry.strides is None:
        return flat.reshape(entry.shape)
    return flat.as_strided(entry.shape, entry.strides)


def assert_same_tensors(
    found: Mapping[str, TensorEntry], expected: Mapping[str, torch.Tensor]
) -> None:
    """Same names, and every tensor equal bit for bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        value = read_tensor(found[name])
        assert value.dtype == tensor.dtype, name
        assert value.shape == tensor.shape, name
        bits = torch.uint8 if tensor.dim() else None
        if bits is not None and tensor.dtype.itemsize == 1:
            assert torch.equal(value.view(bits), tensor.detach().view(bits)), name
        else:
            assert torch.equal(value, tensor.detach()), name
