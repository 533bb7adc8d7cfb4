"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from sdengine.errors import OutputError, SDEngineError

_LONGEST_NAME = 100  # of the temporary name; file systems allow 255 bytes


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file beside its final name and rename it: nobody ever sees a part of it.

    Args:
        path: the file; one that is there is replaced.
        write: writes the content into the open file.

    Raises:
        OutputError: the file cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name[:_LONGEST_NAME]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SDEngineError:
        raise
    except (OSError, ValueError) as error:  # Pillow raises both
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} could not be written: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_place(path: Path) -> None:
    """Find out before the work whether a file can be written there.

    Raises:
        OutputError: the folder is missing, or nothing may be written in it.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise OutputError(f"{path} could not be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} could not be written: the folder {path.parent} is read-only")
