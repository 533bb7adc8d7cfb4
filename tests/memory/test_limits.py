"""Limits of memory: kept, chosen for, and what happens when memory runs out all the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine import _core
from sdengine.api import DEMO_MODEL
from sdengine.errors import OutOfMemoryError

from .conftest import PROMPT, Load

SAME: dict[str, Any] = {"steps": 2, "seed": 5}

# In a process of its own: the peak of resident memory cannot be lowered again.
MEASURED = """
import json, re, sys
import sdengine
options, limit = json.loads(sys.argv[1]), sys.argv[2]
pipe = sdengine.load(sdengine.api.DEMO_MODEL, threads=1, prompt_cache=False, memory_limit=limit)
plan = pipe.plan(prompt="a circle", **options)
try:
    pipe.generate("a circle", seed=1, **options)
    refused = ""
except sdengine.errors.OutOfMemoryError as error:
    refused = str(error)
status = open("/proc/self/status").read()
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
print(json.dumps({"planned": plan.peak_memory, "peak": peak, "refused": refused}))
"""


def measured(options: dict[str, Any], limit: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(options), limit],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("side", "count"), [(128, 1), (256, 2), (512, 3)])
def test_the_process_keeps_its_limit(side: int, count: int) -> None:
    """Also the smallest one that a refusal names; 5 MB less are refused."""
    options = {"width": side, "height": side, "batch_size": count, "steps": 2}
    named = re.search(
        r"memory_limit='(\d+)MB' is the smallest", measured(options, "10MB")["refused"]
    )
    assert named
    least = int(named[1])
    assert measured(options, f"{least - 5}MB")["refused"]
    for megabytes in (least, 3 * least // 2, 1000):
        found = measured(options, f"{megabytes}MB")
        assert not found["refused"]
        assert found["peak"] <= megabytes * 10**6
        assert found["planned"] <= megabytes * 10**6
        assert found["planned"] == pytest.approx(found["peak"], rel=0.1)


def test_activations_leave_with_their_network(pipe: sdengine.Pipeline) -> None:
    """However small they are: what runs next has the memory."""
    pipe.generate(PROMPT, **SAME)
    assert [network.activation_bytes for network in pipe.networks.values()] == [0] * len(
        pipe.networks
    )


@pytest.mark.parametrize("together", [1, 2, 3])
def test_pictures_do_not_depend_on_batches(pipe: sdengine.Pipeline, together: int) -> None:
    """A limit cuts batches; what comes out is the same, to rounding at most."""
    whole = pipe.generate(PROMPT, batch_size=3, **SAME)
    run = pipe.start(PROMPT, batch_size=3, **SAME)
    cut = sdengine.Run(pipe, _replaced(run.inputs, together))
    while not cut.done:
        cut.step()
    np.testing.assert_allclose(cut.latents, whole.latents, rtol=0, atol=2e-5)
    assert [picture.size for picture in cut.result().images] == [(128, 128)] * 3


def test_single_entries_are_single_pictures(pipe: sdengine.Pipeline) -> None:
    run = pipe.start(PROMPT, batch_size=2, **SAME)
    both = sdengine.Run(pipe, _replaced(run.inputs, 1))
    one = sdengine.Run(pipe, _replaced(pipe.start(PROMPT, **SAME).inputs, 1))
    while not both.done:
        both.step()
        one.step()
    assert np.array_equal(both.latents[:1], one.latents)


def _replaced(inputs: Any, together: int) -> Any:
    from dataclasses import replace

    return replace(inputs, together=together)


def test_a_limit_is_refused_with_the_smallest_that_works() -> None:
    pipe = sdengine.load(DEMO_MODEL, memory_limit="20MB")
    with pytest.raises(
        OutOfMemoryError, match=r"memory_limit='[\d.]+[MG]B' is the smallest that works"
    ):
        pipe.generate(PROMPT, **SAME)


def test_hires_is_refused_before_the_first_step() -> None:
    pipe = sdengine.load(DEMO_MODEL)
    limit = pipe.plan(128, 128).smallest_limit + 5 * 10**7
    pipe = sdengine.load(DEMO_MODEL, memory_limit=limit)
    pipe.start(PROMPT, **SAME)
    with pytest.raises(OutOfMemoryError, match="4096x4096"):
        pipe.start(PROMPT, **SAME, hires_width=4096)


def test_memory_that_runs_out_on_the_way_makes_batches_smaller(pipe: sdengine.Pipeline) -> None:
    expected = pipe.generate(PROMPT, batch_size=2, **SAME).latents
    pipe.denoiser.release()
    run = pipe.start(PROMPT, batch_size=2, **SAME)
    _core.fail_allocation(1)
    try:
        run.step()
    finally:
        _core.fail_allocation(0)
    assert run.inputs.together == 2
    while not run.done:
        run.step()
    np.testing.assert_allclose(run.latents, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("n", range(1, 5))
def test_every_allocation_may_fail(pipe: sdengine.Pipeline, n: int) -> None:
    """The picture comes all the same, or a typed error; the pipeline goes on."""
    expected = pipe.generate(PROMPT, **SAME).latents
    for network in pipe.networks.values():
        network.release()
    _core.fail_allocation(n)
    try:
        found = pipe.generate(PROMPT, **SAME).latents
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    except OutOfMemoryError:
        pass
    finally:
        _core.fail_allocation(0)
    again = pipe.generate(PROMPT, **SAME).latents
    np.testing.assert_allclose(again, expected, rtol=0, atol=2e-5)


def test_weights_that_stay_leave_when_memory_runs_out(portable: Load) -> None:
    options: dict[str, Any] = {"width": 64, "height": 64, "guidance_scale": 1.0, **SAME}
    free = portable()
    expected = free.generate(PROMPT, **options).latents
    plan = free.plan(prompt=PROMPT, **options)
    steps = next(stage for stage in plan.stages if stage.name == "steps")
    limit = (plan.smallest_limit + steps.networks) // 2
    pipe = portable(memory_limit=limit)
    run = pipe.start(PROMPT, **options)
    assert pipe.memory.placement.keep["unet"] > 0
    _core.fail_allocation(1)
    try:
        run.step()
    finally:
        _core.fail_allocation(0)
    assert pipe.memory.placement.keep == {}
    assert pipe.memory.placement.policies["unet"] == "stream"
    while not run.done:
        run.step()
    assert np.array_equal(run.latents, expected)
