"""Textual inversion files: learned words, as vectors for the text encoders of CLIP.

Gal et al. 2022, "An Image is Worth One Word" (arXiv 2208.01618).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import ParameterError, UnsupportedModelError, WeightsError
from .formats import TensorEntry, TensorIndex, open_index
from .loading.detection import detect
from .prompt.learned import check_name

Array = NDArray[np.float32]
AnyPath: TypeAlias = "str | PathLike[str]"
Embeddings: TypeAlias = "Mapping[str, AnyPath] | Sequence[AnyPath]"

ANY_ENCODER = ""
"""The part of a file that does not say which encoder it is for: its width tells."""

# How files name the parts for SDXL's encoders: ComfyUI's and A1111's way, and the trainers'.
_PARTS = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
_NAMELESS = {"emb_params", "*"}
_A1111 = "string_to_param."
_BUNDLED = re.compile(
    rf"bundle_emb\.(.+)\.({re.escape(_A1111)}.+|emb_params|{'|'.join(_PARTS)})", re.DOTALL
)
_TYPES = ("f64", "f32", "f16", "bf16")
_MAX_VECTORS = 1024  # far above the tokens of any text encoder


@dataclass(frozen=True)
class Embedding:
    """A learned word.

    Attributes:
        name: how prompts call it.
        parts: float32 ``[vectors, width]`` by the text encoder it is for, or under :data:`ANY_ENCODER`.
        path: where it comes from.
    """

    name: str
    parts: Mapping[str, Array]
    path: Path


def read_embedding(path: AnyPath, name: str | None = None) -> Embedding:
    """Read a textual inversion file: A1111's ``.pt``, diffusers' ``.bin``, safetensors, also SDXL's.

    Args:
        path: the file.
        name: how prompts will call it; None takes the token that the file names, or else the file's own name.

    Raises:
        FormatError: the file is damaged.
        UnsupportedModelError: it is something else; the message says what.
        WeightsError: its vectors are of no use.
        ParameterError: no prompt can contain the name.
    """
    index = open_index(path)
    token, entries = _entries(index)
    name = name if name is not None else token or index.path.stem
    check_name(name)
    parts = {part: _vectors(index.path, entry) for part, entry in entries.items()}
    return Embedding(name, parts, index.path)


def read_embeddings(given: Embeddings) -> list[Embedding]:
    """Read several: a mapping from names to paths, or paths alone. Raises as :func:`read_embedding`."""
    if isinstance(given, Mapping):
        return [read_embedding(path, name) for name, path in given.items()]
    if not isinstance(given, list | tuple):
        raise ParameterError("embeddings must be a mapping from names to paths, or a list of paths")
    return [read_embedding(path) for path in given]


def split_bundled(name: str) -> tuple[str, str] | None:
    """(word, tensor) if a tensor of a LoRA belongs to a learned word that comes with it; None for others."""
    found = _BUNDLED.fullmatch(name)
    return None if found is None else (found[1], found[2])


def bundled_embedding(path: Path, name: str, tensors: Mapping[str, TensorEntry]) -> Embedding:
    """A learned word that comes with a LoRA (A1111's ``bundle_emb``, LyCORIS, OneTrainer).

    Args:
        path: the LoRA's file.
        name: of the word.
        tensors: its tensors, under the names that a file of its own would have.

    Raises:
        WeightsError: its vectors are of no use.
        ParameterError: no prompt can contain the name.
    """
    check_name(name)
    found = _by_encoder(tensors)
    if found is None:
        raise WeightsError(f"{path}: the tensors of the bundled word {name!r} have no known names")
    parts = {part: _vectors(path, entry) for part, entry in found[1].items()}
    return Embedding(name, parts, path)


def _entries(index: TensorIndex) -> tuple[str | None, dict[str, TensorEntry]]:
    """The token that a file names, if it does, and its tensors by the encoder they are for."""
    entries = _by_encoder(index.tensors)
    if entries is not None:
        return entries
    found = detect(index)
    what = found.reason or f"this is {found.title}"
    raise UnsupportedModelError(f"{index.path} is no textual inversion embedding: {what}")


def _by_encoder(
    tensors: Mapping[str, TensorEntry],
) -> tuple[str | None, dict[str, TensorEntry]] | None:
    named = {_PARTS[key]: tensors[key] for key in _PARTS if key in tensors}
    if named:
        return None, named
    a1111 = [entry for key, entry in tensors.items() if key.startswith(_A1111)]
    if len(a1111) == 1:
        return None, {ANY_ENCODER: a1111[0]}
    if len(tensors) == 1:
        [(key, entry)] = tensors.items()
        if len(entry.shape) in (1, 2) and "." not in key:
            return None if key in _NAMELESS else key, {ANY_ENCODER: entry}
    if "emb_params" in tensors:
        return None, {ANY_ENCODER: tensors["emb_params"]}
    return None


def _vectors(path: Path, entry: TensorEntry) -> Array:
    shape = entry.shape if len(entry.shape) == 2 else (1, *entry.shape)
    if len(shape) != 2 or not 0 < shape[0] <= _MAX_VECTORS or not shape[1]:
        raise WeightsError(
            f"{path}: {entry.name!r} has shape {list(entry.shape)}; expected [width] or [1 to"
            f" {_MAX_VECTORS} vectors, width]. Is it an embedding?"
        )
    if entry.dtype not in _TYPES:
        raise WeightsError(
            f"{path}: {entry.name!r} has type {entry.dtype}; expected {', '.join(_TYPES)}"
        )
    strides = None if entry.strides is None else list(entry.strides)
    values: Any = _core.read_values(
        entry.dtype, list(entry.shape), entry.path, entry.offset, entry.nbytes, strides
    )
    vectors: Array = np.asarray(values, np.float32).reshape(shape)
    if not np.isfinite(vectors).all():
        raise WeightsError(
            f"{path}: {entry.name!r} holds NaN or infinity. The file is damaged: download it again"
        )
    return vectors
