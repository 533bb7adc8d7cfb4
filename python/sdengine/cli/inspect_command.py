"""``sdengine inspect``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sdengine.cli.console import printable

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what PATH is.

    For a model: family, components, weight types, sizes, and what is missing or not understood. For
    a picture: the parameters it was made with.
    """
    if path.suffix.lower() in _PICTURES:
        _inspect_picture(path, as_json)
        return
    import sdengine

    info = sdengine.inspect(path)
    click.echo(_json(info.to_dict()) if as_json else printable(str(info)))


def _inspect_picture(path: Path, as_json: bool) -> None:
    from sdengine.metadata import read_parameters, read_parameters_text

    if as_json:
        click.echo(_json(read_parameters(path)))
        return
    text = read_parameters_text(path)
    click.echo("no generation parameters" if text is None else printable(text))


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=True, default=str)
