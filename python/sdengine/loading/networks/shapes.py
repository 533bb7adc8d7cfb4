"""Reading hyper-parameters off the shapes of parameters under canonical names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from sdengine.errors import WeightsError
from sdengine.keys import count_at


class Shapes:
    """Canonical name -> shape, with the questions that hyper-parameters answer.

    A file may store a matrix under another shape (folded to rows of 256, with or without axes of
    size 1), so widths are taken from vectors, and the other side of a matrix from its elements.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def rank(self, name: str) -> int:
        """Number of axes."""
        return len(self._get(name))

    def size(self, name: str, axis: int) -> int:
        """Elements along one axis of a tensor that no file folds."""
        shape = self._get(name)
        if not -len(shape) <= axis < len(shape):
            raise WeightsError(f"{name!r} has shape {list(shape)}; expected more axes")
        return shape[axis]

    def length(self, name: str) -> int:
        """Elements of a tensor: the width of a bias or a norm."""
        return math.prod(self._get(name))

    def columns(self, name: str, rows: int, kernel: int = 1) -> int:
        """Input width of a matrix [rows, columns], or of a kernel [rows, columns, k, k]."""
        columns, rest = divmod(self.length(name), rows * kernel * kernel)
        if rest or not columns:
            found = list(self._get(name))
            expected = f"[{rows}, columns" + (f", {kernel}, {kernel}]" if kernel > 1 else "]")
            raise WeightsError(f"{name!r} has shape {found}; expected {expected}. Is it damaged?")
        return columns

    def kernel(self, name: str, otherwise: int) -> int:
        """Side of a kernel [rows, columns, k, k]; `otherwise` if the file holds it as a matrix."""
        shape = self._get(name)
        return shape[-1] if len(shape) == 4 else otherwise

    def count(self, prefix: str) -> int:
        """Number of consecutive entries ``prefix + "0."``, ``prefix + "1."``, ..."""
        return count_at(self._shapes, prefix)

    def _get(self, name: str) -> tuple[int, ...]:
        try:
            shape = self._shapes[name]
        except KeyError:
            raise WeightsError(
                f"the parameter {name!r} is missing, so the network's size cannot be told."
                " The file is incomplete, or not what it seems to be"
            ) from None
        if not math.prod(shape):
            raise WeightsError(f"{name!r} has the empty shape {list(shape)}")
        return shape
