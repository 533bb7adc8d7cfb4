"""The native weight store and transcoder: every type, odd layouts, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from sdengine import _core
from sdengine.errors import FormatError, OutputError, WeightsError

# Types that the gguf package quantizes itself: blocks must be equal bit for bit.
PYTHON_QUANTIZED = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16"]
# k-quants: the gguf package only reads them. Bounds are the relative L2 error of normal values.
K_QUANTS = {"q2_k": 0.35, "q3_k": 0.20, "q4_k": 0.09, "q5_k": 0.05, "q6_k": 0.025}


def gguf_type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def write(path: Path, values: np.ndarray) -> dict[str, object]:
    """Write an array as raw bytes; the keyword arguments that name it as a source."""
    names = {"float32": "f32", "float16": "f16", "float64": "f64"}
    path.write_bytes(b"\0" * 32 + values.tobytes())
    return {
        "dtype": names[str(values.dtype)],
        "shape": list(values.shape),
        "path": str(path),
        "offset": 32,
        "nbytes": values.nbytes,
    }


def transcode(tmp_path: Path, values: np.ndarray, dtype: str, **changes: object) -> np.ndarray:
    out = tmp_path / "out.bin"
    out.write_bytes(b"")
    source = {**write(tmp_path / "in.bin", values), **changes}
    written = _core.transcode(
        **source, dst_path=str(out), dst_offset=64, dst_dtype=dtype, threads=3
    )
    blob = np.fromfile(out, np.uint8)[64:]
    assert blob.size == written
    return blob


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((37, 512)).astype(np.float32)


@pytest.mark.parametrize("dtype", PYTHON_QUANTIZED)
def test_transcode_equals_the_gguf_package(tmp_path: Path, values: np.ndarray, dtype: str) -> None:
    expected = gguf.quants.quantize(values, gguf_type(dtype)).view(np.uint8).reshape(-1)
    assert np.array_equal(transcode(tmp_path, values, dtype), expected)


@pytest.mark.parametrize("dtype", sorted(K_QUANTS))
def test_k_quants_are_read_back_by_the_gguf_package(
    tmp_path: Path, values: np.ndarray, dtype: str
) -> None:
    blob = transcode(tmp_path, values, dtype).reshape(37, -1)
    back = gguf.quants.dequantize(blob, gguf_type(dtype))
    assert np.linalg.norm(back - values) / np.linalg.norm(values) < K_QUANTS[dtype]


def test_f32_and_f16_are_copied_bit_for_bit(tmp_path: Path, values: np.ndarray) -> None:
    assert transcode(tmp_path, values, "f32").tobytes() == values.tobytes()
    half = values.astype(np.float16)
    assert transcode(tmp_path, half, "f16").tobytes() == half.tobytes()
    assert transcode(tmp_path, values, "f16").tobytes() == half.tobytes()
    assert transcode(tmp_path, values.astype(np.float64), "f32").tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("name", "dtype"), [("f8_e4m3", torch.float8_e4m3fn), ("f8_e5m2", torch.float8_e5m2)]
)
def test_every_fp8_value(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    codes = np.arange(256, dtype=np.uint8)
    (tmp_path / "in.bin").write_bytes(codes.tobytes())
    out = tmp_path / "out.bin"
    out.write_bytes(b"")
    _core.transcode(
        name,
        [256],
        str(tmp_path / "in.bin"),
        0,
        256,
        dst_path=str(out),
        dst_offset=0,
        dst_dtype="f32",
    )
    expected = torch.from_numpy(codes).view(dtype).float().numpy()
    assert np.array_equal(np.fromfile(out, np.float32), expected, equal_nan=True)


def test_transpose_and_strides(tmp_path: Path, values: np.ndarray) -> None:
    turned = transcode(tmp_path, values, "f32", shape=[512, 37], transpose=True)
    assert turned.tobytes() == np.ascontiguousarray(values.T).tobytes()
    strided = transcode(tmp_path, values, "f32", shape=[512, 37], strides=[1, 512])
    assert strided.tobytes() == np.ascontiguousarray(values.T).tobytes()


def test_columns_of_zeros(tmp_path: Path, values: np.ndarray) -> None:
    wide = np.pad(values, ((0, 0), (0, 64)))
    for dtype in ("f32", "q8_0"):
        blob = transcode(tmp_path, values, dtype, shape=[37, 576], padding=64)
        kind = gguf_type(dtype)
        expected = gguf.quants.quantize(wide, kind).view(np.uint8).reshape(-1)
        assert np.array_equal(blob, expected)


@pytest.mark.parametrize("change", [{"padding": 512}, {"padding": -1}, {"transpose": True}])
def test_columns_of_zeros_that_cannot_be(
    change: dict[str, object], tmp_path: Path, values: np.ndarray
) -> None:
    with pytest.raises(WeightsError, match="cannot be widened by"):
        transcode(tmp_path, values, "f32", **{"shape": [37, 512], "padding": 32, **change})


def test_threads_do_not_change_the_bytes(tmp_path: Path, values: np.ndarray) -> None:
    source = write(tmp_path / "in.bin", values)
    blobs = []
    for threads in (1, 2, 5):
        out = tmp_path / f"{threads}.bin"
        out.write_bytes(b"")
        _core.transcode(
            **source, dst_path=str(out), dst_offset=0, dst_dtype="q4_k", threads=threads
        )
        blobs.append(out.read_bytes())
    assert blobs[0] == blobs[1] == blobs[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "q9_z"}, "tensor type"),
        ({"shape": [37, 511]}, "needs .* bytes"),
        ({"shape": [-1, 512]}, "impossible shape"),
        ({"shape": [2**40, 2**40]}, "impossible shape"),
        ({"shape": [1, 1, 1, 37, 512]}, "at most 4"),
        ({"strides": [1]}, "strides"),
        ({"strides": [2**50, 1]}, "stride"),
        ({"strides": [1024, 1]}, "behind its bytes"),
        ({"dtype": "q4_0", "shape": [37, 16]}, "blocks of 32"),
    ],
)
def test_sources_that_lie(
    tmp_path: Path, values: np.ndarray, changes: dict[str, object], message: str
) -> None:
    store = _core.WeightStore()
    with pytest.raises(WeightsError, match=message):
        store.add("w", **{**write(tmp_path / "in.bin", values), **changes})


def test_files_that_lie(tmp_path: Path, values: np.ndarray) -> None:
    source = write(tmp_path / "in.bin", values)
    store = _core.WeightStore()
    with pytest.raises(FormatError, match="ends at"):
        store.add("w", **{**source, "offset": 33})
    with pytest.raises(FormatError, match="ends at"):
        store.add("w", **{**source, "offset": 2**63})
    with pytest.raises(FormatError, match="cannot be opened"):
        store.add("w", **{**source, "path": str(tmp_path / "absent")})
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(FormatError, match="empty"):
        store.add("w", **{**source, "path": str(tmp_path / "empty")})
    store.add("w", **source)
    with pytest.raises(WeightsError, match="twice"):
        store.add("w", **source)


def test_unwritable_target(tmp_path: Path, values: np.ndarray) -> None:
    source = write(tmp_path / "in.bin", values)
    with pytest.raises(OutputError, match="could not be written"):
        _core.transcode(
            **source, dst_path=str(tmp_path / "no" / "out"), dst_offset=0, dst_dtype="f16"
        )
    with pytest.raises(WeightsError, match="not written"):
        out = tmp_path / "out.bin"
        out.write_bytes(b"")
        _core.transcode(**source, dst_path=str(out), dst_offset=0, dst_dtype="iq2_xs")


def test_parameters_that_are_not_numbers_are_named(tmp_path: Path, values: np.ndarray) -> None:
    values[3, 5] = np.nan
    store = _core.WeightStore()
    store.add("good", **write(tmp_path / "good.bin", np.ones((4, 4), np.float32)))
    assert store.first_not_finite() is None
    store.add("some.weight", **write(tmp_path / "bad.bin", values))
    assert store.first_not_finite() == "some.weight"


def test_values_beyond_f16_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    values[7, 7] = 70_000
    with pytest.raises(WeightsError, match="65504"):
        transcode(tmp_path, values, "f16")
    assert transcode(tmp_path, values, "bf16").size == 2 * values.size
