"""Text as the denoiser reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, in numpy.

    Attributes:
        context: float32 ``[N, tokens, width]``, one entry per prompt.
        negative_context: float32, same shape, of the negative prompts; None when there are none.
    """

    context: Array
    negative_context: Array | None = None

    @property
    def batch_size(self) -> int:
        """Number of prompts."""
        return int(self.context.shape[0])

    def repeat(self, count: int) -> Conditioning:
        """The same conditioning for `count` pictures; a batch of that size is returned as it is.

        Raises:
            ParameterError: there are several prompts, and not `count` of them.
        """
        if self.batch_size == count:
            return self
        if self.batch_size != 1:
            raise ParameterError(
                f"{self.batch_size} prompts do not fit {count} pictures; give one prompt or {count}"
            )
        negative = self.negative_context
        return Conditioning(
            np.repeat(self.context, count, axis=0),
            None if negative is None else np.repeat(negative, count, axis=0),
        )
