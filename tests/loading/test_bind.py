"""Fitting a file's tensor to a parameter: slices, folds, axes of size 1, strides, transposes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sdengine import _core
from sdengine.errors import WeightsError
from sdengine.formats import DTYPES, TensorEntry
from sdengine.loading import plan_model
from sdengine.loading.bind import fit
from sdengine.loading.locate import Source
from tests import models


def source(
    shape: tuple[int, ...],
    dtype: str = "f16",
    part: tuple[int, int] | None = None,
    transpose: bool = False,
    strides: tuple[int, ...] | None = None,
) -> Source:
    elements = int(np.prod(shape))
    entry = TensorEntry("t", dtype, shape, Path("f"), 1000, DTYPES[dtype].nbytes(elements), strides)
    return Source("t", entry, part, transpose)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ((64, 32), (64, 32)),
        ((64, 32, 1, 1), (64, 32)),
        ((64, 32), (64, 32, 1, 1)),
        ((1, 64), (64,)),
        ((72, 256), (64, 32, 3, 3)),  # folded without metadata
        ((80, 256), (320, 64)),
    ],
)
def test_shapes_that_hold_the_same(stored: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    entry = fit(source(stored), wanted)
    assert entry.shape == wanted
    assert (entry.offset, entry.nbytes) == (1000, 2 * int(np.prod(wanted)))


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ((32, 64), (64, 32)),
        ((64, 32, 9), (64, 32, 3, 3)),
        ((2048,), (64, 32)),
        ((36, 512), (64, 32, 3, 3)),
        ((), (1, 2)),
        ((64, 32), (64, 33)),
    ],
)
def test_shapes_that_do_not(stored: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match="expected"):
        fit(source(stored), wanted)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_rows_of_a_fused_tensor(index: int) -> None:
    entry = fit(source((96, 32), "q8_0", part=(index, 3)), (32, 32))
    assert entry.shape == (32, 32)
    assert entry.offset == 1000 + index * 32 * 34


def test_rows_that_cut_a_block() -> None:
    with pytest.raises(WeightsError, match="block"):
        fit(source((8, 32), "q4_k", part=(1, 2)), (4, 32))


def test_a_fused_tensor_of_another_size() -> None:
    with pytest.raises(WeightsError, match=r"\[96, 32\]; expected \[192, 32\]"):
        fit(source((96, 32), part=(1, 3)), (64, 32))


def test_a_transposed_matrix() -> None:
    assert fit(source((96, 32), transpose=True), (32, 96)).shape == (32, 96)
    with pytest.raises(WeightsError, match=r"\[96, 32\]; expected \[32, 96\]"):
        fit(source((96, 32), transpose=True), (96, 32))


def test_strides_follow_axes_of_size_1() -> None:
    entry = fit(source((64, 32, 1, 1), strides=(1, 64, 7, 7)), (64, 32))
    assert entry.strides == (1, 64)
    assert fit(entry_source(entry), (64, 1, 32)).strides == (1, 1, 64)


def entry_source(entry: TensorEntry) -> Source:
    return Source(entry.name, entry, None, False)


@pytest.mark.parametrize("dtype", ["i64", "bool", "u8"])
def test_types_that_are_no_weights(dtype: str) -> None:
    with pytest.raises(WeightsError, match=dtype):
        fit(source((64, 32), dtype), (64, 32))


def test_a_strided_checkpoint_keeps_its_values(tmp_path: Path) -> None:
    """Checkpoints of pruned models hold slices and transposed views."""
    folder = models.tiny_sd1_folder(tmp_path / "model")
    state = models.ldm_state_dict(folder)
    matrix = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    kernel = "first_stage_model.decoder.mid.attn_1.q.weight"
    expected = state[matrix].clone()
    state[matrix] = state[matrix].T.contiguous().T
    state[kernel] = torch.cat([state[kernel]] * 2, dim=1)[:, ::2]
    torch.save(state, tmp_path / "m.ckpt")
    plan = plan_model(tmp_path / "m.ckpt")
    bindings = {b.name: b for part in plan.components.values() for b in part.bindings}
    attention = bindings["decoder.mid_block.attentions.0.to_q.weight"].entry
    assert (attention.shape, attention.strides) == ((64, 64), (128, 2))
    entry = bindings["text_model.encoder.layers.0.mlp.fc1.weight"].entry
    assert entry.strides == (1, 160)
    out = tmp_path / "out.bin"
    out.write_bytes(b"")
    _core.transcode(
        entry.dtype,
        entry.shape,
        str(entry.path),
        entry.offset,
        entry.nbytes,
        entry.strides,
        dst_path=str(out),
        dst_offset=0,
        dst_dtype="f32",
    )
    assert np.array_equal(np.fromfile(out, np.float32).reshape(160, 128), expected.numpy())
