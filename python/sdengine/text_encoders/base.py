"""What every text encoder of a model offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sdengine import _core
from sdengine.families import TextUse

Array = NDArray[np.float32]
MAX_BATCH = 64

Text = tuple[str, ...]
"""What each text encoder reads, in the family's order."""


@dataclass(frozen=True)
class EncodedText:
    """One text as the denoiser reads it.

    Attributes:
        context: float32 ``[tokens, width]``; several encoders side by side.
        pooled: float32 ``[width]``, the whole text as one vector; None where the family reads none.
        inputs: further inputs of the denoiser by name: contexts of their own, masks of padding; of a single encoder its
            `mask`, float32 ``[tokens]``.
    """

    context: Array
    pooled: Array | None = None
    inputs: Mapping[str, Array] = field(default_factory=dict)


class Reading(Protocol):
    """A text as an encoder reads it."""

    @property
    def length(self) -> int:
        """Number of chunks."""

    def padded(self, count: int) -> Any:
        """The same with `count` chunks."""


R = TypeVar("R", bound=Reading)


class Encoder(Protocol[R]):
    """A text encoder with its tokenizer."""

    use: TextUse
    tokenizer: Any

    @property
    def network(self) -> _core.Network | None:
        """The native network, if there is one."""

    def read(self, text: str, weighting: str) -> R:
        """A text, in the notation of a weighting rule."""

    def encode(
        self,
        readings: Sequence[R],
        clip_skip: int | None,
        weighting: str,
        cancel: _core.CancelToken | None,
    ) -> list[EncodedText]:
        """Texts of equal numbers of chunks as the denoiser reads them; their contexts may differ in length."""
