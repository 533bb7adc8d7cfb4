"""The ``sdengine`` command.

The commands use the public API of :mod:`sdengine` and nothing below it; each imports it when it
runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import click

from sdengine.cli.bench_command import bench
from sdengine.cli.convert_command import convert
from sdengine.cli.devices_command import devices
from sdengine.cli.generate_command import generate
from sdengine.cli.inspect_command import inspect
from sdengine.cli.plan_command import plan
from sdengine.cli.program import Program
from sdengine.cli.upscale_command import upscale

__all__ = ["main"]


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    import sdengine

    click.echo(f"sdengine {sdengine.__version__}")
    context.exit()


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Local image generation: Stable Diffusion class models on the machine you have."""


for _command in (generate, plan, inspect, upscale, convert, devices, bench):
    main.add_command(_command)
