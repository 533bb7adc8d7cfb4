"""Amounts of memory as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdengine
from sdengine.api import DEMO_MODEL
from sdengine.errors import ParameterError
from sdengine.memory.sizes import parse_size, readable, rounded_up


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("4 gb", 4 * 10**9),
        ("512MB", 512 * 10**6),
        ("1.5GiB", 3 * 2**29),
        (".5G", 5 * 10**8),
        ("100", 100),
        (100, 100),
        (None, None),
    ],
)
def test_amounts(text: object, size: int | None) -> None:
    assert parse_size("memory_limit", text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "4 XB", "4GB!", 0, -5, True, 1.5, "1e9", [], "0"]
)
def test_what_is_no_amount(text: object) -> None:
    with pytest.raises(ParameterError, match="host_memory_limit must be an amount of memory"):
        parse_size("host_memory_limit", text)


def test_load_takes_amounts_only() -> None:
    with pytest.raises(ParameterError, match="memory_limit must be an amount"):
        sdengine.load(DEMO_MODEL, memory_limit="much")


@given(st.integers(1, 2**50))
def test_a_limit_that_is_told_is_large_enough(size: int) -> None:
    told = parse_size("memory_limit", rounded_up(size))
    assert told is not None
    assert size <= told <= size + 10**7


def test_sizes_for_people() -> None:
    assert [readable(size) for size in (0, 12_400_000, 1_234_000_000)] == [
        "0 MB",
        "12 MB",
        "1.23 GB",
    ]
