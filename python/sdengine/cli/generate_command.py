"""``sdengine generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdengine.cli.console import printable, readable_bytes
from sdengine.cli.options import (
    SectionedCommand,
    load_arguments,
    model_options,
    open_generate,
    picture_arguments,
    settings,
)
from sdengine.cli.preview import numbered, watching

if TYPE_CHECKING:
    from sdengine import Result

_PICTURES = {
    "image to image": ("image",),
    "editing": ("image",),
    "inpainting": ("image", "mask"),
    "depth": ("depth",),
}
"""What a picture was made from, by its task."""


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
@click.option("--preview", is_flag=True, help="Draw the picture in the terminal while it emerges.")
@click.option(
    "--preview-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a small picture per step there.",
)
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
    preview: bool,
    preview_dir: Path | None,
    refiner: str | None,
    **options: Any,
) -> None:
    """Make pictures from PROMPT.

    What is not given is the model's own default. The parameters are stored in the picture: `sdengine inspect out.png`
    shows them, and `--from out.png` makes it again.
    """
    from sdengine.images import check_output, save
    from sdengine.metadata import format_parameters

    check_output(output)  # before the work, not after it
    arguments = load_arguments(options)
    if refiner is not None and "model" not in arguments:
        raise click.UsageError("--refiner needs --model")
    given = picture_arguments(options)
    if source is not None:
        prompt, given = _restored(source, prompt, given, refiner is not None)
    if prompt is None:
        raise click.UsageError("Missing argument 'PROMPT'")
    run = open_generate(arguments)
    if refiner is not None:
        given["refiner"] = _open_refiner(refiner, arguments)
    with watching(preview, preview_dir) as callback:
        result = run(prompt, **given, callback=callback)
    paths = numbered(output, len(result.images))
    for image, parameters, path in zip(result.images, result.metadata, paths, strict=True):
        save(image, path, format_parameters(parameters), quality=quality)
        click.echo(str(path))
    _summary(result)


def _open_refiner(path: str, arguments: dict[str, Any]) -> Any:
    import sdengine

    shared = ("tokenizer", "weight_type", "device", "threads")
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
    for name in pictures:
        if name not in given:
            raise click.UsageError(
                f"{source} was made from a given {name}: repeat it with --{name}"
            )
    if "refiner" in found and not refined:
        name = printable(found["refiner"])
        raise click.UsageError(f"{source} was made with the refiner {name}: give it with --refiner")
    options = restored(found)
    for name in _overruled(given):
        options.pop(name, None)
    negative = {"negative_prompt": found["negative_prompt"]} if found["negative_prompt"] else {}
    return found["prompt"] if prompt is None else prompt, {**negative, **options, **given}


def _overruled(given: dict[str, Any]) -> set[str]:
    """What a picture says and what was given speaks against, besides the same."""
    overruled: set[str] = set()
    if "image" not in given:
        overruled.add("strength")  # an enlarged picture of A1111 names that of the enlargement
    if "aspect_ratio" in given:
        overruled |= {"width", "height"}
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
