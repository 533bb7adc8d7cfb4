"""``sdengine convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdengine.cli.console import progress, readable_bytes
from sdengine.cli.options import component_arguments, given_only, lora_option, pair, tokenizers


@click.command()
@click.argument("src")
@click.argument("dst")
@click.option(
    "--type", "--weight-type", "weight_type", metavar="TYPE", help="Such as f16, q8_0 or q4_0."
)
@click.option(
    "--rule",
    "rules",
    metavar="PATTERN=TYPE",
    multiple=True,
    help="Type for parameters whose name matches; may be repeated, the first match wins.",
)
@click.option(
    "--default",
    "defaults",
    metavar="NAME=VALUE",
    multiple=True,
    help="What a generation takes where the caller says nothing, such as guidance=3 or steps=20.",
)
@lora_option("LoRA to merge into the weights")
@click.option(
    "--vae",
    metavar="PATH",
    multiple=True,
    help="Autoencoder to take instead of the model's; twice for the two files of a tiny one.",
)
@click.option(
    "--text-encoder",
    "text_encoders",
    metavar="[NAME=]PATH",
    multiple=True,
    help="Text encoder to take instead of the model's; may be repeated.",
)
@click.option(
    "--tokenizer",
    metavar="[NAME=]PATH",
    multiple=True,
    callback=tokenizers,
    help="Tokenizer to take instead of the model's; by text encoder where there are several.",
)
@click.option("--family", metavar="NAME", help="What the model is [default: told by its tensors]")
@click.option(
    "--prediction", metavar="NAME", help="Such as epsilon or v_prediction [default: found out]"
)
@click.option("--threads", type=int, help="CPU threads [default: all]")
@click.option("-f", "--force", is_flag=True, help="Replace DST if it exists.")
def convert(
    src: str,
    dst: str,
    rules: tuple[str, ...],
    defaults: tuple[str, ...],
    vae: tuple[str, ...],
    text_encoders: tuple[str, ...],
    force: bool,
    **options: Any,
) -> None:
    """Write the model SRC as one self-contained GGUF file DST, or the control network SRC."""
    import sdengine

    for rule in rules:
        pair(rule, "--rule")
    given = {name: _value(text) for name, text in (pair(d, "--default") for d in defaults)}
    if Path(dst).exists() and not force:
        raise click.UsageError(f"{dst} exists; choose another name, or replace it with --force")
    with progress("converting") as report:
        conversion = sdengine.convert(
            src,
            dst,
            rules=list(rules) or None,
            defaults=given or None,
            callback=lambda event: report(event.index, event.count, event.name),
            overwrite=force,
            **given_only({**options, **component_arguments(vae, text_encoders)}),
        )
    types = ", ".join(f"{kind} x {count}" for kind, count in conversion.histogram.items())
    click.echo(f"{conversion.path}  {readable_bytes(conversion.nbytes)}  ({types})")
    if conversion.needs_tokenizer and not conversion.has_tokenizer:
        click.echo("the file carries no tokenizer: give one with --tokenizer", err=True)


def _value(text: str) -> int | float | str:
    """The number that a text spells, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
