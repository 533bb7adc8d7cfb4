"""Damaged files: each opens, or raises an SDEngineError. No other exception, no hang, no memory."""

from __future__ import annotations

import collections
import io
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from sdengine.errors import SDEngineError
from sdengine.formats import DTYPES, TensorIndex, open_index

from .builders import (
    GgufTensor,
    Value,
    gguf_bytes,
    safetensors_bytes,
    safetensors_record,
    torch_zip_bytes,
)

NUMBERS = [0, 1, 3, 8, 31, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
NUMBERS += [2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
SLOWEST = 0.5  # seconds of processor time for one file; the usual is 0.0002


def gguf_seeds() -> list[bytes]:
    metadata = {
        "general.architecture": "sdxl",
        "general.alignment": 32,
        "comfy.gguf.orig_shape.a.weight": Value("i32", [4, 8, 1, 2], is_array=True),
        "tokenizer.ggml.tokens": ["a", "b", "<s>", "\N{SNOWMAN}"],
        "tokenizer.ggml.scores": [0.5, 1.0],
        "flag": True,
        "nested": Value("array", [Value("u8", [1, 2], is_array=True)], is_array=True),
    }
    tensors = [
        GgufTensor("a.weight", (2, 32), "q4_0"),
        GgufTensor("b.weight", (3, 5), "f16"),
        GgufTensor("c", (2, 256), "q6_k"),
        GgufTensor("d", ()),
        GgufTensor("e", (2, 1, 2, 2)),
    ]
    return [gguf_bytes(tensors, metadata), gguf_bytes(tensors[1:2], version=2), gguf_bytes()]


def safetensors_seeds() -> list[bytes]:
    header = {
        "__metadata__": {"format": "pt", "modelspec.title": "x"},
        "a.weight": safetensors_record("F32", [2, 2], 0, 16),
        "b.weight": safetensors_record("BF16", [3], 16, 22),
        "empty": safetensors_record("F8_E4M3", [0], 22, 22),
        "scalar": safetensors_record("I64", [], 22, 30),
    }
    return [safetensors_bytes(header, bytes(30)), safetensors_bytes({})]


def torch_seeds(zipped: bool) -> list[bytes]:
    state = collections.OrderedDict({"a.weight": torch.rand(3, 2).T, "b": torch.rand(2).half()})
    value = {"state_dict": state, "epoch": 3, "lr": 0.1, "optimizer": [{"x": torch.zeros(1)}]}
    seeds = []
    for protocol in (2, 4):
        stream = io.BytesIO()
        torch.save(value, stream, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        seeds.append(stream.getvalue())
    return seeds


def pickle_seeds() -> list[bytes]:
    """The data.pkl of checkpoints."""
    seeds = []
    for archive in torch_seeds(zipped=True):
        with zipfile.ZipFile(io.BytesIO(archive)) as members:
            name = next(name for name in members.namelist() if name.endswith("data.pkl"))
            seeds.append(members.read(name))
    return seeds


def mutants(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Damaged copies of the seeds: one to four kinds of damage each."""
    rng = random.Random(seed)
    for _ in range(count):
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.choice([1, 1, 2, 4])):
            damage(content, rng, rng.choice(seeds))
        yield bytes(content)


def damage(content: bytearray, rng: random.Random, other: bytes) -> None:
    """Damage `content` in place."""
    place = rng.randrange(len(content) + 1)
    length = rng.choice([1, 2, 4, 8, 64, 1000])
    match rng.randrange(7):
        case 0:  # flip bits
            for _ in range(rng.choice([1, 2, 8])):
                if content:
                    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case 1:  # truncate
            del content[place:]
        case 2:  # lie about a length, a count, an offset
            number = rng.choice(NUMBERS)
            raw = struct.pack("<Q", number)[: rng.choice([1, 4, 8])]
            content[place : place + len(raw)] = raw
        case 3:  # a piece of another file over or into this one
            start = rng.randrange(len(other) + 1)
            content[place : place + rng.choice([0, length])] = other[start : start + length]
        case 4:  # leave a piece out
            del content[place : place + length]
        case 5:  # a piece twice
            content[place:place] = content[place : place + length]
        case _:  # another byte, often one that means something in JSON or in a pickle
            if place < len(content):
                content[place] = rng.choice(b'{}[]",:0123456789-.eE()]}tRbQcXq\x00\xff')


def survives(path: Path, content: bytes) -> bool:
    """Open the content; True if it opened. Whatever opened must be consistent."""
    path.write_bytes(content)
    started = time.process_time()
    try:
        index = open_index(path)
    except SDEngineError:
        return False
    finally:
        assert time.process_time() - started < SLOWEST
    check(index, len(content))
    return True


def check(index: TensorIndex, size: int) -> None:
    """Every tensor lies inside the file, and its numbers agree."""
    for name, entry in index.tensors.items():
        assert entry.name == name
        assert 0 <= entry.offset <= entry.offset + entry.nbytes <= size
        if entry.strides is None:
            assert entry.nbytes == DTYPES[entry.dtype].nbytes(entry.elements)


@pytest.mark.parametrize("seed", range(4))
def test_gguf(tmp_path: Path, seed: int) -> None:
    seeds = gguf_seeds()
    opened = sum(survives(tmp_path / "x", content) for content in mutants(seeds, 1400, seed))
    assert 50 < opened < 1000  # the damage is neither deadly nor harmless


@pytest.mark.parametrize("seed", range(4))
def test_safetensors(tmp_path: Path, seed: int) -> None:
    seeds = safetensors_seeds()
    opened = sum(survives(tmp_path / "x", content) for content in mutants(seeds, 1400, seed))
    assert 10 < opened < 1000


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints(tmp_path: Path, zipped: bool) -> None:
    seeds = torch_seeds(zipped)
    opened = sum(survives(tmp_path / "x", content) for content in mutants(seeds, 400, 0))
    assert 5 < opened < 350


def test_pickles(tmp_path: Path) -> None:
    storages = {str(key): bytes(64) for key in range(4)}
    opened = 0
    for pickled in mutants(pickle_seeds(), 800, 0):
        opened += survives(tmp_path / "x", torch_zip_bytes(pickled, storages))
    assert 5 < opened < 700


@pytest.mark.parametrize("seeds", [gguf_seeds, safetensors_seeds, pickle_seeds])
def test_damage_costs_no_memory(tmp_path: Path, seeds: object) -> None:
    assert callable(seeds)
    contents = list(mutants(seeds(), 300, 9))
    if seeds is pickle_seeds:
        contents = [torch_zip_bytes(content, {"0": bytes(64)}) for content in contents]
    tracemalloc.start()
    try:
        for content in contents:
            survives(tmp_path / "x", content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
