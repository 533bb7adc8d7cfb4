"""Quantized full-size models written directly: their blocks are drawn, and never were floating point.

A FLUX.1 of 12 thousand million parameters would take 24 GB in float16 before it was quantized.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import shapes
from numpy.typing import NDArray

BLOCK = 32
"""Values that share a scale."""
_DEVIATIONS = {"q4_0": math.sqrt((16**2 - 1) / 12), "q8_0": math.sqrt((256**2 - 1) / 12)}
"""Of uniformly drawn quantized values."""
_POOL = 1 << 17
"""Blocks that are drawn; tensors repeat them, because speed does not depend on them."""


class Blocks:
    """Random blocks of one quantized type, scaled so that activations stay near 1."""

    def __init__(self, weight_type: str, seed: int = 0) -> None:
        self.bytes_per_block = 2 + (BLOCK // 2 if weight_type == "q4_0" else BLOCK)
        random = np.random.default_rng(seed)
        self._drawn = random.integers(0, 256, (_POOL, self.bytes_per_block), np.uint8)
        self._deviation = _DEVIATIONS[weight_type]
        self._scaled: dict[int, NDArray[np.uint8]] = {}

    def of(self, fan_in: int) -> NDArray[np.uint8]:
        """A pool of blocks ``[blocks, bytes]`` of variance ``1 / fan_in``."""
        if fan_in not in self._scaled:
            scale = np.float16(1 / (self._deviation * math.sqrt(fan_in)))
            pool = self._drawn.copy()
            pool[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)  # both types begin with it
            self._scaled = {fan_in: pool}  # one at a time: a pool is megabytes
        return self._scaled[fan_in]


def write_gguf(path: Path, parameters: Sequence[shapes.Parameter], weight_type: str) -> None:
    """Write a GGUF with random weights; matrices in `weight_type`, everything else in f16 or f32.

    The file appears under its name complete or not at all.

    Args:
        path: the file.
        parameters: names and shapes in torch order.
        weight_type: q4_0 or q8_0.
    """
    blocks, unfinished = Blocks(weight_type), path.with_name(path.name + ".part")
    quantized = gguf.GGMLQuantizationType[weight_type.upper()]
    plan: list[tuple[str, tuple[int, ...], Any, int]] = []
    for name, shape in parameters:
        count, kind = math.prod(shape), gguf.GGMLQuantizationType.F16
        nbytes = 2 * count
        if len(shape) == 1:
            kind, nbytes = gguf.GGMLQuantizationType.F32, 4 * count
        elif len(shape) == 2 and shape[1] % BLOCK == 0:
            kind, nbytes = quantized, count // BLOCK * blocks.bytes_per_block
        plan.append((name, shape, kind, nbytes))
    writer = gguf.GGUFWriter(unfinished, "synthetic")
    for name, shape, kind, nbytes in plan:
        writer.add_tensor_info(name, shape, np.dtype(np.void), nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with unfinished.open("ab") as file:
        for name, shape, kind, nbytes in plan:
            file.write(b"\0" * (-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
            if kind == quantized:
                _write_repeated(file, blocks.of(shape[1]).tobytes(), nbytes)
            else:
                file.write(_plain(name, shape).tobytes())
        file.write(b"\0" * (-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
    unfinished.replace(path)


def _write_repeated(file: Any, pool: bytes, nbytes: int) -> None:
    for done in range(0, nbytes, len(pool)):
        file.write(pool[: nbytes - done])


def _plain(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if len(shape) == 1:
        return np.full(shape, 0 if name.endswith("bias") else 1, np.float32)
    random = np.random.default_rng(len(name))
    pool = random.standard_normal(_POOL, np.float32) / math.sqrt(math.prod(shape[1:]))
    return np.resize(pool.astype(np.float16), shape)


def write_t5_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer of T5's kind and size: one token per character, the rest never used."""
    words = ["<pad>", "</s>", "<unk>", "▁", *(chr(c) for c in range(0x21, 0x7F))]
    words += [f"<extra_{number}>" for number in range(vocabulary - len(words))]
    folder.mkdir(parents=True, exist_ok=True)
    marks = [
        {"id": number, "content": words[number], "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number in range(3)
    ]
    layout: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": marks,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "always",
            "split": True,
        },
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [[word, -10.0] for word in words]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(layout), encoding="utf-8")
