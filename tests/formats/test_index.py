"""TensorEntry's arithmetic and the table of types."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from sdengine.errors import ParameterError
from sdengine.formats import DTYPES, TensorEntry
from sdengine.formats.index import MAX_ELEMENTS, is_contiguous, is_shape, strided_span

ANYWHERE = Path("weights.bin")


def entry(
    dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
) -> TensorEntry:
    elements = 1
    for size in shape:
        elements *= size
    return TensorEntry("t", dtype, shape, ANYWHERE, 1000, DTYPES[dtype].nbytes(elements), strides)


def test_types_agree_with_ggml() -> None:
    """Sizes and ids against gguf-py (ggml's q2_0 is newer than that package)."""
    known = {kind.name.lower(): kind for kind in gguf.GGML_QUANT_SIZES}
    ours = {name: dtype for name, dtype in DTYPES.items() if dtype.ggml_type is not None}
    assert set(known) - set(ours) == {"q8_1", "q8_k"}  # never stored
    for name in set(known) & set(ours):
        assert DTYPES[name][:2] == gguf.GGML_QUANT_SIZES[known[name]], name
        assert DTYPES[name].ggml_type == int(known[name]), name


def test_ids_are_distinct() -> None:
    ids = [dtype.ggml_type for dtype in DTYPES.values() if dtype.ggml_type is not None]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("dtype", "shape", "start", "count", "offset", "nbytes"),
    [
        ("f16", (6, 5), 2, 3, 1000 + 2 * 5 * 2, 3 * 5 * 2),
        ("f32", (4,), 1, 2, 1004, 8),
        ("q4_0", (6, 64), 2, 3, 1000 + 2 * 36, 3 * 36),
        ("q4_k", (3, 512), 1, 1, 1000 + 288, 288),
        ("q8_0", (64, 1), 32, 32, 1034, 34),
        ("q8_0", (96,), 32, 64, 1034, 68),
        ("f32", (4, 0), 1, 2, 1000, 0),
        ("bf16", (4, 3), 4, 0, 1024, 0),
    ],
)
def test_rows(
    dtype: str, shape: tuple[int, ...], start: int, count: int, offset: int, nbytes: int
) -> None:
    part = entry(dtype, shape).rows(start, count)
    assert (part.shape, part.offset, part.nbytes) == ((count, *shape[1:]), offset, nbytes)
    assert (part.name, part.dtype, part.path) == ("t", dtype, ANYWHERE)


def test_rows_of_a_strided_tensor() -> None:
    base = torch.arange(60).reshape(5, 12)
    view = base[:, 2:10:2]
    whole = TensorEntry("t", "i64", tuple(view.shape), ANYWHERE, 16, 0, tuple(view.stride()))
    part = whole.rows(1, 3)
    assert part.offset == 16 + view[1:4].storage_offset() * 8 - view.storage_offset() * 8
    assert part.nbytes == (strided_span((3, 4), (12, 2))) * 8 == (2 * 12 + 3 * 2 + 1) * 8


@pytest.mark.parametrize(
    ("tensor", "start", "count"),
    [
        (entry("f32", ()), 0, 1),
        (entry("f32", (4, 2)), 3, 2),
        (entry("f32", (4, 2)), -1, 1),
        (entry("f32", (4, 2)), 0, -1),
        (entry("q4_0", (64,)), 16, 32),
        (entry("q4_0", (64,)), 0, 16),
        (entry("q4_k", (64, 4)), 1, 64 - 1),
    ],
)
def test_rows_that_do_not_exist(tensor: TensorEntry, start: int, count: int) -> None:
    with pytest.raises(ParameterError, match="'t'"):
        tensor.rows(start, count)


def test_reshape() -> None:
    tensor = entry("q4_k", (2, 256))
    again = tensor.reshape([2, 1, 256])
    assert again.shape == (2, 1, 256)
    assert (again.offset, again.nbytes) == (tensor.offset, tensor.nbytes)
    for wrong in [(3, 256), (-2, -256), ()]:
        with pytest.raises(ParameterError, match="512 elements"):
            tensor.reshape(wrong)
    with pytest.raises(ParameterError, match="strided"):
        entry("f32", (2, 3), (1, 2)).reshape((6,))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 4),
        torch.zeros(3, 4).T,
        torch.zeros(3, 1, 4),
        torch.zeros(4, 1, 1).transpose(1, 2),
        torch.zeros(0, 4).T,
        torch.zeros(6, 4)[::2],
        torch.zeros(()),
        torch.zeros(1).expand(3, 4),
    ],
)
def test_contiguity_is_that_of_torch(tensor: torch.Tensor) -> None:
    assert is_contiguous(tuple(tensor.shape), tensor.stride()) == tensor.is_contiguous()


def test_entries_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        entry("f32", (1,)).offset = 0  # type: ignore[misc]


@pytest.mark.parametrize("shape", [[], [0], (2, 3), [MAX_ELEMENTS], [2**31, 2**31], [1] * 64])
def test_shapes(shape: object) -> None:
    assert is_shape(shape)


@pytest.mark.parametrize(
    "shape", [None, "22", [-1], [2.0], [True], [2**63], [2**32, 2**32, 0], [1] * 65]
)
def test_no_shapes(shape: object) -> None:
    assert not is_shape(shape)
