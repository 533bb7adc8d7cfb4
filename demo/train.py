"""Train the demo models from nothing: ``python -m demo.train model --folder runs/demo``.

Stages are run one by one, or by the name of what they make, in order:

* ``model``: ``tokenizer`` (seconds), ``text`` (the text encoder), ``vae`` (the autoencoder), ``polish`` (its
  decoder once more), ``unet`` (the denoiser) and ``export`` (a diffusers folder);
* ``adapters`` of that model: ``lora`` and ``controlnet``;
* ``flow``, the rectified-flow model: ``pair`` (its text encoders), ``wide_vae`` (its autoencoder) and ``dit``.

The last two start from a folder in which ``model`` was run, or from the shipped model (demo/unpack.py). All
stages but the text encoders resume from their checkpoints. The default minutes are about what the shipped
models were trained with, on two CPU cores (see MODEL_CARD.md); a GPU (``--device cuda``) needs a fraction.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from demo import controlnet, dit, lora, text_encoder, tokenizer, unet, vae, wide_vae
from demo.evaluate import HELD_OUT
from demo.export import export
from demo.shapes import write_held_out
from demo.training import Settings, Team, launch, load


def _tokenizer(folder: Path) -> None:
    tokenizer.build(folder / "tokenizer")
    write_held_out(HELD_OUT)


def _export(folder: Path) -> None:
    state = load(folder / "unet.pt")
    if state is None:
        raise SystemExit(f"{folder}/unet.pt is missing: run the stage unet first")
    print(export(folder, unet.averaged(state["average"]), unet.new_scheduler()))


def _text(settings: Settings, builds: tuple[text_encoder.Build, ...]) -> None:
    for build in builds:
        if not (settings.folder / build.name).exists():
            launch(partial(text_encoder.train, build=build), settings)


@dataclass(frozen=True)
class _Training:
    """A stage that takes time."""

    minutes: float
    """By default."""
    train: Callable[[Settings, Team], None]
    prepare: Callable[[Path], object] = lambda folder: None
    """What is done first, in one process."""


_QUICK: dict[str, Callable[[Path], None]] = {"tokenizer": _tokenizer, "export": _export}
# The captions are short and the encoders tiny: a second worker would not pay.
_TEXT = {"text": (text_encoder.NARROW,), "pair": text_encoder.PAIR}
_TEXT_MINUTES = {"text": 3.0, "pair": 1.5}
_TRAININGS = {
    "vae": _Training(12, vae.train),
    "polish": _Training(12, vae.polish),
    "unet": _Training(65, unet.train, unet.prepare),
    "lora": _Training(8, lora.train, lora.prepare),
    "controlnet": _Training(12, controlnet.train, controlnet.prepare),
    "wide_vae": _Training(11, wide_vae.train),
    "dit": _Training(78, dit.train, dit.prepare),
}
_GROUPS = {
    "model": ("tokenizer", "text", "vae", "polish", "unet", "export"),
    "adapters": ("lora", "controlnet"),
    "flow": ("pair", "wide_vae", "dit"),
}
_STAGES = tuple(stage for group in _GROUPS.values() for stage in group)


def _run(stage: str, settings: Settings) -> None:
    if stage in _QUICK:
        _QUICK[stage](settings.folder)
    elif stage in _TEXT:
        _text(settings, _TEXT[stage])
    else:
        training = _TRAININGS[stage]
        training.prepare(settings.folder)
        launch(training.train, settings)


def _minutes(stage: str) -> float:
    return _TRAININGS[stage].minutes if stage in _TRAININGS else _TEXT_MINUTES.get(stage, 0.0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=(*_GROUPS, *_STAGES), help="a stage, or several")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="processes; 2 on a CPU, 1 on a GPU")
    parser.add_argument("--minutes", type=float, help="time budget of each stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for stage in _GROUPS.get(options.what, (options.what,)):
        minutes = options.minutes or _minutes(stage)
        workers = options.workers or (2 if options.device == "cpu" else 1)
        workers = 1 if stage in _TEXT else workers
        _run(stage, Settings(options.folder, minutes, workers, options.device, options.seed))


if __name__ == "__main__":
    main()
