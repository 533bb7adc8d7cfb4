"""``sdengine plan``."""

from __future__ import annotations

import json
from typing import Any

import click

from sdengine.cli.options import (
    LOAD,
    SectionedCommand,
    given_only,
    load_arguments,
    model_options,
    open_pipeline,
    picture_arguments,
    settings,
)


@click.command(cls=SectionedCommand)
@click.argument("path", metavar="MODEL", required=False)
@model_options
@settings()
@click.option("--prompt", help="Plan for this prompt [default: one of ordinary length]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(path: str | None, prompt: str | None, as_json: bool, **options: Any) -> None:
    """Show how much memory a picture of MODEL takes, and how it would be made within a limit.

    Nothing is computed. The exit code is 1 where it does not fit; the last line says what would.
    """
    from sdengine.api import demo_pipeline

    if path is not None:
        options["model"] = path
    limits = {name: options[name] for name in ("memory_limit", "host_memory_limit")}
    given = load_arguments({**options, **dict.fromkeys(limits)})
    options = {name: value for name, value in options.items() if name not in LOAD}
    pipe = open_pipeline(given) if given else demo_pipeline()
    found = pipe.plan(**picture_arguments(options), **given_only({"prompt": prompt, **limits}))
    click.echo(json.dumps(found.as_dict(), indent=2, default=str) if as_json else str(found))
    if not found.fits:
        click.get_current_context().exit(1)
