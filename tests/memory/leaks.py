"""The leak checker of a build with the address sanitizer, asked in the middle of a program."""

from __future__ import annotations

import ctypes
import gc


def assert_no_leaks() -> None:
    """Fails where memory is lost that nothing points to any more; in other builds there is nobody to ask.

    At the end of a program Python leaves objects behind that only modules pointed to; now they are in use. The
    report goes to standard error.
    """
    try:
        check = ctypes.CDLL(None).__lsan_do_recoverable_leak_check
    except AttributeError:
        return
    gc.collect()
    assert check() == 0, "memory was lost; see the report of LeakSanitizer"
