"""Encoded prompts, kept in memory and, where a folder is given, on disk.

A text is kept under what decides its encoding: its tokens and their weights as each encoder reads them, the rule,
the layer, the learned words, the adapters that change an encoder, the files of the encoders' weights, and this
build of the engine. So a hit is what the encoders would give, bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import _core
from .checks import check_path
from .errors import OutputError
from .loading import ComponentPlan, ModelPlan
from .output import write_whole
from .text_encoders.base import EncodedText

MEMORY_BYTES = 128 * 2**20
"""Kept in memory at most: 15 prompts of FLUX.1, or 200 of SDXL."""
FOLDER_BYTES = 2**30
"""Kept in a folder at most; those that were not read for longest go first."""
SUFFIX = ".prompt"
_MAGIC = b"sdengine prompt 1\n"
_DIGEST_BYTES = 32
_INPUT = "input."  # before the names of further inputs


class PromptCache:
    """Encoded texts by their keys. Safe to use from several threads, and its folder from several processes."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        memory_bytes: int = MEMORY_BYTES,
        folder_bytes: int = FOLDER_BYTES,
    ) -> None:
        """Keep texts.

        Args:
            folder: where they outlive the process; made where it is missing. None for memory alone.
            memory_bytes: largest size in memory; 0 keeps nothing there.
            folder_bytes: largest size of the folder.

        Raises:
            OutputError: the folder cannot be made, or is none.
        """
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{folder} could not be made: {error.strerror}") from error
        self._folder, self._most, self._most_in_folder = folder, memory_bytes, folder_bytes
        self._texts: OrderedDict[str, EncodedText] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def key(*parts: object) -> str:
        """The key of what these parts decide; see :func:`key_of`."""
        return key_of(*parts)

    @property
    def nbytes(self) -> int:
        """Size of what is in memory."""
        with self._lock:
            return sum(map(_size, self._texts.values()))

    def get(self, key: str) -> EncodedText | None:
        """The text of a key, or None."""
        with self._lock:
            text = self._texts.get(key)
            if text is not None:
                self._texts.move_to_end(key)
                return text
        if self._folder is None:
            return None
        text = _read(self._folder / f"{key}{SUFFIX}")
        if text is not None:
            self._remember(key, text)
        return text

    def put(self, key: str, text: EncodedText) -> None:
        """Keep a text. A folder that cannot be written, because the disk is full say, keeps nothing."""
        for array in _arrays(text).values():
            array.flags.writeable = False  # it is handed out again and again
        self._remember(key, text)
        if self._folder is not None:
            with suppress(OutputError):
                _write(self._folder / f"{key}{SUFFIX}", text)
            self._tidy(self._folder)

    def _remember(self, key: str, text: EncodedText) -> None:
        with self._lock:
            self._texts[key] = text
            self._texts.move_to_end(key)
            size = sum(map(_size, self._texts.values()))
            while self._texts and size > self._most:
                size -= _size(self._texts.popitem(last=False)[1])

    def _tidy(self, folder: Path) -> None:
        """Remove the files that were not read for longest; another process may do the same."""
        found = []
        for file in folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):
                state = file.stat()
                found.append((state.st_mtime_ns, state.st_size, file))
        size = sum(nbytes for _, nbytes, _ in found)
        for _, nbytes, file in sorted(found, key=lambda entry: entry[0]):
            if size <= self._most_in_folder:
                return
            with suppress(OSError):
                file.unlink()
            size -= nbytes


def make_cache(given: str | os.PathLike[str] | Literal[False] | None) -> PromptCache | None:
    """The cache that ``sdengine.load(..., prompt_cache=...)`` asks for.

    Raises:
        ParameterError: it is something else.
        OutputError: the folder cannot be made.
    """
    if given is False:
        return None
    return PromptCache(None if given is None else check_path("prompt_cache", given))


# ------------------------------ keys
def key_of(*parts: object) -> str:
    """A name for values of plain types, dataclasses and numpy arrays: equal for equal ones."""
    digest = hashlib.sha256()
    for piece in _pieces(parts):
        digest.update(struct.pack("<Q", len(piece)))
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterable[bytes]:
    if isinstance(value, np.ndarray):
        yield f"array {value.dtype.str} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value).__name__.encode()
        for field in fields(value):
            yield from _pieces(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key, item in sorted(value.items(), key=lambda pair: str(pair[0])):
            yield from _pieces(key)
            yield from _pieces(item)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        yield f"list {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    else:
        yield f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass")


def encoders_identity(
    plan: ModelPlan, weight_type: str | None, device: str, arithmetic: str
) -> str:
    """What the answers of a model's text encoders depend on besides the tokens: equal for equal answers.

    Args:
        plan: of the model.
        weight_type: which the weights are held in; None is the files' own.
        device: which computes; others may round otherwise.
        arithmetic: how it computes.
    """
    parts = {use.component: plan.components.get(use.component) for use in plan.family.text}
    read = {n: None if p is None else _component_identity(p) for n, p in parts.items()}
    core = getattr(_core, "__file__", None)
    build = _core.__version__, file_identity(core) if core else None
    return key_of(
        build, device, arithmetic, weight_type, plan.context_width, plan.family.text, read
    )


def _component_identity(part: ComponentPlan) -> tuple[object, ...]:
    """A network's kind and settings, and which bytes of which files it reads."""
    files = sorted({str(binding.entry.path) for binding in part.bindings})
    places = [
        (b.name, b.entry.dtype, b.entry.shape, str(b.entry.path), b.entry.offset)
        for b in part.bindings
    ]
    return part.kind, dict(part.config), [file_identity(file) for file in files], places


def file_identity(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """Where a file is, its size in bytes, and when it was changed."""
    state = os.stat(path)
    return os.path.realpath(path), state.st_size, state.st_mtime_ns


# ------------------------------ files
def _arrays(text: EncodedText) -> dict[str, Any]:
    values = {"context": text.context, "pooled": text.pooled}
    inputs = {f"{_INPUT}{name}": array for name, array in text.inputs.items()}
    return {name: value for name, value in {**values, **inputs}.items() if value is not None}


def _size(text: EncodedText) -> int:
    return sum(array.nbytes for array in _arrays(text).values())


def _write(path: Path, text: EncodedText) -> None:
    content = io.BytesIO()
    np.savez(content, **_arrays(text))
    payload = content.getvalue()
    digest = hashlib.sha256(payload).digest()
    write_whole(path, lambda file: file.writelines((_MAGIC, digest, payload)))


def _read(path: Path) -> EncodedText | None:
    """What a file holds; None where there is none, or it is damaged, and so will be written anew."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head, payload = len(_MAGIC), data[len(_MAGIC) + _DIGEST_BYTES :]
    whole = data[head : head + _DIGEST_BYTES] == hashlib.sha256(payload).digest()
    if not data.startswith(_MAGIC) or not whole:
        return None
    with suppress(OSError):
        os.utime(path)
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        inputs = {name for name in arrays.files if name.startswith(_INPUT)}
        if not set(arrays.files) - inputs <= {"context", "pooled"}:
            return None  # of another version
        found = {name: _fixed(arrays[name]) for name in arrays.files}
        further = {name.removeprefix(_INPUT): found.pop(name) for name in sorted(inputs)}
        return EncodedText(**found, inputs=further)


def _fixed(array: Any) -> Any:
    array.flags.writeable = False
    return array
