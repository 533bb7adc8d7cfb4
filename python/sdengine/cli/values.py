"""Kinds of values that options take besides click's own: functions that click calls with the text."""

from __future__ import annotations

from typing import Any

import click

from sdengine.metadata_fields import parse_record


def numbers(text: str) -> list[float]:
    """Numbers between commas."""
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers between commas.") from None


def whole_numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    try:
        return [int(item) for item in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of whole numbers between commas."
        ) from None


def one_or_more(text: str) -> float | list[float]:
    """A number, or several between commas."""
    listed = numbers(text)
    return listed[0] if len(listed) == 1 else listed


def size(text: str) -> tuple[str, float]:
    """``KEY=NUMBER``."""
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not KEY=NUMBER.") from None


def tiles(text: str) -> bool | int | dict[str, Any]:
    """``on``, a number, or ``KEY=VALUE ...``."""
    if text == "on":
        return True
    try:
        return int(text) if text.isdecimal() else parse_record(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not on, SIZE, or KEY=VALUE ...") from None


def guidance(text: str) -> tuple[str, Any]:
    """``KIND``, ``KIND NAME=VALUE ...`` or ``interval=START/END``, as a pair of kind and values."""
    kind, _, rest = text.strip().partition(" ")
    try:
        if "=" in kind:
            ((name, value),) = parse_record(text).items()
            return name, value
        return kind, parse_record(rest)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not KIND, or KIND NAME=VALUE ..., or interval=START/END."
        ) from None
