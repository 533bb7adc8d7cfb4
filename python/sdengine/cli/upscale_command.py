"""``sdengine upscale``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdengine.cli.options import given_only


@click.command()
@click.argument("picture", metavar="IN", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help=".png, .jpg or .webp. Replaces an existing file.",
)
@click.option(
    "-m", "--model", metavar="PATH", required=True, help="ESRGAN, Real-ESRGAN or SwinIR file."
)
@click.option("--scale", type=float, help="Of the result [default: the model's]")
@click.option(
    "--tile", type=int, help="Side of a tile in pixels; 0 for none [default: as memory allows]"
)
@click.option("--overlap", type=int, help="Of tiles, in pixels [default: 32]")
@click.option("--device", metavar="NAME", help="See `sdengine devices` [default: auto]")
@click.option("--threads", type=int, help="CPU threads [default: one per physical core]")
@click.option(
    "--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="JPEG and WebP."
)
def upscale(picture: Path, output: Path, model: str, quality: int, **options: Any) -> None:
    """Make the picture IN larger.

    The parameters that a picture was generated with are kept.
    """
    import sdengine
    from sdengine.images import check_output, save
    from sdengine.metadata import read_parameters_text

    check_output(output)  # before the work, not after it
    placed = {name: options.pop(name) for name in ("device", "threads")}
    upscaler = sdengine.load_upscaler(model, **given_only(placed))
    image = upscaler.upscale(picture, **given_only(options))
    save(image, output, read_parameters_text(picture), quality=quality)
    click.echo(f"{output}  {image.width} x {image.height}")
