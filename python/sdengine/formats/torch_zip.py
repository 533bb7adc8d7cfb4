"""Torch checkpoints since PyTorch 1.6: a zip archive of uncompressed members.

``<root>/data.pkl`` is the pickle, ``<root>/data/<key>`` one storage each, ``<root>/byteorder``
(newer files) the byte order. Members are stored, so that a tensor's bytes have a place in the file.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sdengine.formats.index import TensorIndex
from sdengine.formats.pickle_machine import MAX_PICKLE_BYTES, PickleMachine
from sdengine.formats.source import Source, format_error, quoted
from sdengine.formats.torch_state import index_checkpoint
from sdengine.formats.torch_values import STORAGES, StorageRef, TorchHost

MAGIC: Final = b"PK\x03\x04"

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., name length, extra length
_ENCRYPTED = 1
_SAVE_AGAIN = "Load and save it again with torch.save, or get the model as safetensors."

# What Python's zipfile raises for archives that are not sound.
_ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    EOFError,
    IndexError,
    NotImplementedError,
    OverflowError,
    ValueError,
    struct.error,
)


def read_torch_zip(source: Source) -> TensorIndex:
    """The index of a zip checkpoint. Raises FormatError for everything that is not sound."""
    with source.mapped() as buffer:
        archive = _Archive(source, buffer)
        host = TorchHost(source.path)
        value = PickleMachine(archive.pickle(), 0, host, source.path).run()
        return index_checkpoint(source.path, value, archive.locate)


class _Archive:
    """The members of a checkpoint archive and where their bytes lie."""

    def __init__(self, source: Source, buffer: mmap.mmap) -> None:
        self._source = source
        self._buffer = buffer
        with _zip_errors(source), zipfile.ZipFile(source.file) as archive:
            self._members = {member.filename: member for member in archive.infolist()}
        self._root = self._find_root()
        self._check_byte_order()

    def pickle(self) -> bytes:
        """The bytes of ``data.pkl``."""
        start, size = self._data_range("data.pkl")
        if size > MAX_PICKLE_BYTES:
            expected = f"at most {MAX_PICKLE_BYTES}"
            raise format_error(
                self._source.path, f"data.pkl of {size} bytes", expected, _SAVE_AGAIN
            )
        return self._buffer[start : start + size]

    def locate(self, storage: StorageRef) -> tuple[int, int]:
        """Where the storage's bytes begin in the file, and how many they are."""
        start, size = self._data_range(f"data/{storage.key}")
        needed = storage.elements * STORAGES[storage.kind][1]
        if size < needed:
            found = f"{size} bytes in storage {quoted(storage.key)}"
            raise format_error(self._source.path, found, f"{needed}")
        return start, size

    def _find_root(self) -> str:
        """The folder in the archive that holds ``data.pkl``, with a slash behind."""
        names = [name for name in self._members if name.rpartition("/")[2] == "data.pkl"]
        if len(names) != 1:
            listed = quoted(", ".join(list(self._members)[:5]))
            remedy = "If it is an archive of a model folder, unpack it and open the folder."
            found = f"a zip archive of {len(self._members)} members ({listed})"
            raise format_error(self._source.path, found, "one data.pkl, as torch writes", remedy)
        root = names[0].removesuffix("data.pkl")
        if root + "constants.pkl" in self._members:
            found = "a TorchScript program"
            raise format_error(self._source.path, found, "a checkpoint", _SAVE_AGAIN)
        return root

    def _check_byte_order(self) -> None:
        if self._root + "byteorder" in self._members:
            start, size = self._data_range("byteorder")
            order = self._buffer[start : start + min(size, 16)]
            if order != b"little":
                found = f"byte order {order!r}"
                raise format_error(self._source.path, found, "little", _SAVE_AGAIN)

    def _data_range(self, name: str) -> tuple[int, int]:
        """Where a member's bytes begin in the file, and how many they are."""
        path = self._source.path
        member = self._members.get(self._root + name)
        if member is None:
            raise format_error(path, "an archive without it", f"a member {quoted(name)}")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
            found = f"{quoted(name)} compressed or encrypted"
            raise format_error(path, found, "stored members", _SAVE_AGAIN)
        header = member.header_offset
        if not 0 <= header <= len(self._buffer) - _LOCAL_HEADER.size:
            raise format_error(path, f"{quoted(name)} outside the file", "it inside")
        magic, name_length, extra_length = _LOCAL_HEADER.unpack_from(self._buffer, header)
        start = header + _LOCAL_HEADER.size + name_length + extra_length
        if magic != MAGIC or start + member.file_size > len(self._buffer):
            raise format_error(path, f"{quoted(name)} outside the file", "it inside")
        return start, member.file_size


@contextmanager
def _zip_errors(source: Source) -> Iterator[None]:
    """Turn what zipfile raises into FormatError."""
    try:
        yield
    except _ZIP_ERRORS as error:
        found = f"a zip archive that cannot be read ({error})"
        raise format_error(source.path, found, "a complete checkpoint") from None
