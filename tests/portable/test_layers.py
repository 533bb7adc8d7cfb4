"""Layers and operators of nn in plain ggml operators, one by one, against the kernels of the CPU.

The portable CPU takes only what CUDA, Metal and Vulkan all take, so a custom operator, or operands that one of
them refuses, are errors here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sdengine import _core
from sdengine.device_checks import (
    CHECKS,
    GELU_TANH,
    QUICK_GELU,
    Check,
    check_layers,
    compare,
    inputs_of,
    relative_error,
    run_check,
    store_of,
)

# By what matrices are held in. In float32 the angles of rotations err most: 300 radians are exact to 2e-5.
# ggml's CPU backend rounds the other operand, too: to half precision, to bfloat16, or to blocks of 8-bit numbers, as
# CUDA does with quantized weights.
LIMITS = {"f32": 1e-5, "f16": 2e-4, "bf16": 2e-3, "q8_0": 5e-3, "q4_0": 5e-3, "q5_1": 5e-3}
GELU_TABLE = 5e-4  # ggml's CPU backend looks these up in half precision


@cache
def devices() -> tuple[_core.Device, _core.Device]:
    return _core.Device.cpu(1, portable=True), _core.Device.cpu(1)


def limit_of(check: Check) -> float:
    if check.config.get("activation") in (GELU_TANH, QUICK_GELU) and check.layer == "linear":
        return GELU_TABLE
    return LIMITS[check.weights]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.title)
def test_a_layer(check: Check) -> None:
    result = compare(check, *devices())
    assert result.error <= limit_of(check), result.refusal


def test_titles_name_one_check_each() -> None:
    assert len({check.title for check in CHECKS}) == len(CHECKS)


def test_an_operator_that_a_device_lacks_is_an_error_that_names_it() -> None:
    # CUDA looks up rows of this type in steps of 256 values.
    check = Check(
        "", "embedding", {}, {"in": 20, "out": 32}, {"ids": ((1, 3), 20)}, weights="iq4_nl"
    )
    result = compare(check, *devices())
    assert "GET_ROWS of iq4_nl i32 at 'weight'" in result.refusal
    assert "cpu" in result.refusal.lower()


def test_all_checks_are_run_in_order() -> None:
    results = list(check_layers(devices()[0], CHECKS[:3]))
    assert [result.title for result in results] == [check.title for check in CHECKS[:3]]
    assert all(result.error <= LIMITS["f32"] and not result.refusal for result in results)


def test_errors_are_relative() -> None:
    expected = np.array([3.0, 4.0], np.float32)
    assert relative_error(expected + np.float32(0.5), expected) == pytest.approx(0.5 * 2**0.5 / 5)


LARGE = {"in": 64, "out": 3, "kernel": 5}


def keys_of(batch: int) -> dict[str, tuple[int, int, int]]:
    return {"k": (batch, 8001, 4), "v": (batch, 8001, 4)}


@pytest.mark.parametrize(
    "check",
    [
        # Each needs more than 256 MiB of temporary values at once, so it is computed in blocks:
        # rows of pictures, whole pictures, queries, and entries of the batch.
        Check("", "conv2d", {"x": (1, 64, 220, 205)}, LARGE),
        Check("", "conv2d", {"x": (1, 64, 440, 410)}, {**LARGE, "stride": 2, "right_bottom": 1}),
        Check("", "conv2d", {"x": (3, 64, 140, 125)}, LARGE),
        Check("", "norm_and_conv", {"x": (1, 64, 380, 330)}, {"in": 64, "out": 3, "groups": 8}),
        Check("", "attention", {"q": (1, 9001, 4), **keys_of(1)}, {"heads": 1}),
        Check("", "attention", {"q": (3, 4001, 4), **keys_of(3)}, {"heads": 1}),
    ],
    ids=["rows", "rows-stride-2", "pictures", "planes", "queries", "entries"],
)
def test_large_ones_are_computed_in_blocks(check: Check, tmp_path: Path) -> None:
    portable, cpu = devices()
    network = _core.Network(
        "layer", {"layer": check.layer, **check.config}, store_of(check, tmp_path), portable
    )
    shapes = {name: list(shape) for name, shape in check.inputs.items()}
    given = sum(array.nbytes for array in inputs_of(check).values())
    assert network.planned_bytes(shapes) <= 3 * given + (600 << 20)
    found = run_check(check, portable, store_of(check, tmp_path))
    assert relative_error(found, run_check(check, cpu, store_of(check, tmp_path))) <= LIMITS["f32"]
