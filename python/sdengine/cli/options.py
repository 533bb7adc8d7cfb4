"""Options that several commands share, and how they reach the library."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sdengine.cli.settings import SETTINGS

if TYPE_CHECKING:
    from sdengine import Pipeline, Result

Command = TypeVar("Command", bound=Callable[..., Any])


def _loras(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> Any:
    from sdengine.adapters import parse_lora

    return [parse_lora(text) for text in texts] or None


def _controls(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> Any:
    from sdengine.control import parse_control

    return [parse_control(text) for text in texts] or None


def _listed(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> Any:
    return list(given) or None


def _one_or_two(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> Any:
    return _one_or_list(given)


def tokenizers(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> Any:
    """A path, or a mapping where text encoders are named."""
    named = [_NAMED.fullmatch(text) for text in given]
    if len(given) == 1 and named[0] is None:
        return given[0]
    if None in named:
        raise click.UsageError("--tokenizer takes one PATH, or NAME=PATH each time")
    return {match[1]: match[2] for match in named if match} or None


def lora_option(what: str) -> Callable[[Command], Command]:
    """``--lora FILE:SCALE``, as the argument ``loras``."""
    return click.option(
        "--lora",
        "loras",
        metavar="FILE[:SCALE]",
        multiple=True,
        callback=_loras,
        help=f"{what}; may be repeated. A second :SCALE is that of the text encoders.",
    )


_MODEL_OPTIONS = (
    click.option(
        "-m",
        "--model",
        metavar="PATH",
        help="GGUF, safetensors or checkpoint file, or diffusers folder [default: the demo model]",
    ),
    click.option(
        "--vae",
        metavar="PATH",
        multiple=True,
        help="Autoencoder to use instead of the model's; twice for the two files of a tiny one.",
    ),
    click.option(
        "--text-encoder",
        "text_encoders",
        metavar="[NAME=]PATH",
        multiple=True,
        help="Text encoder to use instead of the model's; may be repeated.",
    ),
    click.option(
        "--tokenizer",
        metavar="[NAME=]PATH",
        multiple=True,
        callback=tokenizers,
        help="Folder with vocab.json and merges.txt, or a JSON or SentencePiece file; by text encoder where there are"
        " several.",
    ),
    click.option("--family", metavar="NAME", help="Take the model for a member of this family."),
    click.option(
        "--prediction",
        metavar="NAME",
        help="What the model predicts, where its file does not tell: epsilon, v_prediction, sample.",
    ),
    lora_option("LoRA to apply"),
    click.option(
        "--controlnet",
        "controlnets",
        metavar="PATH[:TYPE]",
        multiple=True,
        callback=_controls,
        help="ControlNet or T2I adapter; may be repeated. A union needs a :TYPE, such as :canny.",
    ),
    click.option(
        "--ip-adapter", metavar="PATH", help="IP-Adapter or Redux, which reads --ip-image."
    ),
    click.option("--image-encoder", metavar="PATH", help="Vision encoder of --ip-adapter."),
    click.option(
        "--embedding",
        "embeddings",
        metavar="PATH",
        multiple=True,
        callback=_listed,
        help="Textual inversion file whose word prompts may use; may be repeated.",
    ),
    click.option(
        "--lora-dir", metavar="PATH", help="Where <lora:name:0.8> in a prompt finds its file."
    ),
    click.option(
        "--taesd",
        "--preview-vae",
        "preview_vae",
        metavar="PATH",
        multiple=True,
        callback=_one_or_two,
        help="Tiny autoencoder that draws previews; twice for its two files.",
    ),
    click.option("--prompt-cache", metavar="FOLDER", help="Keep encoded prompts there."),
    click.option("--weight-type", metavar="TYPE", help="Quantize while loading: q8_0, q4_k, ..."),
    click.option(
        "--device",
        metavar="NAME",
        help="See `sdengine devices`; also denoiser=NAME,text=NAME,vae=NAME [default: auto]",
    ),
    click.option("--threads", type=int, help="CPU threads [default: one per physical core]"),
    click.option(
        "--arithmetic",
        type=click.Choice(("precise", "standard", "fast")),
        help="How much may be rounded on the CPU; fast: 8 and 16 bits [default: standard]",
    ),
    click.option(
        "--memory-limit",
        metavar="SIZE",
        help="What a picture may take on the device, on the CPU the whole process: 4GB, 512MB, 1.5GiB.",
    ),
    click.option("--host-memory-limit", metavar="SIZE", help="The same for the process."),
)
LOAD = (
    *("model", "vae", "text_encoders", "tokenizer", "family", "prediction", "weight_type"),
    *("device", "threads", "arithmetic", "loras", "lora_dir", "embeddings"),
    *("controlnets", "ip_adapter", "image_encoder"),
    *("preview_vae", "prompt_cache", "memory_limit", "host_memory_limit"),
)
BENCH = (
    *("width", "height", "steps", "guidance_scale", "sampler", "schedule", "batch_size"),
    "clip_skip",
)
"""Settings that change how long a picture takes."""
_NAMED = re.compile(r"(\w+)=(.+)")


class SectionedCommand(click.Command):
    """A command whose help page has the options of :data:`SETTINGS` under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        sections = {setting.name: setting.section for setting in SETTINGS}
        sections.update(dict.fromkeys(LOAD, "Model"))
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record is not None:
                rows.setdefault(sections.get(parameter.name or "", "Options"), []).append(record)
        for section, records in rows.items():
            with formatter.section(section):
                formatter.write_dl(records)


def model_options(command: Command) -> Command:
    """Add ``--model`` and what goes with it."""
    return _decorated(command, _MODEL_OPTIONS)


def settings(names: Sequence[str] | None = None) -> Callable[[Command], Command]:
    """Add :data:`SETTINGS`, or those of some names; unset is the model's own."""
    chosen = [s for s in SETTINGS if names is None or s.name in names]
    return lambda command: _decorated(command, chosen)


def _decorated(command: Command, options: Sequence[Callable[..., Any]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def load_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Take the model options out of `options`: those given, as arguments of ``sdengine.load``."""
    values = {name: options.pop(name) for name in LOAD}
    given = given_only({**values, **component_arguments(values["vae"], values["text_encoders"])})
    if "model" not in given and given:
        first = {"text_encoders": "text_encoder", "loras": "lora", "preview_vae": "taesd"}
        option = "--" + first.get(name := next(iter(given)), name).replace("_", "-")
        raise click.UsageError(f"{option} needs --model")
    return given


def component_arguments(vae: tuple[str, ...], text_encoders: tuple[str, ...]) -> dict[str, Any]:
    """Components given apart, as the library takes them."""
    return {"vae": _one_or_list(vae), "text_encoders": _text_encoders(text_encoders)}


def _one_or_list(values: tuple[str, ...]) -> str | list[str] | None:
    return values[0] if len(values) == 1 else list(values) or None


def _text_encoders(given: tuple[str, ...]) -> Any:
    """A mapping where components are named, otherwise one path or a list of them."""
    named = [_NAMED.fullmatch(text) for text in given]
    pairs = {match[1]: match[2] for match in named if match}
    if not pairs:
        return _one_or_list(given)
    if None in named:
        raise click.UsageError("--text-encoder takes NAME=PATH each time, or PATH each time")
    return pairs


def given_only(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the library has its own defaults for the others."""
    return {name: value for name, value in options.items() if value not in (None, (), {})}


def picture_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, as the library takes them."""
    given = given_only(options)
    for name in ("control_images", "ip_images", "references"):
        if name in given:
            given[name] = list(given[name])
    for name in ("sizes", "negative_sizes"):
        if name in given:
            given[name] = dict(given[name])
    if "guidance" in given:
        from sdengine.options import guidance_of

        given["guidance"] = guidance_of(dict(given["guidance"]))
    return given


def pair(text: str, option: str) -> tuple[str, str]:
    """Split ``NAME=VALUE`` at its first equals sign."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise click.UsageError(f"{option} takes NAME=VALUE, not {text!r}")
    return name, value


def open_pipeline(arguments: dict[str, Any]) -> Pipeline:
    """The model that was asked for, or the demo model."""
    import sdengine
    from sdengine.api import demo_pipeline

    if "model" not in arguments:
        return demo_pipeline()
    arguments = dict(arguments)
    return sdengine.load(arguments.pop("model"), **arguments)


def open_generate(arguments: dict[str, Any]) -> Callable[..., Result]:
    """The ``generate`` of the model that was asked for, or the demo model's."""
    import sdengine

    return sdengine.generate if "model" not in arguments else open_pipeline(arguments).generate
