"""Mutated model files through the whole loading path and one evaluation: an error or a result, never a crash.

The headers alone are fuzzed much harder in tests/formats; here what they let through reaches the native core.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

import sdengine
from tests.models import tiny_sd1_folder, write_allinone_gguf, write_ldm_safetensors

ROUNDS = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd1_folder(tmp_path_factory.mktemp("fuzz") / "model", seed=5)


def header_size(blob: bytes, name: str) -> int:
    if name.endswith(".safetensors"):
        return 8 + int(struct.unpack("<Q", blob[:8])[0])
    return blob.rindex(b"first_stage_model.") + 200  # the last tensor's entry and a little data


def mutate(blob: bytes, size: int, rng: random.Random) -> bytes:
    data = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(size)
        kind = rng.randrange(4)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 48, 57, 127, 128, 255))
        elif kind == 2:
            data[at : at + 8] = struct.pack(
                "<Q", rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
            )
        else:
            del data[at : at + rng.randrange(1, 9)]
    return bytes(data)


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_mutated_models(folder: Path, tmp_path: Path, name: str) -> None:
    write = write_allinone_gguf if name.endswith("gguf") else write_ldm_safetensors
    path = write(folder, tmp_path / name)
    blob = path.read_bytes()
    size, rng = header_size(blob, name), random.Random(name)
    latents = np.zeros((1, 4, 8, 8), np.float32)
    refused = 0
    for _ in range(ROUNDS):
        path.write_bytes(mutate(blob, size, rng))
        try:
            pipe = sdengine.load(path, tokenizer=folder / "tokenizer", threads=1)
            pipe.predict(latents, 1.0, pipe.encode_prompt("a circle"))
        except sdengine.SDEngineError:
            refused += 1
    assert refused > ROUNDS // 4, (
        "hardly any mutation was noticed: is the right part of the file mutated?"
    )
