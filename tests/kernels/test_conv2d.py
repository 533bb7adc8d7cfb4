"""conv2d against torch in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.kernels.conftest import DIRECT, WEIGHT_TYPES, Array, kernels, relative_error, shifted


@dataclass
class Case:
    """One convolution; padding is top, left, bottom, right."""

    height: int
    width: int
    in_channels: int
    out_channels: int
    batch: int = 1
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    upsample2x: bool = False
    circular: tuple[bool, bool] = (False, False)

    def data(self, rng: np.random.Generator) -> tuple[Array, Array]:
        shape = (self.batch, self.height, self.width, self.in_channels)
        return (
            rng.standard_normal(shape, dtype=np.float32),
            rng.standard_normal((self.out_channels, self.in_channels, *self.kernel), np.float32),
        )

    def run(self, x: Array, weight: bytes | Array, **options: object) -> Array:
        kind = options.pop("type", "f32")
        y: Array = kernels.conv2d(
            x,
            weight,
            kind,
            self.out_channels,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            upsample2x=self.upsample2x,
            circular=self.circular,
            **options,
        )
        return y

    def expected(self, x: Array, weight: Array) -> Array:
        y = torch.from_numpy(np.array(x)).double().permute(0, 3, 1, 2)
        if self.upsample2x:
            y = F.interpolate(y, scale_factor=2, mode="nearest")
        top, left, bottom, right = self.padding
        y = F.pad(y, (left, right, 0, 0), mode="circular" if self.circular[0] else "constant")
        y = F.pad(y, (0, 0, top, bottom), mode="circular" if self.circular[1] else "constant")
        y = F.conv2d(y, torch.from_numpy(weight).double(), stride=self.stride)
        return y.permute(0, 2, 3, 1).contiguous().numpy()


CASES = {
    "one pixel": Case(1, 1, 1, 1),
    "one pixel of many channels": Case(1, 1, 37, 70),
    "one channel": Case(5, 7, 1, 1),
    "image in": Case(9, 11, 3, 33),
    "image out": Case(12, 5, 40, 3),
    "latents": Case(8, 8, 4, 320),
    "latents out": Case(19, 101, 43, 4, batch=2),
    "two channels out, circular": Case(7, 5, 16, 2, circular=(True, True)),
    "one channel out, stride 2": Case(9, 20, 33, 1, stride=2),
    "five channels": Case(6, 6, 5, 5, batch=4),
    "odd": Case(13, 11, 70, 45, batch=3),
    "several slices": Case(6, 5, 200, 50, batch=2),
    "stride 2": Case(9, 10, 33, 20, stride=2, batch=2),
    "stride 2, asymmetric padding": Case(8, 6, 20, 34, stride=2, padding=(0, 0, 1, 1)),
    "padding of one side": Case(5, 4, 7, 9, padding=(2, 0, 0, 1)),
    "no padding": Case(5, 4, 7, 9, padding=(0, 0, 0, 0)),
    "upsample": Case(4, 3, 19, 21, upsample2x=True, batch=2),
    "upsample one pixel": Case(1, 1, 4, 4, upsample2x=True),
    "circular": Case(5, 6, 9, 10, circular=(True, True)),
    "circular x": Case(5, 6, 9, 10, circular=(True, False)),
    "circular y, wide padding": Case(3, 4, 5, 6, circular=(False, True), padding=(2, 1, 3, 1)),
    "circular upsample": Case(3, 4, 5, 6, circular=(True, True), upsample2x=True),
    "circular stride 2": Case(6, 8, 5, 6, circular=(True, True), stride=2),
    "1x1": Case(7, 9, 33, 47, kernel=(1, 1), padding=(0, 0, 0, 0), batch=2),
    "1x1 of 256 channels": Case(3, 5, 256, 40, kernel=(1, 1), padding=(0, 0, 0, 0)),
    "1x1 stride 2": Case(7, 9, 33, 17, kernel=(1, 1), padding=(0, 0, 0, 0), stride=2),
    "1x1 upsample": Case(3, 3, 5, 17, kernel=(1, 1), padding=(0, 0, 0, 0), upsample2x=True),
    "1x1 padded": Case(3, 3, 5, 17, kernel=(1, 1)),
    "row kernel": Case(5, 6, 7, 8, kernel=(1, 3), padding=(0, 1, 0, 1)),
    "patches": Case(28, 42, 3, 24, kernel=(14, 14), padding=(0, 0, 0, 0), stride=14),
    "large kernel": Case(26, 25, 2, 3, kernel=(25, 25), padding=(12, 12, 12, 12)),
    "4x4": Case(8, 8, 24, 24, kernel=(4, 4), stride=2, padding=(1, 1, 1, 1)),
}


# Relative L2 error of Winograd's way, three times the direct one's.
WINOGRAD = 2e-6
METHODS = {"direct": DIRECT, "winograd": WINOGRAD}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_torch(case: Case, method: str, isa: str, rng: np.random.Generator) -> None:
    x, weight = case.data(rng)
    expected = case.expected(x, weight)
    found = case.run(x, weight, isa=isa, threads=2, method=method)
    assert relative_error(found, expected) <= METHODS[method]


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
def test_winograd_on_uneven_data(mean: float, isa: str, rng: np.random.Generator) -> None:
    """Positive activations, and neighbours of very different size, as after SiLU."""
    case = Case(24, 24, 96, 40)
    x, weight = case.data(rng)
    x = np.exp(2 * x) + np.float32(mean)
    found = case.run(x, weight, isa=isa, method="winograd")
    assert relative_error(found, case.expected(x, weight)) <= WINOGRAD


@pytest.mark.parametrize(
    ("case", "method"),
    [
        (Case(16, 16, 32, 32), "winograd"),
        (Case(4, 4, 32, 32), "direct"),
        (Case(16, 16, 4, 32), "direct"),
        (Case(16, 16, 32, 2), "direct"),
        (Case(16, 16, 32, 32, stride=2), "direct"),
    ],
)
def test_the_shape_chooses_the_method(
    case: Case, method: str, isa: str, rng: np.random.Generator
) -> None:
    x, weight = case.data(rng)
    chosen = [case.run(x, weight, isa=isa, threads=n) for n in (1, 4)]
    named = case.run(x, weight, isa=isa, method=method)
    assert all(np.array_equal(y, named) for y in chosen)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_reference_matches_torch(case: Case, rng: np.random.Generator) -> None:
    x, weight = case.data(rng)
    assert relative_error(case.run(x, weight, isa="reference"), case.expected(x, weight)) <= 1e-7


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
@pytest.mark.parametrize(
    "case",
    [
        Case(7, 5, 256, 40),
        Case(5, 5, 256, 36, kernel=(1, 1), padding=(0, 0, 0, 0)),
        Case(6, 4, 512, 3),
    ],
    ids=["3x3", "1x1", "image out"],
)
def test_every_weight_type(kind: str, case: Case, isa: str, rng: np.random.Generator) -> None:
    x, weight = case.data(rng)
    packed = kernels.quantize(weight.reshape(-1), kind, weight[0].size)
    exact = kernels.dequantize(packed, kind, weight.size).reshape(weight.shape)
    expected = case.expected(x, exact)
    for method, bound in METHODS.items():
        found = case.run(x, packed, type=kind, isa=isa, threads=2, method=method)
        assert relative_error(found, expected) <= bound


def test_blocks_that_cross_rows(isa: str, rng: np.random.Generator) -> None:
    """A q8_0 tensor quantized as a flat list: a row has 9 * 8 = 72 elements, not whole blocks."""
    case = Case(5, 5, 8, 20)
    x, weight = case.data(rng)
    packed = kernels.quantize(weight.reshape(-1), "q8_0", weight.size)
    exact = kernels.dequantize(packed, "q8_0", weight.size).reshape(weight.shape)
    found = case.run(x, packed, type="q8_0", isa=isa)
    assert relative_error(found, case.expected(x, exact)) <= DIRECT


THREADED = [
    Case(13, 11, 70, 45, batch=3),
    Case(8, 8, 160, 96, batch=2),
    Case(40, 40, 24, 40),
    Case(16, 16, 64, 3),
    Case(20, 50, 32, 2, batch=3),
    Case(9, 9, 512, 64, kernel=(1, 1), padding=(0, 0, 0, 0)),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", THREADED)
def test_threads_change_nothing(
    case: Case, method: str, isa: str, rng: np.random.Generator
) -> None:
    x, weight = case.data(rng)
    packed = kernels.quantize(weight.reshape(-1), "f16", weight[0].size)
    options = {"type": "f16", "isa": isa, "method": method}
    results = [case.run(x, packed, **options, threads=n) for n in (1, 2, 3, 4)]
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_a_team_serves_one_call_after_another(isa: str, rng: np.random.Generator) -> None:
    case = Case(9, 9, 33, 65)
    x, weight = case.data(rng)
    once = case.run(x, weight, isa=isa, threads=3)
    assert np.array_equal(case.run(x, weight, isa=isa, threads=3, repeats=20), once)


@pytest.mark.parametrize("in_channels", [4, 37])
def test_memory_of_any_alignment(in_channels: int, isa: str, rng: np.random.Generator) -> None:
    case = Case(5, 6, in_channels, 35)
    x, weight = case.data(rng)
    expected = case.run(x, weight, isa=isa)
    for kind in ("f32", "f16", "q8_0"):
        if weight.size % 32 and kind == "q8_0":
            continue
        packed = kernels.quantize(weight.reshape(-1), kind, weight.size)
        odd = np.frombuffer(b"x" + packed, dtype=np.uint8)[1:]
        for method in METHODS:
            options = {"type": kind, "isa": isa, "method": method}
            moved = case.run(shifted(x), odd, **options)
            assert np.array_equal(moved, case.run(x, packed, **options))
    assert np.array_equal(case.run(shifted(x), shifted(weight), isa=isa), expected)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("terms", [*itertools.product([False, True], repeat=3)])
def test_epilogue(
    activation: str,
    terms: tuple[bool, bool, bool],
    method: str,
    isa: str,
    rng: np.random.Generator,
) -> None:
    check_epilogue(37, activation, terms, method, isa, rng)


@pytest.mark.parametrize("terms", [*itertools.product([False, True], repeat=3)])
def test_epilogue_of_few_channels(
    terms: tuple[bool, bool, bool], isa: str, rng: np.random.Generator
) -> None:
    check_epilogue(2, "silu", terms, "direct", isa, rng)


def check_epilogue(
    out_channels: int,
    activation: str,
    terms: tuple[bool, bool, bool],
    method: str,
    isa: str,
    rng: np.random.Generator,
) -> None:
    case = Case(5, 4, 70, out_channels, batch=3)
    x, weight = case.data(rng)
    weight *= 0.1
    y = torch.from_numpy(case.expected(x, weight))
    bias = rng.standard_normal(out_channels, dtype=np.float32)
    batch_bias = rng.standard_normal((3, out_channels), dtype=np.float32)
    residual = rng.standard_normal(y.shape, dtype=np.float32)
    options: dict[str, Array] = {}
    if terms[0]:
        options["bias"] = bias
        y = y + torch.from_numpy(bias)
    if terms[1]:
        options["batch_bias"] = batch_bias
        y = y + torch.from_numpy(batch_bias)[:, None, None]
    y = ACTIVATIONS[activation](y)
    if terms[2]:
        options["residual"] = residual
        y = y + torch.from_numpy(residual)
    found = case.run(x, weight, isa=isa, activation=activation, method=method, **options)
    assert relative_error(found, y.numpy()) <= METHODS[method]


@pytest.mark.parametrize("method", ["direct", "winograd"])
def test_residual_before_the_activation(isa: str, method: str, rng: np.random.Generator) -> None:
    case = Case(5, 4, 70, 37, batch=2)
    x, weight = case.data(rng)
    weight *= 0.1
    y = case.expected(x, weight)
    residual = rng.standard_normal(y.shape, dtype=np.float32)
    options = {"residual": residual, "residual_inside": True, "activation": "relu"}
    found = case.run(x, weight, isa=isa, method=method, **options)
    assert relative_error(found, np.maximum(y + residual, 0)) <= METHODS[method]


def test_not_a_number_is_not_hidden(isa: str, rng: np.random.Generator) -> None:
    case = Case(4, 4, 6, 7)
    x, weight = case.data(rng)
    x[0, 1, 1, 2] = np.nan
    for activation in ACTIVATIONS:
        found = case.run(x, weight, isa=isa, activation=activation, method="direct")
        assert np.isnan(found[0, :3, :3]).all()
        assert np.isfinite(found[0, 3]).all()
        found = case.run(x, weight, isa=isa, activation=activation, method="winograd")
        assert np.isnan(found[0, :3, :3]).all()
