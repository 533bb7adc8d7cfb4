"""Pictures larger than the denoiser can see at once: it sees overlapping tiles, and the mean of what it says counts.

MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113), with the weights of Mixture of Diffusers (Jimenez 2023, arXiv
2302.02412). ``csrc/stages/tiles`` does it; see docs/large-pictures.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal, get_args

from .checks import check_choice
from .errors import ParameterError

Weights = Literal["gaussian", "uniform"]

STEP = 8
"""Latents that sides and overlaps of tiles are multiples of: a UNet halves its maps three times."""
LARGEST = 512


@dataclass(frozen=True)
class TiledDiffusion:
    """How a picture is cut for the denoiser; the option ``tiled_diffusion`` of a generation.

    Raises:
        ParameterError: a figure is out of range.

    Attributes:
        size: side of the tiles in latents (8 pixels each), a multiple of 8 from 8 to 512; None is the size that the
            model was trained at.
        overlap: latents that neighbours share, a multiple of 8 below `size`; None is a quarter of it. More makes
            tiles agree better and costs evaluations.
        weights: what a tile counts towards its edges: ``"gaussian"`` fades, ``"uniform"`` does not.
    """

    size: int | None = None
    overlap: int | None = None
    weights: Weights = "gaussian"

    def __post_init__(self) -> None:
        self._check("size", STEP, LARGEST)
        self._check("overlap", 0, (self.size or LARGEST) - STEP)
        check_choice("tiled_diffusion: weights", self.weights, get_args(Weights))

    def _check(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if value is None:
            return
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not low <= value <= high or value % STEP:
            raise ParameterError(
                f"tiled_diffusion: {name} must be a multiple of {STEP} from {low} to {high} latents,"
                f" not {value!r}"
            )

    def resolved(self, trained: int) -> TiledDiffusion:
        """With the figures that were left open, for a model that was trained at `trained` latents."""
        size = self.size or max(STEP, min(LARGEST, trained // STEP * STEP))
        overlap = self.overlap
        if overlap is None:
            overlap = min(size - STEP, -(-size // 4) // STEP * STEP or STEP)
        return TiledDiffusion(int(size), int(overlap), self.weights)

    @property
    def figures(self) -> tuple[int, int, str]:
        """Size, overlap and weights as the native run takes them, of what :meth:`resolved` gave."""
        assert self.size is not None
        assert self.overlap is not None
        return self.size, self.overlap, self.weights


def tiled(given: Any) -> TiledDiffusion | None:
    """What the option ``tiled_diffusion`` means: True, a size, a mapping, or the thing itself; False is off.

    Raises:
        ParameterError: it is something else, or out of range.
    """
    if given is None or given is False:
        return None
    if given is True:
        return TiledDiffusion()
    if isinstance(given, TiledDiffusion):
        return given
    if isinstance(given, Integral):
        return TiledDiffusion(int(given))
    names = [field.name for field in fields(TiledDiffusion)]
    if isinstance(given, Mapping) and set(given) <= set(names):
        return TiledDiffusion(**given)
    raise ParameterError(
        "tiled_diffusion must be True, the side of a tile in latents, or a sdengine.TiledDiffusion"
        f" ({', '.join(names)}), not {given!r}"
    )
