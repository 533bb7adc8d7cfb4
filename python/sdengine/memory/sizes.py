"""Amounts of memory as people write them."""

from __future__ import annotations

import re
from numbers import Integral

from sdengine.errors import ParameterError

_UNITS = {
    **{"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40},
    **{"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12},
}
"""Factors of the units, in lower case: decimal ones as the system of units has them, and IEC 80000-13's binary ones."""
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*")

Size = str | int
"""``"4GB"``, ``"512MB"``, ``"1.5GiB"``, or a number of bytes."""


def parse_size(name: str, given: object) -> int | None:
    """Bytes of the argument `name`; None stays None.

    Raises:
        ParameterError: it is no amount of memory, or not above 0.
    """
    if given is None:
        return None
    size: float | None = None
    if isinstance(given, Integral) and not isinstance(given, bool):
        size = int(given)
    elif isinstance(given, str) and (match := _SIZE.fullmatch(given)):
        factor = _UNITS.get(match[2].lower())
        size = None if factor is None else float(match[1]) * factor
    if size is None or not 1 <= size < 2**63:
        raise ParameterError(
            f'{name} must be an amount of memory such as "4GB", "512MB" or "1.5GiB", or a number of bytes,'
            f" not {given!r}"
        )
    return round(size)


def readable(size: int) -> str:
    """Gigabytes with two digits behind the point, megabytes below one."""
    return f"{size / 1e9:.2f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"


def rounded_up(size: int) -> str:
    """The smallest limit that holds `size`, as :func:`parse_size` reads it: whole MB, steps of 10 MB from 1 GB on."""
    if size <= 999 * 10**6:
        return f"{-(-size // 10**6)}MB"
    steps = -(-size // 10**7)
    return f"{steps // 100}.{steps % 100:02d}".rstrip("0").rstrip(".") + "GB"
