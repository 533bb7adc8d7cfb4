"""Arguments that must be numbers, names, truths or paths: one wording for all of them.

Each raises :class:`sdengine.ParameterError` with the argument's name, what is allowed, and what was found.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path

from .errors import ParameterError


def check_whole(name: str, value: object, low: int, high: int, of: str = "") -> None:
    """A whole number from `low` to `high`; `of` says of what, ``"pixels"`` say. Truths are no numbers."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:  # type: ignore[operator]
        kind = f"a whole number of {of}" if of else "a whole number"
        raise ParameterError(f"{name} must be {kind} from {low} to {high}, not {value!r:.80}")


def check_number(name: str, value: object, low: float, high: float) -> None:
    """A number from `low` to `high`; neither NaN nor a truth is one."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    # Compared as it is: a whole number may be too large for a float.
    if not real or not low <= value <= high:  # type: ignore[operator]
        raise ParameterError(f"{name} must be a number from {low:g} to {high:g}, not {value!r:.80}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """One of some names."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        listed = ", ".join(map(repr, known))
        raise ParameterError(f"{name} must be one of {listed}, not {value!r:.80}")


def check_flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise ParameterError(f"{name} must be True or False, not {value!r:.80}")


def check_path(name: str, value: object) -> Path:
    """The path that an argument is; one that the system has no notation for, or an empty one, is none."""
    try:
        given = os.fspath(value)  # type: ignore[call-overload]
        usable = isinstance(given, str) and given != "" and b"\0" not in os.fsencode(given)
    except (TypeError, UnicodeEncodeError):
        usable = False
    if not usable:
        raise ParameterError(f"{name} must be a path, not {value!r:.80}")
    return Path(given)
