"""What a weight file contains: a `TensorEntry` per tensor, listed in a `TensorIndex`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sdengine.errors import ParameterError
from sdengine.formats.dtypes import DTYPES

FormatName = Literal["gguf", "safetensors", "diffusers", "torch"]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in a file. No tensor data is held.

    The bytes ``[offset, offset + nbytes)`` of `path` hold the tensor and lie inside the file. A
    contiguous tensor (``strides is None``) fills them exactly, in C order. A strided tensor has its
    first element at `offset`, and `nbytes` reaches to the end of its last one.
    """

    name: str
    dtype: str
    """A key of :data:`~sdengine.formats.DTYPES`."""
    shape: tuple[int, ...]
    """Torch order: the last axis varies fastest."""
    path: Path
    offset: int
    """Bytes from the start of the file."""
    nbytes: int
    strides: tuple[int, ...] | None = None
    """Elements between neighbours along each axis; None for a contiguous tensor."""
    scale: float = 1.0
    """What its values are to be multiplied with."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def place(self) -> tuple[str, tuple[int, ...], Path, int, int, tuple[int, ...] | None]:
        """What native code needs to read it: type, shape, path, offset, bytes, strides."""
        return self.dtype, self.shape, self.path, self.offset, self.nbytes, self.strides

    def rows(self, start: int, count: int) -> TensorEntry:
        """The slice ``[start:start + count]`` along the first axis; no data is moved.

        Raises ParameterError if the tensor has no first axis, if the range leaves it, or if the
        slice would begin or end inside a block of a quantized type.
        """
        if not self.shape:
            raise ParameterError(f"{self.name!r} is a scalar; rows need a first axis to slice")
        if start < 0 or count < 0 or start + count > self.shape[0]:
            raise ParameterError(
                f"{self.name!r}: rows {start} to {start + count} asked for;"
                f" it has {self.shape[0]} rows"
            )
        shape = (count, *self.shape[1:])
        dtype = DTYPES[self.dtype]
        if self.strides is not None:
            offset = self.offset + start * self.strides[0] * dtype.block_bytes
            nbytes = strided_span(shape, self.strides) * dtype.block_bytes
            return replace(self, shape=shape, offset=offset, nbytes=nbytes)
        row = math.prod(self.shape[1:])
        if start * row % dtype.block_elements or count * row % dtype.block_elements:
            raise ParameterError(
                f"{self.name!r}: rows {start} to {start + count} of {row} {self.dtype} elements"
                f" each cut a block of {dtype.block_elements}; choose rows on block boundaries,"
                " or an unquantized file"
            )
        offset = self.offset + dtype.nbytes(start * row)
        return replace(self, shape=shape, offset=offset, nbytes=dtype.nbytes(count * row))

    def slice(self, axis: int, index: int) -> TensorEntry:
        """One slice along an axis, which is left out of the shape; no data is moved.

        A negative `index` counts from the end. Raises ParameterError if there is no such slice, or
        if it would cut blocks of a quantized type.
        """
        dtype, count = DTYPES[self.dtype], self.shape[axis]
        if not -count <= index < count or dtype.block_elements != 1:
            raise ParameterError(
                f"{self.name!r}: slice {index} along axis {axis} of {list(self.shape)} {self.dtype}"
                " elements cannot be taken; choose another or an unquantized file"
            )
        strides = self.strides or contiguous_strides(self.shape)
        offset = self.offset + index % count * strides[axis] * dtype.block_bytes
        shape = (*self.shape[:axis], *self.shape[axis + 1 :])
        strides = (*strides[:axis], *strides[axis + 1 :])
        nbytes = strided_span(shape, strides) * dtype.block_bytes
        own = None if is_contiguous(shape, strides) else strides
        return replace(self, shape=shape, offset=offset, nbytes=nbytes, strides=own)

    def reshape(self, shape: Sequence[int]) -> TensorEntry:
        """The same elements under another shape.

        Raises ParameterError if the number of elements differs or the tensor is strided.
        """
        if self.strides is not None:
            raise ParameterError(
                f"{self.name!r} is strided; only a contiguous tensor can be reshaped"
            )
        shape = tuple(shape)
        if any(size < 0 for size in shape) or math.prod(shape) != self.elements:
            raise ParameterError(
                f"{self.name!r}: cannot become {list(shape)}; it has shape {list(self.shape)},"
                f" which is {self.elements} elements"
            )
        return replace(self, shape=shape)


@dataclass(frozen=True, slots=True)
class TensorIndex:
    """Everything that the headers of a weight file (or folder) say."""

    path: Path
    """Absolute path of the file or folder that was opened."""
    format: FormatName
    tensors: Mapping[str, TensorEntry]
    """By name, in file order. In a diffusers folder: ``<component>/<name>``."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """GGUF key/values (arrays are lists); safetensors ``__metadata__``; the plain values beside
    a torch state dict; for a diffusers folder, each component's metadata under the component's
    name."""
    configs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Diffusers folder: ``model_index``, ``scheduler`` and every component's config.json under the
    component's name. Folder of one component: its config.json under ``config``."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Diffusers folder: every component folder that exists, tokenizers included."""


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Elements between neighbours along each axis of a tensor in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """True if the elements lie in C order without gaps, as torch defines it."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True


def strided_span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last one of a strided tensor, both included; 0 if empty."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


MAX_RANK = 64  # torch's own limit
MAX_ELEMENTS = 2**63 - 1
MAX_NAME_LENGTH = 512  # bytes; the longest names of published checkpoints stay below 160


def is_shape(value: object) -> bool:
    """True for a list or tuple of sizes whose product (zeros aside) fits 63 bits."""
    if not isinstance(value, list | tuple) or len(value) > MAX_RANK:
        return False
    elements = 1
    for size in value:
        if type(size) is not int or size < 0:
            return False
        elements *= size or 1
        if elements > MAX_ELEMENTS:
            return False
    return True
