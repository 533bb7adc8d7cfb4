"""The axes of a grid of options on the command line: ``--x steps=10,20 --y sampler=euler,heun``."""

from __future__ import annotations

import csv
from typing import Any

import click

from sdengine.cli.settings import SETTINGS, Setting


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """``NAME=VALUE,VALUE,...`` as the library takes it; quotes keep a comma within a value.

    The name is that of an option with or without dashes, or ``prompt``, ``negative_prompt``, ``prompt_sr``.
    """
    named, equals, listed = text.partition("=")
    if not (named and equals and listed):
        raise click.BadParameter(f"{text!r} is not NAME=VALUE,VALUE,...")
    values = next(csv.reader([listed], skipinitialspace=True))
    setting = _setting(named)
    if setting is None:
        return named.replace("-", "_"), values
    convert = click.types.convert_type(setting.type)
    return setting.name, [convert(value, None, None) for value in values]


def _setting(named: str) -> Setting | None:
    spelled = named.strip("-").replace("_", "-")
    for setting in SETTINGS:
        flags = [flag.strip("-") for whole in setting.flags for flag in whole.split("/")]
        if named == setting.name or spelled in flags:
            return setting
    return None
