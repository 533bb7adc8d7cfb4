"""Options that several commands share, and how they reach the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sdengine import Result

Command = TypeVar("Command", bound=Callable[..., Any])

_MODEL_OPTIONS = (
    click.option(
        "-m",
        "--model",
        metavar="PATH",
        help="GGUF, safetensors or checkpoint file, or diffusers folder [default: the demo model]",
    ),
    click.option("--vae", metavar="PATH", help="Autoencoder to use instead of the model's."),
    click.option(
        "--text-encoder",
        "text_encoders",
        metavar="NAME=PATH",
        multiple=True,
        help="Text encoder to use instead of the model's; may be repeated.",
    ),
    click.option(
        "--tokenizer", metavar="PATH", help="Folder with vocab.json and merges.txt, or a JSON file."
    ),
    click.option("--weight-type", metavar="TYPE", help="Quantize while loading: q8_0, q4_k, ..."),
    click.option("--device", metavar="NAME", help="See `sdengine devices` [default: auto]"),
    click.option("--threads", type=int, help="CPU threads [default: one per physical core]"),
)

_PICTURE_OPTIONS = (
    click.option("-W", "--width", type=int, help="Pixels."),
    click.option("-H", "--height", type=int, help="Pixels."),
    click.option("--steps", type=int, help="Sampling steps."),
    click.option(
        "--cfg-scale",
        "--guidance-scale",
        "guidance_scale",
        type=float,
        help="Strength of classifier-free guidance; 1 turns it off.",
    ),
    click.option("--sampler", metavar="NAME", help="Such as euler_a or dpm++2m."),
    click.option("--schedule", metavar="NAME", help="Such as karras."),
    click.option("-b", "--batch-size", type=int, help="Pictures to make together."),
    click.option(
        "--clip-skip", type=int, help="Text encoder: 1 takes the last layer, 2 the one before."
    ),
)


def model_options(command: Command) -> Command:
    """Add ``--model`` and what goes with it."""
    return _decorated(command, _MODEL_OPTIONS)


def picture_options(command: Command) -> Command:
    """Add the size, the steps and the rest of what ``generate`` takes; unset is the model's own."""
    return _decorated(command, _PICTURE_OPTIONS)


def _decorated(command: Command, options: tuple[Callable[..., Any], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def load_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Take the model options out of `options`: those given, as arguments of ``sdengine.load``."""
    names = ("model", "vae", "text_encoders", "tokenizer", "weight_type", "device", "threads")
    values = {name: options.pop(name) for name in names}
    values["text_encoders"] = dict(pair(text, "--text-encoder") for text in values["text_encoders"])
    given = given_only(values)
    if "model" not in given and given:
        option = "--" + next(iter(given)).replace("text_encoders", "text-encoder").replace("_", "-")
        raise click.UsageError(f"{option} needs --model")
    return given


def given_only(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the library has its own defaults for the others."""
    return {name: value for name, value in options.items() if value is not None and value != {}}


def pair(text: str, option: str) -> tuple[str, str]:
    """Split ``NAME=VALUE`` at its first equals sign."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise click.UsageError(f"{option} takes NAME=VALUE, not {text!r}")
    return name, value


def open_generate(arguments: dict[str, Any]) -> Callable[..., Result]:
    """The ``generate`` of the model that was asked for, or the demo model's."""
    import sdengine

    if "model" not in arguments:
        return sdengine.generate
    return sdengine.load(arguments.pop("model"), **arguments).generate
