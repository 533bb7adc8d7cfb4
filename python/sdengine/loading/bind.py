"""Every parameter of a network bound to bytes of a file and checked, before native code sees it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sdengine.errors import ParameterError, WeightsError
from sdengine.formats import DTYPES, TensorEntry
from sdengine.keys import nearest
from sdengine.loading.locate import Located, Source

Shape = tuple[int, ...]

_NOT_WEIGHTS = {"i64", "i32", "i16", "i8", "u8", "bool"}
_FOLD = 256  # row length to which city96-style GGUFs fold tensors with awkward rows
_REPORTED = 3  # faults per message


@dataclass(frozen=True, slots=True)
class Binding:
    """One parameter and its bytes."""

    name: str
    """Canonical."""
    entry: TensorEntry
    """Sliced and reshaped: its shape is the parameter's."""
    transpose: bool = False
    """The bytes hold the transpose of the matrix `entry.shape`."""
    padding: int = 0
    """The last columns of `entry.shape` that the bytes have not; they are zeros."""


def bind(
    located: Located, expected: Sequence[tuple[str, Shape]]
) -> tuple[tuple[Binding, ...], tuple[str, ...]]:
    """Bind every expected (canonical name, shape).

    Returns:
        The bindings in the order of `expected`, and the full names of the component's tensors that
        nothing uses.

    Raises:
        WeightsError: parameters are missing or do not fit; the message names what comes nearest.
    """
    sources = located.sources
    spare = unused(located, [name for name, _ in expected])
    bindings: list[Binding] = []
    faults: list[str] = []
    for name, shape in expected:
        source = sources.get(name)
        if source is None:
            faults.append(_missing(located, name, shape, spare))
            continue
        try:
            bindings.append(Binding(name, fit(source, shape), source.transpose))
        except WeightsError as error:
            faults.append(str(error))
    faults += _misfits(sources, expected)
    if faults:
        raise WeightsError(_summary(located, faults, len(expected)))
    return tuple(bindings), spare


def unused(located: Located, parameters: Iterable[str]) -> tuple[str, ...]:
    """Full names of the component's tensors that none of these canonical parameters come from."""
    sources = located.sources
    used = {sources[name].name for name in parameters if name in sources}
    return tuple(located.prefix + name for name in located.entries if name not in used)


def fit(source: Source, shape: Shape) -> TensorEntry:
    """The source as an entry of exactly `shape`: sliced, and freed of folds and axes of size 1."""
    entry = source.entry
    if entry.dtype in _NOT_WEIGHTS or entry.dtype not in DTYPES:
        raise WeightsError(f"{entry.name!r} has type {entry.dtype}; expected floats or a ggml type")
    if source.part is not None:
        entry = _rows(entry, source.part, shape)
    if source.transpose:
        if entry.shape != shape[::-1]:
            raise _wrong_shape(entry, shape[::-1])
        return replace(entry, shape=shape)
    if entry.shape == shape:
        return entry
    if _without_ones(entry.shape) == _without_ones(shape):
        return _with_ones(entry, shape)
    rows, rest = divmod(math.prod(shape), _FOLD)
    if entry.shape == (rows, _FOLD) and not rest and entry.strides is None:
        return entry.reshape(shape)
    raise _wrong_shape(entry, shape)


def _misfits(sources: Mapping[str, Source], expected: Iterable[tuple[str, Shape]]) -> list[str]:
    """Fused tensors of unequal parts with more or fewer rows than their parts have together."""
    heights: dict[str, int] = {}
    fused: dict[str, TensorEntry] = {}
    for name, shape in expected:
        source = sources.get(name)
        if source is not None and source.part is not None and source.part[1] is None:
            heights[source.name] = heights.get(source.name, 0) + shape[0]
            fused[source.name] = source.entry
    return [
        str(_wrong_shape(entry, (heights[name], *entry.shape[1:])))
        for name, entry in fused.items()
        if entry.shape[:1] != (heights[name],)
    ]


def _rows(entry: TensorEntry, part: tuple[int, int | None], shape: Shape) -> TensorEntry:
    """The rows of a fused tensor that are the parameter of this shape."""
    index, count = part
    rows = entry.shape[0] if entry.shape else 0
    if rows < shape[0] or (count is not None and rows != shape[0] * count):
        raise _wrong_shape(entry, (shape[0] * (count or 1), *shape[1:]))
    start = index * shape[0] if index >= 0 else rows + index * shape[0]
    try:
        return entry.rows(start, shape[0])
    except ParameterError as error:
        raise WeightsError(str(error)) from None


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _with_ones(entry: TensorEntry, shape: Shape) -> TensorEntry:
    """The entry with axes of size 1 put in or left out, which moves no element."""
    if entry.strides is None:
        return entry.reshape(shape)
    real = iter(s for s, size in zip(entry.strides, entry.shape, strict=True) if size != 1)
    strides = tuple(1 if size == 1 else next(real) for size in shape)
    return replace(entry, shape=shape, strides=strides)


def _wrong_shape(entry: TensorEntry, expected: Shape) -> WeightsError:
    return WeightsError(f"{entry.name!r} has shape {list(entry.shape)}; expected {list(expected)}")


def _missing(located: Located, name: str, shape: Shape, spare: Sequence[str]) -> str:
    spellings = [located.prefix + other.name for other in located.names.to_file(name)]
    wanted = spellings[0] if spellings else name
    like = nearest(wanted, spare)
    hint = f" (nearest in the file: {', '.join(map(repr, like))})" if like else ""
    return f"{wanted!r} {list(shape)} is missing{hint}"


def _summary(located: Located, faults: Sequence[str], count: int) -> str:
    shown = "; ".join(faults[:_REPORTED])
    more = f"; and {len(faults) - _REPORTED} more" if len(faults) > _REPORTED else ""
    return (
        f"{located.index.path}: {len(faults)} of {count} parameters of the {located.component.name}"
        f" ({located.table.name} names) do not fit: {shown}{more}."
        " The file is incomplete or a different model: download it again, or see"
        " `sdengine inspect`"
    )
