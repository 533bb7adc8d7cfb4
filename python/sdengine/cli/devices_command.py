"""``sdengine devices``."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from sdengine.cli.console import readable_bytes

if TYPE_CHECKING:
    from sdengine.devices import Device


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--check",
    "checked",
    metavar="NAME",
    is_flag=False,
    flag_value="auto",
    help="Run every kind of layer on this device against the CPU and print the errors [default: auto]",
)
def devices(as_json: bool, checked: str | None) -> None:
    """List the devices of this machine, the one that `--device auto` takes first."""
    if checked is not None:
        _check(checked, as_json)
        return
    import sdengine

    found, unusable = sdengine.devices(), sdengine.unusable_backends()
    if as_json:
        listed = [dataclasses.asdict(device) for device in found]
        missing = [dataclasses.asdict(backend) for backend in unusable]
        click.echo(json.dumps({"devices": listed, "unusable": missing}, indent=2))
        return
    for device in found:
        click.echo(f"{device.name}  {', '.join(_facts(device))}")
    for backend in unusable:
        click.echo(
            f"{backend.kind} cannot be used: {backend.reason} ({backend.library}); {backend.needs}"
        )


def _facts(device: Device) -> list[str]:
    facts = [device.description]
    if device.threads:
        facts.append(f"{device.threads} threads")
    if device.memory:
        facts.append(readable_bytes(device.memory))
    if device.free_memory:
        facts.append(f"{readable_bytes(device.free_memory)} free")
    return facts


def _check(name: str, as_json: bool) -> None:
    """Print the errors of a device's layers; ends with status 1 when one is too large or refused."""
    from sdengine.device_checks import check_layers
    from sdengine.devices import open_device

    results = []
    for result in check_layers(open_device(name)):
        results.append(result)
        if not as_json:
            wrong = "" if result.passed else f"  WRONG, the limit is {result.limit:g}"
            click.echo(f"{result.title:<44} {result.refusal or f'{result.error:.1e}{wrong}'}")
    good = sum(result.passed for result in results)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
    else:
        click.echo(f"{good} of {len(results)} kinds of layers agree with the CPU")
    if good < len(results):
        raise SystemExit(1)
