"""Latents of pictures and encodings of their captions, computed once: a step then costs the denoiser only."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from demo import shapes
from demo.training import Loss, to_tensor

_UNCONDITIONAL = 0.1
"""Part of the captions that are replaced by the empty one, for guidance (arXiv 2207.12598)."""
_CHOICES = 12
"""Captions drawn for each picture: they give each caption form its share, whatever their number."""
_BATCH = 25

Encode = Callable[[Tensor], Tensor]
"""From pictures [N, 3, H, W] in -1..1 to latents, scaled as the denoiser sees them."""
Read = Callable[[list[str]], Mapping[str, Tensor]]
"""From texts to what the denoiser reads of them: arrays with a row per text, by name."""


@dataclass(frozen=True)
class Cache:
    """Arrays mapped from disk; the worker processes share one copy in memory."""

    latents: NDArray[np.float16]
    """[pictures, C, h, w], scaled as the denoiser sees them."""
    captions: NDArray[np.int32]
    """[pictures, choices]: rows of ``texts`` that describe each picture."""
    texts: Mapping[str, NDArray[np.float16]]
    """What the denoiser reads, by name; row 0 is the empty caption."""
    hints: NDArray[np.uint8] | None
    """[pictures, H, W]: pictures that say where the shape is, if there are any."""

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, ...]:
        """Return random latents, their texts in the order of names, and their hints, if there are any.

        Some of the texts are empty; hints are RGB pictures in 0..1.
        """
        pictures = rng.integers(len(self.latents), size=count)
        rows = self.captions[pictures, rng.integers(self.captions.shape[1], size=count)]
        rows = np.where(rng.random(count) < _UNCONDITIONAL, 0, rows)
        drawn = [_floats(self.latents[pictures])]
        drawn += [_floats(self.texts[name][rows]) for name in sorted(self.texts)]
        if self.hints is not None:
            drawn.append((_floats(self.hints[pictures]) / 255)[:, None].expand(-1, 3, -1, -1))
        return tuple(drawn)

    def losses(
        self, count: int, device: str, loss_of: Callable[..., Tensor]
    ) -> Callable[[int], Loss]:
        """Return what begins a training (:class:`demo.training.Plan`) on batches of ``count`` pictures.

        ``loss_of`` gets what :meth:`batch` returns.
        """

        def begin(seed: int) -> Loss:
            rng = np.random.default_rng(seed)

            def loss(progress: float) -> tuple[Tensor, dict[str, float]]:
                return loss_of(*(x.to(device) for x in self.batch(rng, count))), {}

            return loss

        return begin


def _floats(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


def prepare(
    folder: Path,
    scenes: Sequence[shapes.Scene],
    drawn: Callable[[shapes.Scene], Image.Image],
    encode: Encode,
    read: Read,
    hint: Callable[[shapes.Scene], Image.Image] | None = None,
) -> Cache:
    """Fill the cache in ``folder``, unless it is complete, and open it.

    Args:
        folder: of the arrays.
        scenes: one per picture.
        drawn: draws a scene.
        encode: the autoencoder.
        read: the text encoders.
        hint: draws where the shape is, as a picture of mode L.
    """
    if not (folder / "latents.npy").exists():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        rng = random.Random(2)
        rows: dict[str, int] = {"": 0}
        choices = []
        for scene in scenes:
            forms = shapes.captions_of(scene.triple, scene.size)
            drawn_forms = (rng.choice(forms) for _ in range(_CHOICES))
            choices.append([rows.setdefault(text, len(rows)) for text in drawn_forms])
        np.save(folder / "captions.npy", np.array(choices, np.int32))
        for name, values in read(list(rows)).items():
            np.save(folder / f"text-{name}.npy", values.half().numpy())
        if hint is not None:
            np.save(folder / "hints.npy", np.stack([np.asarray(hint(s)) for s in scenes]))
        np.save(folder / "latents.npy", _encoded(scenes, drawn, encode))
    return open_cache(folder)


@torch.no_grad()
def _encoded(
    scenes: Sequence[shapes.Scene], drawn: Callable[[shapes.Scene], Image.Image], encode: Encode
) -> NDArray[np.float16]:
    parts = []
    for start in range(0, len(scenes), _BATCH):
        pictures = [np.asarray(drawn(scene)) for scene in scenes[start : start + _BATCH]]
        parts.append(encode(to_tensor(np.stack(pictures))).half().numpy())
    return np.concatenate(parts)


def open_cache(folder: Path) -> Cache:
    """Map the arrays of a complete cache."""
    hints = folder / "hints.npy"
    return Cache(
        latents=np.load(folder / "latents.npy", mmap_mode="r"),
        captions=np.load(folder / "captions.npy", mmap_mode="r"),
        texts={
            path.stem.removeprefix("text-"): np.load(path, mmap_mode="r")
            for path in folder.glob("text-*.npy")
        },
        hints=np.load(hints, mmap_mode="r") if hints.exists() else None,
    )


def training_scenes(count: int, seed: int = 1, spread: bool = False) -> list[shapes.Scene]:
    """Return random scenes, equally many of each trained combination.

    Args:
        count: how many.
        seed: of their sizes and places.
        spread: put the shapes anywhere in the picture, not near the middle.
    """
    rng = random.Random(seed)
    triples = shapes.training_triples()
    return [
        shapes.random_scene(triples[i % len(triples)], rng, spread=spread) for i in range(count)
    ]
