"""Torch checkpoints of before PyTorch 1.6: pickles one behind the other, then the storages.

Magic number, protocol version, facts about the writing machine, the value, the list of storage
keys; then per key the number of elements (i64) and the elements themselves.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

from sdengine.formats.index import TensorIndex
from sdengine.formats.pickle_machine import PickleMachine
from sdengine.formats.source import Source, format_error, quoted
from sdengine.formats.torch_state import index_checkpoint
from sdengine.formats.torch_values import STORAGES, StorageRef, TorchHost

MAGIC_NUMBER: Final = 0x1950A86A20F9469CFC6C
MAGIC_BYTES: Final = MAGIC_NUMBER.to_bytes(10, "little")
_PROTOCOL_VERSION = 1001
_COUNT = struct.Struct("<q")


def read_torch_legacy(source: Source) -> TensorIndex:
    """The index of a legacy checkpoint. Raises FormatError for everything that is not sound."""
    with source.mapped() as buffer:
        return _Reader(source, buffer).read()


class _Reader:
    """Goes through the file once, from pickle to pickle to storages."""

    def __init__(self, source: Source, buffer: mmap.mmap) -> None:
        self._source = source
        self._buffer = buffer
        self._position = 0
        self._host = TorchHost(source.path)

    def read(self) -> TensorIndex:
        """The index of the file."""
        path = self._source.path
        if self._next_pickle() != MAGIC_NUMBER or self._next_pickle() != _PROTOCOL_VERSION:
            raise format_error(path, "another magic or version", "a torch checkpoint, version 1001")
        facts = self._next_pickle()
        if isinstance(facts, dict) and facts.get("little_endian") is False:
            remedy = "Load and save it again with torch.save on a little-endian machine."
            raise format_error(path, "big-endian data", "little-endian", remedy)
        value = self._next_pickle()
        places = self._storage_places(self._next_pickle())

        def locate(storage: StorageRef) -> tuple[int, int]:
            place = places.get(storage.key)
            if place is None:
                raise format_error(path, f"no data for storage {quoted(storage.key)}", "its data")
            return place

        return index_checkpoint(path, value, locate)

    def _next_pickle(self) -> object:
        machine = PickleMachine(self._buffer, self._position, self._host, self._source.path)
        value = machine.run()
        self._position = machine.position
        return value

    def _storage_places(self, keys: object) -> dict[str, tuple[int, int]]:
        """Start and size in bytes of every storage's data, which lie in the order of `keys`."""
        path, size = self._source.path, self._source.size
        storages = self._host.storages
        if not isinstance(keys, list):
            raise format_error(path, "no list of storages", "one behind the pickled value")
        places: dict[str, tuple[int, int]] = {}
        for key in keys:
            if not isinstance(key, str) or key not in storages or key in places:
                raise format_error(path, "data of an unknown storage", "each storage once")
            start = self._position + _COUNT.size
            if start > size:
                raise format_error(path, f"a file of {size} bytes", f"at least {start}")
            elements = _COUNT.unpack_from(self._buffer, self._position)[0]
            end = start + elements * STORAGES[storages[key].kind][1]
            if elements < 0 or end > size:
                found = f"{elements} elements in storage {quoted(key)}"
                raise format_error(path, found, f"data that ends within {size} bytes")
            places[key] = (start, end - start)
            self._position = end
        return places
