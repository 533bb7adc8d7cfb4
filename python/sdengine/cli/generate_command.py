"""``sdengine generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdengine.cli.console import progress, readable_bytes
from sdengine.cli.options import (
    given_only,
    load_arguments,
    model_options,
    open_generate,
    picture_options,
)

if TYPE_CHECKING:
    from sdengine import Result


@click.command()
@click.argument("prompt")
@model_options
@click.option("-n", "--negative-prompt", help="What should not be seen.")
@picture_options
@click.option("-s", "--seed", type=int, help="Of the first picture [default: random]")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("out.png"),
    show_default=True,
    help=".png, .jpg or .webp; a batch: out.png, out-2.png, ... Replaces existing files.",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="JPEG and WebP."
)
def generate(prompt: str, output: Path, quality: int, **options: Any) -> None:
    """Make pictures from PROMPT.

    The parameters are stored in the picture: `sdengine inspect out.png` shows them.
    """
    from sdengine.images import check_output, save
    from sdengine.metadata import format_parameters

    arguments = load_arguments(options)
    check_output(output)  # before the work, not after it
    run = open_generate(arguments)
    with progress("generating") as report:
        result = run(
            prompt,
            **given_only(options),
            callback=lambda event: report(event.step, event.steps, f"sigma {event.sigma:.3g}"),
        )
    paths = numbered(output, len(result.images))
    for image, parameters, path in zip(result.images, result.metadata, paths, strict=True):
        save(image, path, format_parameters(parameters), quality=quality)
        click.echo(str(path))
    _summary(result)


def numbered(path: Path, count: int) -> list[Path]:
    """Names for a batch: the path itself, then ``name-2.png``, ``name-3.png``, ..."""
    return [path, *(path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, count + 1))]


def _summary(result: Result) -> None:
    """Seeds, time and memory, for a person."""
    if not sys.stderr.isatty():
        return
    seeds = ", ".join(str(seed) for seed in result.seeds)
    memory = f", {readable_bytes(result.peak_memory)}" if result.peak_memory else ""
    click.echo(f"seed {seeds}; {result.timings['total']:.2f} s{memory}", err=True)
