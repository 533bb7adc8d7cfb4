"""Full-size models with random weights, made on the spot: no download is needed to measure speed.

``python bench/synthetic.py --model sdxl --weight-type q8_0`` writes one and prints its path.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import shapes_dit
import synthetic_gguf
from numpy.typing import NDArray

PLAIN = "f16"
_POOL = 1 << 20
_HEADER_ALIGNMENT = 64
MODELS = {"sd15": shapes.FULL, "sdxl": shapes.SDXL}
"""Stable Diffusion 1.5 (2.1 GB in f16) and XL (6.9 GB)."""
TRANSFORMERS = {"flux-dev": shapes_dit.FLUX_DEV, "sd35-medium": shapes_dit.SD35_MEDIUM}
"""FLUX.1 dev (9.8 GB in q4_0 with its T5) and Stable Diffusion 3.5 Medium (5.1 GB); quantized types only."""
BLOCKS = "flux-blocks"
"""A FLUX.1 of one double and one single block (1.5 GB in f16)."""

SMALL_T5 = shapes_dit.T5(hidden=64, heads=2, head_width=32, layers=2, vocabulary=200)
"""Of the width that FLUX.1 reads; a load of the model wants one, and nothing else."""
T5_FILE = "t5.safetensors"


def cache_folder() -> Path:
    """Where models are kept between runs: ``$SDENGINE_BENCH_CACHE``, or the temporary folder."""
    folder = os.environ.get("SDENGINE_BENCH_CACHE")
    path = Path(folder) if folder else Path(tempfile.gettempdir()) / "sdengine-bench"
    path.mkdir(parents=True, exist_ok=True)
    return path


def model(weight_type: str = PLAIN, folder: Path | None = None, name: str = "sd15") -> Path:
    """A full-size file of `weight_type`; written when it is not there yet.

    f16 is a safetensors checkpoint with a tokenizer beside it; every other type is the GGUF that
    ``sdengine.convert`` makes of it. Both are written piece by piece: memory holds a few tensors.

    Args:
        weight_type: f16, or any type that ``sdengine.convert`` writes; q4_0 or q8_0 of transformers.
        folder: where to keep it; None takes :func:`cache_folder`.
        name: a key of :data:`MODELS` or :data:`TRANSFORMERS`, or :data:`BLOCKS`.
    """
    folder = folder or cache_folder()
    if name == BLOCKS:
        return _blocks(weight_type, folder / name)
    if name in TRANSFORMERS:
        return _transformer(name, weight_type, folder / name)
    plain, converted = folder / f"{name}-f16.safetensors", folder / f"{name}-{weight_type}.gguf"
    if weight_type != PLAIN and converted.is_file():
        return converted
    if not plain.is_file():
        write_tokenizer(folder / "tokenizer")
        write_checkpoint(plain, MODELS[name])
    if weight_type == PLAIN:
        return plain
    import sdengine

    sdengine.convert(plain, converted, weight_type)
    return converted


def _transformer(name: str, weight_type: str, folder: Path) -> Path:
    path, whole = folder / f"{name}-{weight_type}.gguf", TRANSFORMERS[name]
    if not path.is_file():
        write_tokenizer(folder / "tokenizer")
        t5_reader = "tokenizer_2" if isinstance(whole.denoiser, shapes_dit.Flux) else "tokenizer_3"
        synthetic_gguf.write_t5_tokenizer(folder / t5_reader, whole.t5.vocabulary)
        synthetic_gguf.write_gguf(path, list(shapes_dit.checkpoint(whole)), weight_type)
    return path


def _blocks(weight_type: str, folder: Path) -> Path:
    plain, converted = folder / "f16.safetensors", folder / f"{weight_type}.gguf"
    if not plain.is_file():
        write_tokenizer(folder / "tokenizer")
        synthetic_gguf.write_t5_tokenizer(folder / "tokenizer_2", SMALL_T5.vocabulary)
        write_parameters(folder / T5_FILE, list(shapes_dit.t5(SMALL_T5)))
        write_parameters(plain, list(shapes_dit.blocks()))
    if weight_type == PLAIN:
        return plain
    if not converted.is_file():
        import sdengine

        sdengine.convert(plain, converted, weight_type, **beside(plain))
    return converted


def beside(path: Path) -> dict[str, Any]:
    """What ``sdengine.load`` and ``convert`` are told of a file that lacks a text encoder."""
    t5 = path.with_name(T5_FILE)
    needed = path.suffix == ".safetensors" and t5.is_file()
    return {"text_encoders": {"text_encoder_2": str(t5)}} if needed else {}


def write_checkpoint(path: Path, size: shapes.Size = shapes.FULL, seed: int = 0) -> None:
    """Write a float16 safetensors checkpoint with random weights."""
    write_parameters(path, list(shapes.checkpoint(size)), seed)


def network(name: str, parameters: Iterable[shapes.Parameter], seed: int = 0) -> Path:
    """A float16 file of a network beside the models; written when it is not there yet."""
    path = cache_folder() / f"{name}-f16.safetensors"
    if not path.is_file():
        write_parameters(path, list(parameters), seed)
    return path


def write_parameters(path: Path, parameters: list[shapes.Parameter], seed: int = 0) -> None:
    """Write random values of these names and shapes as float16 safetensors.

    The format is an eight-byte header length, a JSON header, and the values. The file appears under
    its name complete or not at all.
    """
    header, end = {}, 0
    for name, shape in parameters:
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _HEADER_ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for piece in _values(parameters, seed):
            file.write(piece.data)
    unfinished.replace(path)


def _values(parameters: list[shapes.Parameter], seed: int) -> Iterator[NDArray[np.float16]]:
    """Values that keep activations near 1, as trained weights do: of variance 1 / fan-in.

    They repeat from a pool, because drawing a thousand million normal numbers takes minutes. Speed
    depends on values only where they become denormal or infinite, and these do not.
    """
    random = np.random.default_rng(seed)
    pool = np.tile(random.standard_normal(_POOL, np.float32), 2)  # a piece may start anywhere
    scaled: dict[int, NDArray[np.float16]] = {}
    for name, shape in parameters:
        count = math.prod(shape)
        if len(shape) == 1:
            yield np.full(count, 1 if name.endswith("weight") else 0, np.float16)
            continue
        fan_in = math.prod(shape[1:])
        if fan_in not in scaled:
            scaled[fan_in] = (pool / math.sqrt(fan_in)).astype(np.float16)
        start = int(random.integers(_POOL))
        for done in range(0, count, _POOL):
            yield scaled[fan_in][start : start + min(_POOL, count - done)]


def write_tokenizer(folder: Path, vocabulary: int = shapes.FULL.vocabulary) -> None:
    """Write a CLIP tokenizer of the real size, whose merges are pairs of single characters."""
    characters = list(_byte_characters())
    words = characters + [c + "</w>" for c in characters]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    pairs = [(a, b + "</w>") for a in characters for b in characters]
    pairs = pairs[: vocabulary - len(words) - len(marks)]
    tokens = words + [a + b for a, b in pairs] + marks
    folder.mkdir(parents=True, exist_ok=True)
    merges = "".join(f"{a} {b}\n" for a, b in pairs)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    vocab = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")


def _byte_characters() -> Iterator[str]:
    """A printable character for each byte, as GPT-2's byte-level BPE assigns them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    for byte in printable:
        yield chr(byte)
    for number in range(256 - len(printable)):
        yield chr(0x100 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a synthetic full-size model.")
    parser.add_argument("--model", default="sd15", choices=[*MODELS, *TRANSFORMERS, BLOCKS])
    parser.add_argument("--weight-type", default=PLAIN, help="f16, q8_0, q4_0, ... (f16)")
    parser.add_argument("--folder", type=Path, help="where to write it")
    arguments = parser.parse_args()
    print(model(arguments.weight_type, arguments.folder, arguments.model))


if __name__ == "__main__":
    main()
