"""Samplers with schedules on the demo model: a sample of the table in docs/sampling-pairs.md, and the table itself."""

from __future__ import annotations

import pytest

from demo.sweep import right_pictures
from demo.sweep_page import PAGE, failing, page, read_results, unexplained
from sdengine.sampling import SAMPLERS, SCHEDULES

RESULTS = read_results()
DEFINED = [s for s in SCHEDULES if all(isinstance(v, int) for v in RESULTS[s].values())]
FAILING = {(sampler, schedule) for sampler, schedule, _ in failing(RESULTS)}


def diagonal() -> list[tuple[str, str]]:
    """A sampler for every schedule, never the same one twice, among the pairs that reach the mark."""
    pairs = []
    for index, schedule in enumerate(DEFINED):
        usable = [s for s in SAMPLERS if (s, schedule) not in FAILING]
        pairs.append((usable[(index * 3 + 1) % len(usable)], schedule))
    return pairs


@pytest.mark.parametrize(("sampler", "schedule"), diagonal())
def test_a_pair_gives_right_pictures(sampler: str, schedule: str) -> None:
    right = right_pictures(sampler, schedule, count=5)
    assert isinstance(right, int)
    assert right >= 4


def test_every_pair_was_measured() -> None:
    assert set(RESULTS) == set(SCHEDULES)
    for schedule, outcomes in RESULTS.items():
        assert set(outcomes) == set(SAMPLERS), schedule
    assert len(DEFINED) >= 18


def test_the_page_is_that_of_the_results() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(RESULTS)
    assert unexplained(RESULTS) == []
    for name in (*SAMPLERS, *SCHEDULES):
        assert f"`{name}`" in written


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s not in DEFINED])
def test_refusals_are_as_written(schedule: str) -> None:
    assert right_pictures("euler", schedule, count=1) == RESULTS[schedule]["euler"]
