"""Reading a pickle as plain data, with nothing in it that could execute.

A pickle is a program for a small stack machine (opcodes: ``pickletools`` of the standard library).
Python's own unpickler runs it by importing and calling what the file names. This machine has no
import and no call: a global becomes an inert :class:`Global`, and what a call or a storage
reference stands for is decided by a :class:`Host`, from names alone. Python's unpickler is not
subclassed because it trusts sizes in the file: a single memo index or string length can ask it for
gigabytes. Here text and bytes cost what they take in the file, every other opcode a few dozen
bytes, and the number of opcodes is limited.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Final, NoReturn, Protocol

from sdengine.formats.source import format_error

MAX_PICKLE_BYTES: Final = 64 << 20
_MAX_OPERATIONS = 4_000_000  # a Stable Diffusion checkpoint takes about 50,000
_MAX_GLOBAL_NAME = 512  # bytes

# Only names are kept as keys. To hash a nested tuple, or to compare long texts again and again,
# would cost much time.
_MAX_NAME = 4096  # characters
_MAX_INTEGER = 256  # bytes


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names. It is never looked up."""

    module: str
    name: str

    @property
    def dotted(self) -> str:
        """``module.name``."""
        return f"{self.module}.{self.name}"


class Opaque:
    """Stands for an object of an unwanted class; `state` is what would have been put into it."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: Global) -> None:
        self.kind = kind
        self.state: object = None


class Host(Protocol):
    """Gives meaning to the two opcodes that reach outside the pickle."""

    def call(self, function: object, arguments: object) -> object:
        """The value that stands for ``function(*arguments)``."""

    def persistent(self, identifier: object) -> object:
        """The value behind a persistent id."""


class PickleMachine:
    """Reads one pickle of protocol 2 to 5 that begins at byte `position` of `buffer`."""

    def __init__(self, buffer: bytes | mmap.mmap, position: int, host: Host, path: Path) -> None:
        self.buffer = buffer
        self.position = position
        self.end = min(len(buffer), position + MAX_PICKLE_BYTES)
        self.host = host
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> object:
        """The pickled value; `position` is then behind it. Raises FormatError."""
        buffer, handlers, stop = self.buffer, _HANDLERS, ord(".")
        try:
            for _ in range(_MAX_OPERATIONS):
                opcode = buffer[self.position]
                self.position += 1
                if opcode == stop:
                    return self.stack.pop()
                handlers[opcode](self)
        except (IndexError, KeyError, UnicodeDecodeError, struct.error):
            self.fail("a pickle that ends early or contradicts itself")
        self.fail(f"a pickle of more than {_MAX_OPERATIONS} operations")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self.position
        stop = start + count
        if count < 0 or stop > self.end:
            self.fail(f"a pickle that wants {count} bytes beyond its end")
        self.position = stop
        return self.buffer[start:stop]

    def number(self, layout: Struct) -> Any:
        """The next number."""
        position = self.position
        self.position = position + layout.size
        return layout.unpack_from(self.buffer, position)[0]

    def line(self) -> str:
        """The text up to the next newline."""
        start = self.position
        stop = self.buffer.find(b"\n", start, min(self.end, start + _MAX_GLOBAL_NAME))
        if stop < 0:
            self.fail(f"a name of more than {_MAX_GLOBAL_NAME} bytes in a pickle")
        self.position = stop + 1
        return self.buffer[start:stop].decode()

    def since_mark(self) -> list[Any]:
        """Pop everything above the last mark."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top. The contents of foreign objects and sets are not wanted."""
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Opaque:
            self.fail("a pickle that appends to what is no list")

    def update(self, items: list[Any]) -> None:
        """Put names and values, one after the other, into the dict on top."""
        target = self.stack[-1]
        if type(target) is dict:
            for key, value in zip(items[::2], items[1::2], strict=False):
                if type(key) is str and len(key) <= _MAX_NAME:
                    target[key] = value
        elif type(target) is not Opaque:
            self.fail("a pickle that sets items of what is no dict")

    def fail(self, found: str) -> NoReturn:
        """Raise the FormatError about this pickle."""
        expected = "a torch checkpoint's pickle, protocol 2 to 5"
        raise format_error(self.path, f"{found} (at byte {self.position})", expected)


_Handler = Callable[[PickleMachine], None]
_SET: Final = Global("builtins", "set")
_U8, _U16, _I32, _U32, _U64 = (Struct("<" + code) for code in "BHiIQ")
_F64_BIG_ENDIAN: Final = Struct(">d")


def _push(make: Callable[[], object]) -> _Handler:
    return lambda machine: machine.stack.append(make())


def _number(layout: Struct) -> _Handler:
    return lambda machine: machine.stack.append(machine.number(layout))


def _bytes(length: Struct) -> _Handler:
    return lambda machine: machine.stack.append(machine.take(machine.number(length)))


def _text(length: Struct, errors: str = "strict") -> _Handler:
    def handler(machine: PickleMachine) -> None:
        machine.stack.append(machine.take(machine.number(length)).decode("utf-8", errors))

    return handler


def _integer(length: Struct) -> _Handler:
    def handler(machine: PickleMachine) -> None:
        size = machine.number(length)
        if size > _MAX_INTEGER:
            machine.fail(f"an integer of {size} bytes in a pickle")
        data = machine.take(size)
        machine.stack.append(int.from_bytes(data, "little", signed=True))

    return handler


def _put(layout: Struct) -> _Handler:
    unpack, size = layout.unpack_from, layout.size  # every second opcode is one of these

    def handler(machine: PickleMachine) -> None:
        machine.memo[unpack(machine.buffer, machine.position)[0]] = machine.stack[-1]
        machine.position += size

    return handler


def _get(layout: Struct) -> _Handler:
    unpack, size = layout.unpack_from, layout.size

    def handler(machine: PickleMachine) -> None:
        machine.stack.append(machine.memo[unpack(machine.buffer, machine.position)[0]])
        machine.position += size

    return handler


def _join(count: int) -> _Handler:
    def handler(machine: PickleMachine) -> None:
        items = tuple(machine.stack[-count:])
        if len(items) < count:
            machine.fail("a pickle that joins more than it has")
        machine.stack[-count:] = [items]

    return handler


def _skip(count: int) -> _Handler:
    def handler(machine: PickleMachine) -> None:
        machine.take(count)

    return handler


def _unknown(machine: PickleMachine) -> None:
    machine.position -= 1
    machine.fail(f"unknown opcode 0x{machine.buffer[machine.position]:02x} in a pickle")


def _memoize(machine: PickleMachine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _mark(machine: PickleMachine) -> None:
    machine.marks.append(len(machine.stack))


def _pop(machine: PickleMachine) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.stack.pop()


def _pop_mark(machine: PickleMachine) -> None:
    machine.since_mark()


def _duplicate(machine: PickleMachine) -> None:
    machine.stack.append(machine.stack[-1])


def _tuple(machine: PickleMachine) -> None:
    machine.stack.append(tuple(machine.since_mark()))


def _list(machine: PickleMachine) -> None:
    machine.stack.append(machine.since_mark())


def _dict(machine: PickleMachine) -> None:
    items = machine.since_mark()
    machine.stack.append({})
    machine.update(items)


def _frozenset(machine: PickleMachine) -> None:
    machine.since_mark()
    machine.stack.append(Opaque(_SET))


def _append(machine: PickleMachine) -> None:
    machine.extend([machine.stack.pop()])


def _appends(machine: PickleMachine) -> None:
    machine.extend(machine.since_mark())


def _set_item(machine: PickleMachine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update([key, value])


def _set_items(machine: PickleMachine) -> None:
    machine.update(machine.since_mark())


def _global(machine: PickleMachine) -> None:
    machine.stack.append(Global(machine.line(), machine.line()))


def _stack_global(machine: PickleMachine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        machine.fail("a pickle that names a global without text")
    machine.stack.append(Global(module, name))


def _call(machine: PickleMachine) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.host.call(function, arguments))


def _call_with_keywords(machine: PickleMachine) -> None:
    machine.stack.pop()
    _call(machine)


def _build(machine: PickleMachine) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if type(target) is Opaque:
        target.state = state


def _persistent(machine: PickleMachine) -> None:
    machine.stack.append(machine.host.persistent(machine.stack.pop()))


_OPERATIONS: Final[dict[bytes, _Handler]] = {
    b"\x80": _skip(1),  # protocol: the opcodes themselves show whether they are known
    b"\x95": _skip(8),  # frame: a hint for buffering
    # constants and empty containers
    b"N": _push(lambda: None),
    b"\x88": _push(lambda: True),
    b"\x89": _push(lambda: False),
    b")": _push(tuple),
    b"]": _push(list),
    b"}": _push(dict),
    b"\x8f": _push(lambda: Opaque(_SET)),
    # numbers
    b"K": _number(_U8),
    b"M": _number(_U16),
    b"J": _number(_I32),
    b"G": _number(_F64_BIG_ENDIAN),
    b"\x8a": _integer(_U8),
    b"\x8b": _integer(_I32),
    # text and bytes; T and U are Python 2's str, which may be either
    b"X": _text(_U32),
    b"\x8c": _text(_U8),
    b"\x8d": _text(_U64),
    b"T": _text(_I32, "backslashreplace"),
    b"U": _text(_U8, "backslashreplace"),
    b"B": _bytes(_U32),
    b"C": _bytes(_U8),
    b"\x8e": _bytes(_U64),
    b"\x96": _bytes(_U64),
    # the memo
    b"q": _put(_U8),
    b"r": _put(_U32),
    b"\x94": _memoize,
    b"h": _get(_U8),
    b"j": _get(_U32),
    # the stack
    b"(": _mark,
    b"0": _pop,
    b"1": _pop_mark,
    b"2": _duplicate,
    # containers
    b"\x85": _join(1),
    b"\x86": _join(2),
    b"\x87": _join(3),
    b"t": _tuple,
    b"l": _list,
    b"d": _dict,
    b"\x91": _frozenset,
    b"a": _append,
    b"e": _appends,
    b"\x90": _appends,
    b"s": _set_item,
    b"u": _set_items,
    # what would import, call or fetch
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _call,
    b"\x81": _call,
    b"\x92": _call_with_keywords,
    b"b": _build,
    b"Q": _persistent,
}
_HANDLERS: Final = [_OPERATIONS.get(bytes([opcode]), _unknown) for opcode in range(256)]
