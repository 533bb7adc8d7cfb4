"""Limits on a device with memory of its own, whose counters say what was taken (conftest says which device)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdengine import _core
from sdengine.device_checks import relative_error
from sdengine.errors import OutOfMemoryError

from .conftest import PROMPT, Load

SAME: dict[str, Any] = {"steps": 1, "seed": 5, "guidance_scale": 4.0, "tile": 8}
SIZES = [(128, 1), (128, 3), (192, 2)]
SHARES = [1.0, 0.85, 0.7, 0.6, 0.45, 0.3, 0.15, 0.02]
"""Limits as parts of what a generation takes when all of it is resident."""


@pytest.mark.parametrize(("side", "count"), SIZES)
def test_every_accepted_limit_is_kept(portable: Load, side: int, count: int) -> None:
    options = {**SAME, "width": side, "height": side, "batch_size": count}
    largest = portable().plan(prompt=PROMPT, **{**options, "memory_limit": "8GB"})
    whole = largest.peak_memory + largest.scratch  # what a backend may need for itself stays free
    accepted = set()
    for share in SHARES:
        limit = round(share * whole)
        pipe = portable(memory_limit=limit)
        plan = pipe.plan(prompt=PROMPT, **options)
        if not plan.fits:
            assert plan.smallest_limit > limit
            with pytest.raises(OutOfMemoryError, match="is the smallest that works"):
                pipe.generate(PROMPT, **options)
            continue
        result = pipe.generate(PROMPT, **options)
        assert len(result.images) == count
        peak = pipe.devices.denoiser.peak_bytes
        assert peak <= limit
        assert plan.peak_memory == pytest.approx(peak, rel=0.1)
        accepted.add(str(plan.placement))
    assert len(accepted) >= 3  # they were not all of one kind


def test_the_smallest_limit_works_and_makes_the_same_picture(portable: Load) -> None:
    pipe = portable(memory_limit="8GB")
    expected = pipe.generate(PROMPT, **SAME)
    least = portable(memory_limit=pipe.plan(prompt=PROMPT, **SAME).smallest_limit)
    found = least.generate(PROMPT, **SAME)
    np.testing.assert_allclose(found.latents, expected.latents, rtol=0, atol=2e-5)
    assert set(least.memory.placement.policies.values()) <= {"stream", "disk", "offload"}
    assert least.devices.denoiser.peak_bytes < pipe.devices.denoiser.peak_bytes


def test_the_host_gives_pages_back_when_it_has_a_limit(portable: Load) -> None:
    pipe = portable()
    plan = pipe.plan(memory_limit="8GB")
    assert set(plan.placement.policies.values()) == {"resident"}
    less = plan.peak_memory + plan.scratch - 10**6
    tight = pipe.plan(memory_limit=less)
    assert "offload" in tight.placement.policies.values()
    assert tight.peak_host_memory > plan.peak_host_memory
    between = (plan.peak_host_memory + tight.peak_host_memory) // 2
    both = pipe.plan(memory_limit=less, host_memory_limit=between)
    assert both.fits
    assert both.peak_host_memory < tight.peak_host_memory
    assert "disk" in both.placement.policies.values()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_any_allocation_may_fail(portable: Load, plain_model: Path, n: int) -> None:
    pipe = portable(plain_model, memory_limit="8GB")
    expected = pipe.generate(PROMPT, **SAME).latents
    _core.fail_allocation(n)
    try:
        found = pipe.generate(PROMPT, **SAME).latents
        assert relative_error(found, expected) <= 1e-5  # batches may have been cut
    except OutOfMemoryError:
        pass
    finally:
        _core.fail_allocation(0)
    again = pipe.generate(PROMPT, **SAME)
    assert relative_error(again.latents, expected) <= 1e-5
