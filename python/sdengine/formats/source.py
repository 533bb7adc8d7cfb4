"""One opened weight file, the first look at its bytes, and the wording of errors about it."""

from __future__ import annotations

import json
import mmap
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sdengine.errors import FormatError, ParameterError

DOWNLOAD_AGAIN = "The file is damaged or incomplete: download it again."

_HEAD_BYTES = 512
_MAX_JSON_BYTES = 64 << 20


def format_error(
    path: Path, found: str, expected: str, remedy: str = DOWNLOAD_AGAIN
) -> FormatError:
    """The error about `path` that says what was found, what was expected and what to do."""
    return FormatError(f"{path}: found {found}; expected {expected}. {remedy}")


def quoted(text: object, limit: int = 100) -> str:
    """`text` from an untrusted file, safe to print: escaped, and cut after `limit` characters."""
    if not isinstance(text, str):
        return reprlib.repr(text)  # bounded in depth and length
    return repr(text) if len(text) <= limit else repr(text[:limit]) + "..."


@dataclass(frozen=True, slots=True)
class Source:
    """A regular, non-empty file opened for reading."""

    path: Path
    file: BinaryIO
    size: int
    """Bytes."""
    head: bytes
    """The first bytes, at most 512."""

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`. The caller has checked that they lie inside the file."""
        self.file.seek(offset)
        return self.file.read(count)

    @contextmanager
    def mapped(self) -> Iterator[mmap.mmap]:
        """The whole file as read-only memory, for the time of the block."""
        with mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            yield buffer


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a file for the time of the block.

    Raises ParameterError for what is no file, FormatError for an empty one.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device would block, or never end
        raise ParameterError(
            f"{path}: not a regular file; give a weight file or a diffusers folder"
        )
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise format_error(path, "an empty file", "weights", "Download it again.")
        yield Source(path, file, size, file.read(_HEAD_BYTES))


def parse_json_object(data: bytes, path: Path, what: str, infinite: bool = False) -> dict[str, Any]:
    """Strict JSON: UTF-8, one object, no key twice, no NaN. `what` names it in errors.

    With `infinite` a number may be Infinity, as diffusers writes it in scheduler configs.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key appears twice")
        return result

    def no_constant(name: str) -> float:
        if infinite and name != "NaN":
            return float(name)
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(
            data.decode(), object_pairs_hook=no_duplicates, parse_constant=no_constant
        )
    except RecursionError:
        raise format_error(path, f"{what} nested too deeply", "a few levels") from None
    except ValueError as error:  # includes UnicodeDecodeError and JSONDecodeError
        raise format_error(path, f"{what} that cannot be read ({error})", "JSON") from None
    if not isinstance(value, dict):
        raise format_error(path, f"{what} that is a JSON {type(value).__name__}", "a JSON object")
    return value


def load_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file such as a config."""
    with open_source(path) as source:
        if source.size > _MAX_JSON_BYTES:
            raise format_error(
                path, f"{source.size} bytes", f"a JSON file of at most {_MAX_JSON_BYTES} bytes"
            )
        return parse_json_object(source.read(0, source.size), path, "a JSON file", infinite=True)
