"""Train the demo model from nothing: ``python -m demo.train all --folder runs/demo``.

Stages, in order: ``tokenizer`` (seconds), ``text`` (the text encoder), ``vae`` (the autoencoder),
``polish`` (its decoder once more), ``unet`` (the denoiser) and ``export`` (a diffusers folder).
The autoencoder and the denoiser resume from their checkpoints. The default minutes are about what
the shipped model was trained with, on two CPU cores (see MODEL_CARD.md); a GPU (``--device cuda``)
needs a fraction of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from demo import text_encoder, tokenizer, unet, vae
from demo.evaluate import HELD_OUT
from demo.export import export
from demo.shapes import write_held_out
from demo.training import Average, Settings, launch, load

STAGES = ("tokenizer", "text", "vae", "polish", "unet", "export")


def _tokenizer(options: argparse.Namespace) -> None:
    tokenizer.build(options.folder / "tokenizer")
    write_held_out(HELD_OUT)


def _text(options: argparse.Namespace) -> None:
    if not (options.folder / "text_encoder").exists():
        # The captions are short and the encoder tiny: a second worker would not pay.
        launch(text_encoder.train, _settings(options, options.text_minutes, workers=1))


def _vae(options: argparse.Namespace) -> None:
    launch(vae.train, _settings(options, options.vae_minutes, options.workers))


def _polish(options: argparse.Namespace) -> None:
    launch(vae.polish, _settings(options, options.polish_minutes, options.workers))


def _unet(options: argparse.Namespace) -> None:
    if not unet.is_prepared(options.folder):
        unet.prepare(options.folder)
    launch(unet.train, _settings(options, options.unet_minutes, options.workers))


def _export(options: argparse.Namespace) -> None:
    state = load(options.folder / "unet.pt")
    if state is None:
        raise SystemExit(f"{options.folder}/unet.pt is missing: run the stage unet first")
    average = Average(unet.new_model(), decay=1.0)
    average.weights = state["average"]
    print(export(options.folder, unet.averaged(average), unet.new_scheduler()))


_RUN: dict[str, Callable[[argparse.Namespace], None]] = {
    "tokenizer": _tokenizer,
    "text": _text,
    "vae": _vae,
    "polish": _polish,
    "unet": _unet,
    "export": _export,
}


def _settings(options: argparse.Namespace, minutes: float, workers: int) -> Settings:
    return Settings(options.folder, minutes, workers, options.device, options.seed)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="processes; 2 on a CPU, 1 on a GPU")
    parser.add_argument("--text-minutes", type=float, default=3.0)
    parser.add_argument("--vae-minutes", type=float, default=12.0)
    parser.add_argument("--polish-minutes", type=float, default=12.0)
    parser.add_argument("--unet-minutes", type=float, default=65.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.workers is None:
        options.workers = 2 if options.device == "cpu" else 1
    options.folder.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if options.stage == "all" else (options.stage,):
        _RUN[stage](options)


if __name__ == "__main__":
    main()
