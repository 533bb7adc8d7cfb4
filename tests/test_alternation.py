"""Prompts that alternate over many steps: what they say is held once, however often it comes back."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

import sdengine

SHORT: dict[str, Any] = {"width": 64, "height": 64, "seed": 1}


@pytest.fixture(scope="module")
def pipe() -> sdengine.Pipeline:
    return sdengine.api.demo_pipeline()


def test_prompts_that_alternate_hold_their_texts_once(pipe: sdengine.Pipeline) -> None:
    run = pipe.start("[x|b] a", **{**SHORT, "steps": 40})
    phases = run._inputs.phases
    assert len(phases) == 40
    assert len({id(branches) for _, branches in phases}) == 2


def test_a_long_alternating_prompt_stays_small(pipe: sdengine.Pipeline) -> None:
    before = psutil.Process().memory_info().rss
    run = pipe.start("[x|b] " + "a " * 10000, **{**SHORT, "steps": 200})
    assert psutil.Process().memory_info().rss - before < 1 << 30
    run.step()
