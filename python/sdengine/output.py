"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sdengine.errors import OutputError, SDEngineError

_LONGEST_NAME = 100  # of the temporary name; file systems allow 255 bytes


@contextmanager
def new_file(path: Path, nbytes: int = 0) -> Iterator[Path]:
    """A file beside `path` that takes its name when the block ends, and is removed if it fails.

    Nobody ever sees a part of it, and what was at `path` stays until then. What the block raises comes out as it is.

    Args:
        path: the name that the file will have.
        nbytes: how much will be written; checked against the space on the disk.

    Raises:
        OutputError: the folder is missing or read-only, or the disk is too small.
    """
    with output_errors(path):
        part = _reserve(path, nbytes)
    try:
        yield part
        with output_errors(path):
            _flush(part)
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file as :func:`new_file` does, in one go.

    Args:
        path: the file; one that is there is replaced.
        write: writes the content into the open file.

    Raises:
        OutputError: the file cannot be written; what was there before stays.
    """
    # Pillow raises ValueError too.
    with output_errors(path, ValueError), new_file(path) as part, open(part, "wb") as file:
        write(file)


@contextmanager
def output_errors(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Turns an OSError of the block, or one of `more`, into an OutputError about `path`."""
    try:
        yield
    except SDEngineError:
        raise
    except Exception as error:
        if not isinstance(error, (OSError, *more)):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} could not be written: {reason}") from error


def check_place(path: Path) -> None:
    """Find out before the work whether a file can be written there.

    Raises:
        OutputError: the folder is missing, or nothing may be written in it.
    """
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; give the name of a file")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path} could not be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} could not be written: the folder {path.parent} is read-only")


def _reserve(path: Path, nbytes: int) -> Path:
    """An empty file beside `path`, on a disk with room for `nbytes`."""
    folder = path.absolute().parent
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OutputError(
            f"{path}: about {nbytes >> 20} MiB are needed, {folder} has {free >> 20} MiB free."
            " Make room, or choose a smaller weight type or another disk"
        )
    part = folder / f".{path.name[:_LONGEST_NAME]}.{secrets.token_hex(8)}.part"
    # With the usual permissions, unlike what the tempfile module makes.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return part


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
