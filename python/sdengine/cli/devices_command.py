"""``sdengine devices``."""

from __future__ import annotations

import dataclasses
import json

import click

from sdengine.cli.console import readable_bytes


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def devices(as_json: bool) -> None:
    """List the devices of this machine."""
    import sdengine

    found = sdengine.devices()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(device) for device in found], indent=2))
        return
    for device in found:
        memory = f", {readable_bytes(device.memory)}" if device.memory else ""
        click.echo(f"{device.name}  {device.description}, {device.threads} threads{memory}")
