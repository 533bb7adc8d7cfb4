"""GGUF headers: against gguf-py, and everything that can be wrong with one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from sdengine.errors import FormatError
from sdengine.formats import DTYPES, TensorEntry, open_index

from .builders import GgufTensor, Value, gguf_bytes, read_tensor


def save(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


def written_by_reference(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A file by gguf-py; returns the plain arrays."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "sdxl")
    writer.add_uint64("a.u64", 2**63)
    writer.add_int32("a.i32", -5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "grüße")
    writer.add_array("a.words", ["one", "", "drei"])
    writer.add_array("a.numbers", [1, 2, 3])
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "half": rng.standard_normal((4, 3, 2, 2)).astype(np.float16),
        "float": rng.standard_normal((7,)).astype(np.float32),
        "int": np.arange(6, dtype=np.int32).reshape(2, 3),
        "double": rng.standard_normal((1, 3)),
    }
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    matrix = rng.standard_normal((6, 512)).astype(np.float32)
    for kind in ("Q4_0", "Q5_1", "Q8_0", "BF16", "Q4_1", "Q5_0"):
        quant = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind, gguf.quants.quantize(matrix, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


def test_agrees_with_gguf_py(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    arrays = written_by_reference(path)
    index = open_index(path)
    assert (index.format, index.path) == ("gguf", path)
    reader = gguf.GGUFReader(path)
    assert list(index.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        entry = index.tensors[tensor.name]
        assert entry.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert (entry.offset, entry.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert entry.dtype == tensor.tensor_type.name.lower()
    for name, array in arrays.items():
        assert np.array_equal(read_tensor(index.tensors[name]).numpy(), array)
    expected: dict[str, object] = {
        "general.architecture": "sdxl",
        "a.u64": 2**63,
        "a.i32": -5,
        "a.f64": 0.1,
        "a.bool": True,
        "a.text": "grüße",
        "a.words": ["one", "", "drei"],
        "a.numbers": [1, 2, 3],
    }
    assert index.metadata == expected
    assert index.metadata["a.bool"] is True


@pytest.mark.parametrize("name", [name for name, d in DTYPES.items() if d.ggml_type is not None])
def test_every_type(tmp_path: Path, name: str) -> None:
    block = DTYPES[name].block_elements
    path = save(
        tmp_path, gguf_bytes([GgufTensor("a", (3, 2 * block), name), GgufTensor("b", (1,))])
    )
    entry = open_index(path).tensors["a"]
    assert (entry.dtype, entry.shape) == (name, (3, 2 * block))
    assert entry.nbytes == 6 * DTYPES[name].block_bytes


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_alignment(tmp_path: Path, version: int, alignment: int) -> None:
    tensors = [GgufTensor("a", (3,)), GgufTensor("b", (5,), "f16")]
    metadata = {"general.alignment": alignment}
    content = gguf_bytes(tensors, metadata, version=version, alignment=alignment)
    index = open_index(save(tmp_path, content))
    a, b = index.tensors["a"], index.tensors["b"]
    assert a.offset % alignment == b.offset % alignment == 0
    assert b.offset == a.offset + max(alignment, -(-12 // alignment) * alignment)


def test_every_kind_of_value(tmp_path: Path) -> None:
    values = {
        "u8": Value("u8", 255),
        "i8": Value("i8", -128),
        "u16": Value("u16", 65535),
        "i16": Value("i16", -2),
        "u32": Value("u32", 2**32 - 1),
        "i32": Value("i32", -3),
        "u64": Value("u64", 2**64 - 1),
        "i64": Value("i64", -(2**63)),
        "f32": Value("f32", 0.5),
        "f64": Value("f64", 0.1),
        "bool": Value("bool", False),
        "str": Value("str", "x" * 1000),
        "bools": Value("bool", [True, False], is_array=True),
        "i64s": Value("i64", [-1, 2**62], is_array=True),
        "none": Value("f32", [], is_array=True),
        "nested": Value("array", [Value("i8", [1, 2], True), Value("str", ["a"], True)], True),
    }
    metadata = open_index(save(tmp_path, gguf_bytes([], values))).metadata
    expected = {key: value.value for key, value in values.items()}
    expected["nested"] = [[1, 2], ["a"]]
    assert metadata == expected


def test_tokens_that_are_not_text(tmp_path: Path) -> None:
    path = save(tmp_path, gguf_bytes([], {"tokens": [b"ok", b"\xff", b"\xfe"]}))
    assert open_index(path).metadata["tokens"] == ["ok", "\\xff", "\\xfe"]


def test_scalar_and_empty_tensors(tmp_path: Path) -> None:
    path = save(tmp_path, gguf_bytes([GgufTensor("s", ()), GgufTensor("e", (0, 4))]))
    tensors = open_index(path).tensors
    assert (tensors["s"].shape, tensors["s"].nbytes) == ((), 4)
    assert (tensors["e"].shape, tensors["e"].nbytes) == ((0, 4), 0)


def test_original_shape(tmp_path: Path) -> None:
    """ComfyUI-GGUF stores a (320, 320, 3, 3) convolution as rows of 256."""
    shape = [320, 320, 3, 3]
    rows = 320 * 320 * 9 // 256
    metadata = {"comfy.gguf.orig_shape.conv": Value("i32", shape, is_array=True)}
    tensors = [GgufTensor("conv", (rows, 256), "q4_k"), GgufTensor("other", (2, 2))]
    index = open_index(save(tmp_path, gguf_bytes(tensors, metadata)))
    entry = index.tensors["conv"]
    assert entry.shape == tuple(shape)
    assert entry.nbytes == rows * 144
    assert index.tensors["other"].shape == (2, 2)
    assert entry.rows(32, 32).offset == entry.offset + 32 * 320 * 9 // 256 * 144


def test_original_shape_with_five_axes(tmp_path: Path) -> None:
    metadata = {"comfy.gguf.orig_shape.conv": Value("i32", [2, 4, 1, 2, 2], is_array=True)}
    index = open_index(save(tmp_path, gguf_bytes([GgufTensor("conv", (2, 16))], metadata)))
    assert index.tensors["conv"].shape == (2, 4, 1, 2, 2)


ONE = [GgufTensor("a", (2, 32))]
ORIGINAL = "comfy.gguf.orig_shape.a"

WRONG: dict[str, tuple[bytes, str]] = {
    "version 1": (gguf_bytes(ONE, version=1), "version 1; expected version 2 or 3"),
    "version 0": (gguf_bytes(ONE, version=0), "version 0"),
    "version 4": (gguf_bytes(ONE, version=4), "Update sdengine"),
    "big-endian": (gguf_bytes(ONE, version=3 << 24), "big-endian"),
    "swapped magic": (gguf_bytes(ONE, magic=b"FUGG"), "big-endian"),
    "too many tensors": (gguf_bytes(ONE, tensor_count=2**62), "tensors and 0 keys announced"),
    "too many keys": (gguf_bytes(ONE, key_count=2**62), "keys announced"),
    "one key too many": (gguf_bytes(ONE, key_count=1), "download it again"),
    "only the magic": (b"GGUF", "the end of the file"),
    "value type": (gguf_bytes([], [("k", 1)])[:-8] + b"\x0d" + bytes(7), "value type 13"),
    "array type": (
        gguf_bytes([], {"k": Value("u32", [7], True)}).replace(
            b"\x09\0\0\0\x04\0\0\0", b"\x09\0\0\0\x0d\0\0\0"
        ),
        "array type 13",
    ),
    "array length": (
        gguf_bytes([], {"k": Value("u8", [7], True)}).replace(
            b"\x01" + bytes(7) + b"\x07", b"\xff" * 6 + bytes(2) + b"\x07"
        ),
        "array elements in a file",
    ),
    "array beyond the end": (
        gguf_bytes([], {"k": Value("u8", [7], True)}).replace(
            b"\x01" + bytes(7) + b"\x07", b"\xff\xff" + bytes(6) + b"\x07"
        ),
        "65535 bytes for array 'k'",
    ),
    "strings beyond the end": (gguf_bytes([], {"k": ["ab", "cd"]})[:-1], "the end of the file"),
    "nesting": (
        gguf_bytes(
            [],
            {
                "k": Value(
                    "array",
                    [
                        Value(
                            "array",
                            [
                                Value(
                                    "array", [Value("array", [Value("u8", [1], True)], True)], True
                                )
                            ],
                            True,
                        )
                    ],
                    True,
                )
            },
        ),
        "nested deeper",
    ),
    "duplicate key": (gguf_bytes([], [("k", 1), ("k", 2)]), "key 'k' twice"),
    "empty key": (gguf_bytes([], {"": 1}), "a key of 0 bytes"),
    "long key": (gguf_bytes([], {"k" * 65536: 1}), "a key of 65536 bytes"),
    "alignment 0": (gguf_bytes(ONE, {"general.alignment": 0}), "alignment 0"),
    "alignment 24": (gguf_bytes(ONE, {"general.alignment": 24}), "power of two"),
    "alignment text": (gguf_bytes(ONE, {"general.alignment": "32"}), "alignment '32'"),
    "split file": (gguf_bytes(ONE, {"split.count": Value("u16", 3)}), "gguf-split"),
    "duplicate tensor": (gguf_bytes(ONE * 2), "second tensor of that name"),
    "empty name": (gguf_bytes([GgufTensor("", (2,))]), "name of 0 bytes"),
    "long name": (gguf_bytes([GgufTensor("n" * 513, (2,))]), "513 bytes; expected 1 to 512"),
    "name not text": (gguf_bytes([GgufTensor(b"\xff", (2,))]), "not UTF-8"),
    "five axes": (gguf_bytes([GgufTensor("a", (1, 1, 1, 1, 2))]), "5 dimensions"),
    "many axes": (gguf_bytes([GgufTensor("a", (1,) * 100)]), "100 dimensions"),
    "unknown type": (gguf_bytes([GgufTensor("a", (2,), 99, nbytes=8)]), "type 99"),
    "retired type": (gguf_bytes([GgufTensor("a", (32,), 31, nbytes=18)]), "q4_0_4_4"),
    "intermediate type": (gguf_bytes([GgufTensor("a", (32,), 9, nbytes=36)]), "q8_1"),
    "half a block": (gguf_bytes([GgufTensor("a", (2, 48), "q4_0", nbytes=54)]), "multiple of 32"),
    "offset": (gguf_bytes([GgufTensor("a", (2,), offset=8)]), "offset 8"),
    "offset beyond": (gguf_bytes([GgufTensor("a", (2,), offset=2**40)]), "at least"),
    "offset near 2**64": (
        gguf_bytes([GgufTensor("a", (2,), offset=2**64 - 32, nbytes=0)]),
        "at least",
    ),
    "overflow": (gguf_bytes([GgufTensor("a", (2**32, 2**32), nbytes=0)]), "2\\*\\*63"),
    "overflow with zero": (gguf_bytes([GgufTensor("a", (2**32, 2**32, 0))]), "2\\*\\*63"),
    "negative size": (gguf_bytes([GgufTensor("a", (2**64 - 1,), nbytes=0)]), "2\\*\\*63"),
    "larger than the file": (gguf_bytes([GgufTensor("a", (2**40,), nbytes=64)]), "at least"),
    "truncated": (gguf_bytes(ONE)[:-1], "a file of .* bytes"),
    "original shape": (gguf_bytes(ONE, {ORIGINAL: [3, 3]}), "a shape of 64 elements"),
    "original shape text": (gguf_bytes(ONE, {ORIGINAL: "64"}), "original shape '64'"),
    "original shape negative": (
        gguf_bytes(ONE, {ORIGINAL: Value("i32", [-8, -8], True)}),
        "original shape",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(tmp_path: Path, case: str) -> None:
    content, message = WRONG[case]
    path = save(tmp_path, content)
    with pytest.raises(FormatError, match=message) as caught:
        open_index(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: found ")
    assert "; expected " in text


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    metadata = {"general.architecture": "sdxl", "words": ["a", "bc"], "numbers": [1.0, 2.0]}
    content = gguf_bytes([GgufTensor("a", (2, 3)), GgufTensor("b", (8,), "f16")], metadata)
    used = open_index(save(tmp_path, content)).tensors["b"]
    for size in range(used.offset + used.nbytes):
        with pytest.raises(FormatError):
            open_index(save(tmp_path, content[:size]))


def test_large_file_offsets(tmp_path: Path) -> None:
    """A sparse file of more than 4 GiB: offsets are 64-bit."""
    path = tmp_path / "model.gguf"
    far = 5 << 30
    content = gguf_bytes([GgufTensor("a", (2,)), GgufTensor("b", (4,), offset=far, nbytes=0)])
    header = content[: len(content) - (1 << 20)]
    with open(path, "wb") as file:
        file.write(header)
        file.seek(len(header) + far)
        file.write(np.arange(4, dtype=np.float32).tobytes())
    entry = open_index(path).tensors["b"]
    assert entry.offset == len(header) + far
    assert torch.equal(read_tensor(entry), torch.arange(4, dtype=torch.float32))


def best_time(path: Path, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        open_index(path)
        times.append(time.process_time() - start)
    return min(times)


def test_a_vocabulary_opens_quickly(tmp_path: Path) -> None:
    words = [f"token{number}" for number in range(150_000)]
    scores = [float(number) for number in range(150_000)]
    path = save(tmp_path, gguf_bytes([], {"tokens": words, "scores": scores}))
    assert open_index(path).metadata == {"tokens": words, "scores": scores}
    assert best_time(path) < 0.3


def test_many_tensors_open_quickly(tmp_path: Path) -> None:
    tensors = [GgufTensor(f"model.blocks.{i}.attn.to_q.weight", (4, 4)) for i in range(3000)]
    path = save(tmp_path, gguf_bytes(tensors))
    entries = open_index(path).tensors
    assert len(entries) == 3000
    assert isinstance(entries["model.blocks.7.attn.to_q.weight"], TensorEntry)
    assert best_time(path) < 0.05
