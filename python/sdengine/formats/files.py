"""Opening one weight file: what it is, is told by its first bytes, never by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from sdengine.errors import FormatError
from sdengine.formats import gguf, safetensors, torch_legacy, torch_zip
from sdengine.formats.index import TensorIndex
from sdengine.formats.source import Source, format_error, open_source

Kind = Literal["gguf", "safetensors", "torch zip", "torch legacy", "json"]

_READERS: Final[dict[str, Callable[[Source], TensorIndex]]] = {
    "gguf": gguf.read_gguf,
    "safetensors": safetensors.read_safetensors,
    "torch zip": torch_zip.read_torch_zip,
    "torch legacy": torch_legacy.read_torch_legacy,
}
_WEIGHTS = "a GGUF, safetensors or torch file"
_PICKLE_PROTOCOL = 0x80
_SAVE_SAFETENSORS = "Save the weights as safetensors."

# Things that people have in place of weights: first bytes, what it is, what to do.
_MISTAKES: Final[tuple[tuple[bytes, str, str], ...]] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer file",
        "Download the real file (`git lfs pull`, or from the model's page).",
    ),
    (b"tjgg", "an old ggml file (ggjt)", "Convert it to GGUF with the tool that made it."),
    (b"lmgg", "an old ggml file", "Convert it to GGUF with the tool that made it."),
    (b"fmgg", "an old ggml file (ggmf)", "Convert it to GGUF with the tool that made it."),
    (b"\x89HDF", "an HDF5 (Keras) file", _SAVE_SAFETENSORS),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it first."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
    (b"\x89PNG", "a picture", "Give the weights."),
    (b"\xff\xd8\xff", "a picture", "Give the weights."),
)
_MARKUP: Final = (b"<!doctype", b"<html", b"<?xml", b"<head")


def kind_of(source: Source) -> Kind:
    """What the first bytes say. Raises FormatError, with advice, for anything else."""
    head = source.head
    if head.startswith((gguf.MAGIC, gguf.BIG_ENDIAN_MAGIC)):
        return "gguf"
    if head.startswith(torch_zip.MAGIC):
        return "torch zip"
    if head[0] == _PICKLE_PROTOCOL and torch_legacy.MAGIC_BYTES in head[:32]:
        return "torch legacy"
    if _looks_like_safetensors(head):
        return "safetensors"
    if head.lstrip().startswith(b"{"):
        return "json"
    raise _mistake(source)


def read_weights(source: Source) -> TensorIndex:
    """The index of an opened weight file."""
    kind = kind_of(source)
    if kind == "json":
        remedy = "Give the weight file, the folder, or a *.safetensors.index.json."
        raise format_error(source.path, "JSON text", _WEIGHTS, remedy)
    return _READERS[kind](source)


def read_weight_file(path: Path) -> TensorIndex:
    """The index of one weight file."""
    with open_source(path) as source:
        return read_weights(source)


def _looks_like_safetensors(head: bytes) -> bool:
    """True for a header length that is a number rather than text, with a JSON object behind it."""
    length = head[: safetensors.LENGTH_BYTES]
    behind = head[safetensors.LENGTH_BYTES :]
    return behind.startswith(b"{") and length.endswith(b"\0\0\0")


def _mistake(source: Source) -> FormatError:
    """The error for a file that holds something else."""
    head, path = source.head, source.path
    for magic, what, remedy in _MISTAKES:
        if head.startswith(magic):
            return format_error(path, what, _WEIGHTS, remedy)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:16].lower().startswith(_MARKUP):
        remedy = "The download saved an error or login page: download the file again."
        return format_error(path, "a web page", _WEIGHTS, remedy)
    if head[0] == _PICKLE_PROTOCOL:
        return format_error(path, "a Python pickle", _WEIGHTS, _SAVE_SAFETENSORS)
    if not head.strip(b"\0"):
        remedy = "The download was interrupted: download the file again."
        return format_error(path, "zeros", _WEIGHTS, remedy)
    return format_error(path, f"a file that begins {head[:16]!r}", _WEIGHTS)
