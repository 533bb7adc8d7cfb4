"""``sdengine generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdengine.cli.axes import parse_axis
from sdengine.cli.console import printable, readable_bytes
from sdengine.cli.from_picture import restore_adapters
from sdengine.cli.options import (
    SectionedCommand,
    load_arguments,
    model_options,
    open_generate,
    open_pipeline,
    picture_arguments,
    settings,
)
from sdengine.cli.preview import Looks, numbered, preview_options, taken_looks, watching

if TYPE_CHECKING:
    from sdengine import Pipeline, Result

_PICTURES: dict[str, tuple[dict[str, str], ...]] = {
    "image to image": ({"image": "--image"},),
    "editing": ({"image": "--image"},),
    "editing by reference": ({"references": "--reference", "image": "--image"},),
    "inpainting": ({"image": "--image"}, {"mask": "--mask"}),
    "outpainting": ({"image": "--image"},),
    "depth": ({"depth": "--depth"},),
    "control": ({"control_images": "--control-image"},),
}
"""What a picture was made from, by its task: options, any of each set, and their flags."""


@click.command(cls=SectionedCommand)
@click.argument("prompt", required=False)
@click.option("-n", "--negative-prompt", help="What should not be seen.")
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
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="PICTURE",
    help="Take the prompt and everything else that this picture says; what is given here comes first.",
)
@click.option(
    "--grid",
    "sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write all pictures of the batch as one, too.",
)
@click.option(
    "--x",
    "x_axis",
    type=parse_axis,
    metavar="NAME=V,V,...",
    help="Make one picture per value of an option, side by side in OUTPUT: --x steps=10,20,30.",
)
@click.option(
    "--y", "y_axis", type=parse_axis, metavar="NAME=V,V,...", help="The same from top to bottom."
)
@preview_options
@model_options
@click.option(
    "--refiner",
    metavar="PATH",
    help="Refiner model for the last part of the noise schedule, from --denoising-end (0.8) on.",
)
@settings()
def generate(
    prompt: str | None,
    output: Path,
    quality: int,
    source: Path | None,
    sheet: Path | None,
    x_axis: tuple[str, list[Any]] | None,
    y_axis: tuple[str, list[Any]] | None,
    refiner: str | None,
    **options: Any,
) -> None:
    """Make pictures from PROMPT.

    What is not given is the model's own default. The parameters are stored in the picture: `sdengine inspect out.png`
    shows them, and `--from out.png` makes it again.
    """
    from sdengine.grids import grid
    from sdengine.images import check_output, save
    from sdengine.metadata import format_parameters

    for path in (output, *([sheet] if sheet else [])):
        check_output(path)  # before the work, not after it
    looks = taken_looks(options)
    axes = _axes(x_axis, y_axis, other=bool(looks.animate or sheet or refiner))
    arguments = load_arguments(options)
    if refiner is not None and "model" not in arguments:
        raise click.UsageError("--refiner needs --model")
    given = picture_arguments(options)
    if source is not None:
        prompt, given = _restored(source, prompt, given, refiner is not None)
        restore_adapters(source, given, arguments)
    if prompt is None:
        raise click.UsageError("Missing argument 'PROMPT'")
    if axes:
        _compare(open_pipeline(arguments), prompt, axes, given, output, quality)
        return
    run = open_generate(arguments)
    if refiner is not None:
        given["refiner"] = _open_refiner(refiner, arguments)
    with watching(looks) as (callback, previews):
        result = run(prompt, **given, callback=callback)
    paths = numbered(output, len(result.images))
    for image, parameters, path in zip(result.images, result.metadata, paths, strict=True):
        save(image, path, format_parameters(parameters), quality=quality)
        click.echo(str(path))
    if sheet is not None:
        save(grid(result.images), sheet, quality=quality)
        click.echo(str(sheet))
    previews.finish(result.images)
    _summary(result)


def _axes(x: Any, y: Any, *, other: bool) -> dict[str, Any]:
    """The axes of a grid of options, if one is asked for."""
    if x is None and y is not None:
        raise click.UsageError("--y needs --x")
    if x is not None and other:
        raise click.UsageError("--x makes one picture; leave --grid, --animate and --refiner out")
    return {name: axis for name, axis in (("x", x), ("y", y)) if axis is not None}


def _compare(
    pipe: Pipeline,
    prompt: str,
    axes: dict[str, Any],
    given: dict[str, Any],
    output: Path,
    quality: int,
) -> None:
    """Write a grid of options."""
    from sdengine.grids import xy_grid
    from sdengine.images import save

    with watching(Looks()) as (callback, _):
        picture = xy_grid(pipe, prompt, **axes, **given, callback=callback)
    save(picture, output, quality=quality)
    click.echo(str(output))


def _open_refiner(path: str, arguments: dict[str, Any]) -> Any:
    import sdengine

    shared = ("tokenizer", "weight_type", "device", "threads", "arithmetic", "prompt_cache")
    return sdengine.load(path, **{k: v for k, v in arguments.items() if k in shared})


def _restored(
    source: Path, prompt: str | None, given: dict[str, Any], refined: bool
) -> tuple[str, dict[str, Any]]:
    """Prompt and options of a picture, under those that were given."""
    from sdengine.metadata import read_parameters
    from sdengine.options import restored

    found = read_parameters(source)
    if not found:
        raise click.UsageError(f"{source} carries no generation parameters")
    pictures = _PICTURES.get(found.get("task", ""), ())
    for flags in pictures:
        if not any(name in given for name in flags):
            flag = next(iter(flags.values()))
            raise click.UsageError(
                f"{source} was made from a given {flag[2:].replace('-', ' ')}: repeat it with {flag}"
            )
    if "refiner" in found and not refined:
        name = printable(found["refiner"])
        raise click.UsageError(f"{source} was made with the refiner {name}: give it with --refiner")
    upscaler = found.get("hires_upscaler")
    if upscaler is not None and "hires_upscaler" not in given:
        from sdengine.hires import is_known

        if not is_known(upscaler):
            name = printable(upscaler)
            raise click.UsageError(
                f"{source} was made with the upscaler {name}: give it with --hires-upscaler"
            )
    options = restored(found)
    for name in _overruled(found, given):
        options.pop(name, None)
    negative = {"negative_prompt": found["negative_prompt"]} if found["negative_prompt"] else {}
    return found["prompt"] if prompt is None else prompt, {**negative, **options, **given}


def _overruled(found: dict[str, Any], given: dict[str, Any]) -> set[str]:
    """What a picture says and what was given speaks against, besides the same."""
    from sdengine.masks import MaskOptions

    overruled: set[str] = set()
    if "image" not in given:
        overruled.add("strength")  # an enlarged picture of A1111 names that of the enlargement
    if "mask" not in given and "outpaint" not in {**found, **given}:
        overruled |= set(MaskOptions().__dict__)
    if "mask" in given:
        overruled.add("outpaint")
    if given.keys() & {"aspect_ratio", "outpaint"}:
        overruled |= {"width", "height"}
    if given.keys() & {"hires_scale", "hires_width", "hires_height"}:
        overruled |= {"hires_scale", "hires_width", "hires_height"}
    if given.keys() & {"steps", "schedule", "sigmas", "timesteps"}:
        overruled |= {"sigmas", "timesteps"}
    return overruled


def _summary(result: Result) -> None:
    """Seeds, time and memory, for a person."""
    if not sys.stderr.isatty():
        return
    seeds = ", ".join(str(seed) for seed in result.seeds)
    memory = f", {readable_bytes(result.peak_memory)}" if result.peak_memory else ""
    click.echo(f"seed {seeds}; {result.timings['total']:.2f} s{memory}", err=True)
