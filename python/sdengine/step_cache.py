"""Step caching: what changes little from one step to the next is taken over instead of computed (docs/step-caching.md).

``csrc/stages/step_cache`` does it, with a method for each kind of denoiser. Here stand the figures of the modes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .adapters import Lora

OFF: Final = "off"
MODES: Final = (OFF, "balanced", "fast")
FEW_STEPS: Final = 8
"""So few steps are too far apart to have much in common: models that need no more were distilled to."""


@dataclass(frozen=True)
class CacheFigures:
    """How far a mode goes.

    Attributes:
        interval: steps from a full one to the next at most.
        threshold: relative change of the first block's residual up to which the others' is taken over (transformers).
        start: part of the steps before which nothing is taken over: there a picture's composition is decided. At the
            end full steps do not pay.
    """

    interval: int
    threshold: float = 0.0
    start: float = 0.0


# Measured on the demo models (docs/step-caching.md).
FIGURES: Final[Mapping[str, Mapping[str, CacheFigures]]] = {
    "features": {
        "balanced": CacheFigures(3, start=0.3),
        "fast": CacheFigures(5, start=0.2),
    },
    "first_block": {
        "balanced": CacheFigures(3, 0.15, start=0.2),
        "fast": CacheFigures(5, 0.3, start=0.2),
    },
}
"""By ``Network.reuse`` and mode."""


def figures(
    mode: str, method: str, steps: int, loras: Sequence[Lora] = ()
) -> tuple[int, float, list[int]] | None:
    """What the native run takes: interval, threshold and the steps that take nothing over; None without a cache.

    Args:
        mode: one of :data:`MODES`.
        method: the denoiser's, ``Network.reuse``.
        steps: of the run.
        loras: those of the run. Where the strength of one changes, nothing is taken over.
    """
    if mode == OFF:
        return None
    chosen = FIGURES.get(method, {}).get(mode, CacheFigures(1))
    strengths = [[lora.scale_at(step, steps) for lora in loras] for step in range(steps)]
    changed = {step for step in range(1, steps) if strengths[step] != strengths[step - 1]}
    first = range(math.floor(chosen.start * steps))
    return chosen.interval, chosen.threshold, sorted({*first, *changed})


def unwise(mode: str, steps: int) -> str | None:
    """What is known to go wrong with a cache over so many steps, or None."""
    if mode == OFF or steps > FEW_STEPS:
        return None
    return (
        f"cache={mode!r} over {steps} steps: so few have little in common, and the picture suffers; use"
        f" more than {FEW_STEPS} steps, or cache='off'"
    )
