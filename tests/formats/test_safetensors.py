"""Safetensors headers: against the package, and everything that can be wrong with one."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sdengine.errors import FormatError, ParameterError
from sdengine.formats import open_index

from .builders import (
    TORCH_DTYPES,
    assert_same_tensors,
    safetensors_bytes,
    safetensors_record,
)


def save(folder: Path, content: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


def one_of_each() -> dict[str, torch.Tensor]:
    """A tensor of every type, an empty one and a scalar."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"type.{name}": torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
        for name, dtype in TORCH_DTYPES.items()
    }
    tensors["v_pred"] = torch.zeros(0)
    tensors["scalar"] = torch.tensor(3.5)
    tensors["conv"] = torch.randn(4, 3, 2, 2, generator=generator)
    return tensors


def test_agrees_with_the_package(tmp_path: Path) -> None:
    tensors = one_of_each()
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"modelspec.title": "grüße"})
    index = open_index(path)
    assert (index.format, index.path) == ("safetensors", path)
    assert index.metadata == {"modelspec.title": "grüße"}
    assert_same_tensors(index.tensors, tensors)
    with safe_open(path, "pt") as reference:
        assert set(index.tensors) == set(reference.keys())


def test_no_tensors(tmp_path: Path) -> None:
    assert open_index(save(tmp_path, safetensors_bytes({}))).tensors == {}


def test_padding_behind_the_header(tmp_path: Path) -> None:
    header = json.dumps({"a": safetensors_record()}).encode() + b"   "
    entry = open_index(save(tmp_path, safetensors_bytes(header, bytes(16)))).tensors["a"]
    assert (entry.offset, entry.nbytes, entry.shape) == (8 + len(header), 16, (2, 2))


def record(**changes: Any) -> bytes:
    return safetensors_bytes({"a": safetensors_record(**changes)}, bytes(16))


def two(second: dict[str, Any], size: int = 32) -> bytes:
    return safetensors_bytes({"a": safetensors_record(), "b": second}, bytes(size))


DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

WRONG: dict[str, tuple[bytes, str]] = {
    "length over the limit": (
        safetensors_bytes({}, length=100_000_001),
        "header of 100000001 bytes; expected at most 100000000",
    ),
    "length over the file": (safetensors_bytes({}, length=3), "a file of 10 bytes"),
    "no JSON": (safetensors_bytes(b"{nonsense}"), "cannot be read"),
    "not UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "cannot be read"),
    "NaN": (safetensors_bytes(b'{"a": NaN}'), "NaN is not JSON"),
    "huge number": (safetensors_bytes(b'{"a": ' + b"9" * 5000 + b"}"), "safetensors header|record"),
    "deep JSON": (safetensors_bytes(DEEP), "nested too deeply"),
    "two objects": (safetensors_bytes(b"{}{}"), "cannot be read"),
    "duplicate name": (safetensors_bytes(b'{"a": 1, "a": 2}'), "appears twice"),
    "metadata is a list": (safetensors_bytes({"__metadata__": []}), "__metadata__"),
    "metadata is no text": (safetensors_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "record is a number": (safetensors_bytes({"a": 1}), "dtype, shape and data_offsets"),
    "record lacks the shape": (
        safetensors_bytes({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
        "dtype, shape and data_offsets",
    ),
    "unknown dtype": (record(dtype="F4"), "dtype 'F4' .*; expected one of F64, F32"),
    "unknown dtype at a name": (record(dtype="F4"), "tensor 'a'"),
    "dtype is a list": (record(dtype=["F32"]), "dtype"),
    "shape is text": (record(shape="22"), "shape"),
    "shape is null": (record(shape=None), "shape"),
    "negative size": (record(shape=[-2, -2]), "shape"),
    "size is a float": (record(shape=[2.0, 2]), "shape"),
    "size is a truth": (record(shape=[True, 4]), "shape"),
    "overflow": (record(shape=[2**62, 2**62]), "shape"),
    "many axes": (record(shape=[1] * 1000), "shape"),
    "offsets are text": (record(begin="0"), "data_offsets"),
    "negative offset": (record(begin=-16, end=0), "data_offsets"),
    "offset beyond": (record(end=2**70), "data_offsets"),
    "three offsets": (
        safetensors_bytes(
            {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8, 16]}}, bytes(16)
        ),
        "data_offsets",
    ),
    "backwards": (record(begin=16, end=0), "-16 bytes"),
    "size differs": (record(shape=[2, 3]), "16 bytes .*; expected 24 for f32"),
    "hole": (two(safetensors_record(begin=20, end=36), 36), "hole"),
    "hole at the start": (record(begin=4, end=20), "hole"),
    "overlap": (two(safetensors_record(begin=8, end=24), 24), "overlap"),
    "same place": (two(safetensors_record(), 16), "overlap"),
    "rest": (safetensors_bytes({"a": safetensors_record()}, bytes(17)), "Save the file again"),
    "truncated": (safetensors_bytes({"a": safetensors_record()}, bytes(15)), "download it again"),
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
    assert len(text) < 500 + len(str(path))


def test_long_names_are_cut_in_messages(tmp_path: Path) -> None:
    path = save(tmp_path, safetensors_bytes({"n" * 100_000: safetensors_record(dtype="X")}))
    with pytest.raises(FormatError) as caught:
        open_index(path)
    assert len(str(caught.value)) < 1000


def test_many_tensors_open_quickly(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"blocks.{i}.attn.to_q.weight": torch.zeros(4, 4) for i in range(3000)}, path)
    times = []
    for _ in range(5):
        start = time.process_time()
        assert len(open_index(path).tensors) == 3000
        times.append(time.process_time() - start)
    assert min(times) < 0.05


# Shards


def shards(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Two shards and their index."""
    first, second = {"a": torch.rand(2, 3)}, {"b": torch.rand(4), "c": torch.rand(1)}
    save_file(first, folder / "m-00001-of-00002.safetensors", metadata={"format": "pt"})
    save_file(second, folder / "m-00002-of-00002.safetensors", metadata={"format": "pt"})
    write_shard_index(folder, {"a": 1, "b": 2, "c": 2})
    return folder / "m.safetensors.index.json", first | second


def write_shard_index(folder: Path, shard_of: dict[str, int], **changes: Any) -> None:
    weight_map = {name: f"m-{i:05}-of-00002.safetensors" for name, i in shard_of.items()}
    content = {"metadata": {"total_size": 44}, "weight_map": weight_map, **changes}
    (folder / "m.safetensors.index.json").write_text(json.dumps(content))


def test_shards(tmp_path: Path) -> None:
    path, tensors = shards(tmp_path)
    index = open_index(path)
    assert index.format == "safetensors"
    assert index.metadata == {"format": "pt", "total_size": 44}
    assert_same_tensors(index.tensors, tensors)
    assert index.tensors["b"].path.name == "m-00002-of-00002.safetensors"


def test_shards_of_torch_files(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3)}, tmp_path / "pytorch_model-1.bin")
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}))
    index = open_index(path)
    assert index.format == "torch"
    assert_same_tensors(index.tensors, {"a": torch.arange(3)})


def test_a_missing_shard(tmp_path: Path) -> None:
    path, _ = shards(tmp_path)
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    with pytest.raises(FormatError, match=r"no file 'm-00002-of-00002\.safetensors'"):
        open_index(path)


def test_a_tensor_in_the_wrong_shard(tmp_path: Path) -> None:
    path, _ = shards(tmp_path)
    write_shard_index(tmp_path, {"a": 2, "b": 2, "c": 2})
    with pytest.raises(FormatError, match="expected tensor 'a'"):
        open_index(path)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/b", "a\\b", "..", "", 7])
def test_shards_outside_the_folder(tmp_path: Path, name: object) -> None:
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(FormatError):
        open_index(path)


def test_a_shard_that_is_an_index(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": path.name}}))
    with pytest.raises(FormatError, match="JSON text"):
        open_index(path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"a": 1'])
def test_json_that_is_no_shard_index(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(FormatError):
        open_index(path)


def test_variant_of_a_file(tmp_path: Path) -> None:
    path, _ = shards(tmp_path)
    with pytest.raises(ParameterError, match="folders only"):
        open_index(path, variant="fp16")


def test_header_of_exactly_the_limit_is_looked_for(tmp_path: Path) -> None:
    path = save(tmp_path, struct.pack("<Q", 100_000_000) + b"{}")
    with pytest.raises(FormatError, match="expected at least 100000008"):
        open_index(path)
