"""Reading little-endian values one after another from a mapped file, never past its end."""

from __future__ import annotations

import mmap
from struct import Struct

from sdengine.errors import FormatError
from sdengine.formats.source import Source, format_error

_U32 = Struct("<I")
_U64 = Struct("<Q")


class Cursor:
    """A position in a header; every read moves it, and is checked against the end of the file."""

    __slots__ = ("buffer", "end", "position", "source")

    def __init__(self, source: Source, buffer: mmap.mmap, limit: int) -> None:
        """Start at byte 0; the header may not be longer than `limit` bytes."""
        self.source = source
        self.buffer = buffer
        self.position = 0
        self.end = min(source.size, limit)

    def require(self, count: int, what: str) -> None:
        """Raise FormatError unless `count` more bytes are there for `what`."""
        if count <= self.end - self.position:
            return
        if self.end < self.source.size:
            raise self.error(f"a header of more than {self.end} bytes (at {what})", "a smaller one")
        raise self.error(
            f"the end of the file at byte {self.source.size}",
            f"{count} bytes for {what} from byte {self.position}",
        )

    def unpack(self, layout: Struct, what: str) -> tuple[int, ...]:
        """The values of `layout`."""
        self.require(layout.size, what)
        values = layout.unpack_from(self.buffer, self.position)
        self.position += layout.size
        return values

    def u32(self, what: str) -> int:
        """An unsigned 32-bit number."""
        return self.unpack(_U32, what)[0]

    def u64(self, what: str) -> int:
        """An unsigned 64-bit number."""
        return self.unpack(_U64, what)[0]

    def take(self, count: int, what: str) -> bytes:
        """`count` bytes."""
        self.require(count, what)
        start = self.position
        self.position += count
        return self.buffer[start : self.position]

    def name(self, what: str, limit: int) -> str:
        """A length-prefixed, non-empty UTF-8 string of at most `limit` bytes."""
        length = self.u64(f"the length of {what}")
        if not 0 < length <= limit:
            raise self.error(f"{what} of {length} bytes", f"1 to {limit} bytes")
        raw = self.take(length, what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} that is not UTF-8 ({raw[:40]!r})", "UTF-8") from None

    def strings(self, count: int, what: str) -> list[str]:
        """`count` length-prefixed strings, in one tight loop: a vocabulary has 150,000 and more.

        Some published vocabularies hold tokens that are not UTF-8; their bytes are kept as escapes.
        """
        self.require(count * _U64.size, what)
        buffer, end, unpack = self.buffer, self.end, _U64.unpack_from
        position = self.position
        result: list[str] = []
        while len(result) < count:
            start = position + _U64.size
            if start > end:
                break
            stop = start + unpack(buffer, position)[0]
            if stop > end:
                break
            result.append(buffer[start:stop].decode("utf-8", "backslashreplace"))
            position = stop
        self.position = position
        if len(result) < count:
            self.take(self.u64(what), what)  # the next string leaves the file: raises
        return result

    def error(self, found: str, expected: str) -> FormatError:
        """The error about this file."""
        return format_error(self.source.path, found, expected)
