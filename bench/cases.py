"""What ``compare.py`` measures: which part of which model, at which size, with which types of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import measuring
import numpy as np
import shapes
import shapes_dit
import synthetic

Array = measuring.Array
Part = Literal["denoiser", "decoder"]
SDCPP, TORCH, OPENVINO = "stable-diffusion.cpp", "diffusers", "OpenVINO"
TEXT_TOKENS = 256
"""Of FLUX.1's second text encoder, as stable-diffusion.cpp fills it up."""
GUIDANCE = 3.5
"""What FLUX.1 dev is told; the default of diffusers and stable-diffusion.cpp."""
_LATENTS = {"sd15": 4, "sdxl": 4, synthetic.BLOCKS: 16}
_CONTEXT = {
    "sd15": (shapes.FULL.positions, shapes.FULL.context_width),
    "sdxl": (shapes.SDXL.positions, shapes.SDXL.context_width),
    synthetic.BLOCKS: (TEXT_TOKENS, shapes_dit.BLOCKS.context_width),
}
_POOLED = {
    "sdxl": shapes.SDXL.second_text_width,
    synthetic.BLOCKS: shapes_dit.BLOCKS.pooled_width,
}


@dataclass(frozen=True)
class Case:
    """One work that everybody does."""

    name: str
    title: str
    model: str
    """A name of :func:`synthetic.model`."""
    part: Part
    size: int
    """Pixels of a side."""
    weight_types: tuple[str, ...]
    """Of the engine and of stable-diffusion.cpp."""
    warm_ups: int = 1
    """Evaluations before those that count; 0 where one takes long."""
    runs: int = 1
    rounds: int = 3
    """Turns of everybody, at most."""
    openvino_types: tuple[str, ...] = ("f16", "int8")
    targets: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Peers' time over the engine's: what is needed, and what is aimed at."""

    @property
    def trial_size(self) -> int:
        """Where settings are tried that hold for larger pictures, too: at most 512 pixels."""
        return min(self.size, 512)

    def inputs(self, size: int | None = None) -> dict[str, Array]:
        """What the network reads, the same for everybody: latents, and context and pooled text of a denoiser.

        Args:
            size: another size than the case's, for trials.
        """
        random = np.random.default_rng(0)
        side = (size or self.size) // measuring.FACTOR
        channels = _LATENTS[self.model]
        found = {"latents": random.standard_normal((1, channels, side, side), np.float32)}
        if self.part == "denoiser":
            found["context"] = random.standard_normal((1, *_CONTEXT[self.model]), np.float32)
            if self.model in _POOLED:
                found["pooled"] = random.standard_normal((1, _POOLED[self.model]), np.float32)
        return found

    def file(self, weight_type: str = synthetic.PLAIN) -> Path:
        """The model's file; written when it is not there yet."""
        return synthetic.model(weight_type, name=self.model)


_UNET = {SDCPP: (1.8, 2.4), TORCH: (1.45, 1.9), OPENVINO: (1.1, 1.45)}
_VAE = {SDCPP: (2.6, 4.0), TORCH: (1.4, 2.2), OPENVINO: (1.1, 1.6)}
_XL = {SDCPP: (1.8, 2.4), TORCH: (1.4, 1.8), OPENVINO: (1.1, 1.4)}
_FLUX = {SDCPP: (1.5, 1.9), TORCH: (1.2, 1.5)}
_MANY = ("f16", "q8_0", "q5_0", "q4_0", "q4_k")
_DIT = ("f16", "q8_0", "q4_0", "q4_k")

CASES = (
    Case("unet-512", "SD 1.5 UNet, 512²", "sd15", "denoiser", 512, _MANY, runs=2, targets=_UNET),
    Case("vae-512", "VAE decode, 512²", "sd15", "decoder", 512, ("f16",), 0, targets=_VAE),
    Case(
        *("flux-1024", "FLUX double + single block, 1024²", synthetic.BLOCKS, "denoiser", 1024),
        *(_DIT,),
        rounds=2,
        targets=_FLUX,
    ),
    Case(
        *("sdxl-1024", "SDXL UNet, 1024²", "sdxl", "denoiser", 1024, ("f16", "q8_0")),
        rounds=5,
        openvino_types=("int8",),  # the faster; the f16 file would take 5 GB
        targets=_XL,
    ),
    Case("unet-256", "SD 1.5 UNet, 256²", "sd15", "denoiser", 256, _MANY, runs=3),
    Case(
        *("flux-512", "FLUX double + single block, 512²", synthetic.BLOCKS, "denoiser", 512, _DIT),
        runs=2,
    ),
    Case("unet-768", "SD 1.5 UNet, 768²", "sd15", "denoiser", 768, ("f16", "q8_0"), rounds=2),
    Case("vae-1024", "VAE decode, 1024²", "sd15", "decoder", 1024, ("f16",), 0, rounds=2),
)
"""Those that have targets come first."""


def by_name(name: str) -> Case:
    """The case of that name.

    Raises:
        KeyError: there is none.
    """
    return {case.name: case for case in CASES}[name]


def times(work: Any, case: Case) -> tuple[dict[str, Any], Any]:
    """:func:`measuring.timed` with as many warm-ups and runs as the case wants."""
    return measuring.timed(work, case.runs, case.warm_ups)
