"""Several threads: over one pipeline and several, with loading, planning, cancelling and releasing on the way.

Results are those of one thread, bit for bit. ``nox -s sanitize`` runs this under the thread sanitizer.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.api import DEMO_MODEL
from sdengine.errors import Cancelled

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}
CALLS: list[dict[str, Any]] = [
    {"prompt": "a red circle", "seed": 1},
    {"prompt": "a blue square", "seed": 2, "guidance_scale": 1.0},
    {"prompt": "a [green:red:0.5] triangle", "seed": 3, "sampler": "dpmpp_2m"},
    {"prompt": "a yellow circle", "seed": 4, "width": 96, "batch_size": 2},
]
WAIT = 120
LOADS = {
    "cpu": {"device": "cpu", "threads": 2},
    "own-memory": {"device": "cpu:portable", "threads": 1},
    "limited": {"device": "cpu:portable", "threads": 1, "memory_limit": "8GB"},
}


def load(name: str = "cpu") -> sdengine.Pipeline:
    return sdengine.load(DEMO_MODEL, prompt_cache=False, **LOADS[name])


def latents(pipe: sdengine.Pipeline, call: dict[str, Any]) -> np.ndarray:
    return pipe.generate(**{**SMALL, **call}).latents


def at_once(*work: Callable[[], Any]) -> list[Any]:
    """Results of functions that begin together, a thread each."""
    together = threading.Barrier(len(work))

    def one(function: Callable[[], Any]) -> Any:
        together.wait(WAIT)
        return function()

    with ThreadPoolExecutor(len(work)) as pool:
        return [done.result(WAIT) for done in [pool.submit(one, each) for each in work]]


@contextmanager
def again_and_again(work: Callable[[], Any]) -> Iterator[None]:
    """Does it in another thread until the block ends, once at least; its error comes out."""
    ended, failed = threading.Event(), []

    def loop() -> None:
        try:
            work()
            while not ended.is_set():
                work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(WAIT)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def assert_equal(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(one, other, err_msg=str(CALLS[number]))


@pytest.fixture(scope="module", params=LOADS)
def pipe(request: pytest.FixtureRequest) -> sdengine.Pipeline:
    return load(request.param)


@pytest.fixture(scope="module")
def expected(pipe: sdengine.Pipeline) -> list[np.ndarray]:
    return [latents(pipe, call) for call in CALLS]


def test_one_pipeline(pipe: sdengine.Pipeline, expected: list[np.ndarray]) -> None:
    assert_equal(at_once(*(lambda call=call: latents(pipe, call) for call in CALLS)), expected)


def test_two_pipelines(pipe: sdengine.Pipeline, expected: list[np.ndarray]) -> None:
    other = load("cpu")
    alone = [latents(other, call) for call in CALLS]

    def all_of(which: sdengine.Pipeline) -> list[np.ndarray]:
        return [latents(which, call) for call in CALLS]

    found, others = at_once(lambda: all_of(pipe), lambda: all_of(other))
    assert_equal(found, expected)
    assert_equal(others, alone)


def test_others_plan_and_look(pipe: sdengine.Pipeline, expected: list[np.ndarray]) -> None:
    def look() -> None:
        assert pipe.plan(96, 96, batch_size=2).fits
        assert pipe.graphs_built
        assert all(network.activation_bytes >= 0 for network in pipe.networks.values())
        assert all(device.peak_bytes >= 0 for device in pipe.devices)
        pipe.preview(expected[0])

    with again_and_again(look):
        assert_equal([latents(pipe, call) for call in CALLS], expected)


def test_others_encode_and_decode(pipe: sdengine.Pipeline, expected: list[np.ndarray]) -> None:
    picture = pipe.decode_latents(expected[0], output_type="numpy")
    text = pipe.encode_prompt("a red circle")
    encoded = pipe.encode_image([pipe.decode_latents(expected[0])[0]])

    def code() -> None:
        np.testing.assert_array_equal(
            pipe.decode_latents(expected[0], output_type="numpy"), picture
        )
        np.testing.assert_array_equal(pipe.encode_prompt("a red circle").context, text.context)
        again = pipe.encode_image([pipe.decode_latents(expected[0])[0]])
        np.testing.assert_array_equal(again, encoded)

    with again_and_again(code):
        assert_equal([latents(pipe, call) for call in CALLS], expected)


def test_others_load_and_unload(pipe: sdengine.Pipeline, expected: list[np.ndarray]) -> None:
    def come_and_go() -> None:
        other = load("cpu")
        latents(other, CALLS[0])
        del other
        gc.collect()

    with again_and_again(come_and_go):
        assert_equal([latents(pipe, call) for call in CALLS], expected)


def test_others_take_memory_away(pipe: sdengine.Pipeline, expected: list[np.ndarray]) -> None:
    def take() -> None:
        for network in pipe.networks.values():
            network.set_residency("disk")
            network.rest()
            network.release()
            network.set_residency("offload")

    with again_and_again(take):
        assert_equal([latents(pipe, call) for call in CALLS], expected)


def test_cancelled_from_outside(pipe: sdengine.Pipeline, expected: list[np.ndarray]) -> None:
    """All that run end with an error of their own, and the next ones are right."""
    running = threading.Barrier(3)

    def endless(call: dict[str, Any]) -> None:
        waited = []

        def arrive(event: sdengine.StepEvent) -> None:
            if not waited:
                waited.append(running.wait(WAIT))

        with pytest.raises(Cancelled):
            pipe.generate(**{**SMALL, **call, "steps": 900}, callback=arrive)

    def cancel() -> None:
        running.wait(WAIT)
        pipe.cancel()

    at_once(lambda: endless(CALLS[0]), lambda: endless(CALLS[3]), cancel)
    assert_equal([latents(pipe, call) for call in CALLS], expected)


def test_let_go_while_it_runs() -> None:
    """The last reference goes in the middle of a run: the run keeps what it needs."""
    held = [load("cpu")]
    expected = latents(held[0], CALLS[0])
    begun, gone = threading.Event(), threading.Event()

    def wait(event: sdengine.StepEvent) -> None:
        begun.set()
        assert gone.wait(WAIT)

    def run() -> np.ndarray:
        return held[0].generate(**{**SMALL, **CALLS[0]}, callback=wait).latents

    def let_go() -> None:
        assert begun.wait(WAIT)
        held.clear()
        gc.collect()
        gone.set()

    found, _ = at_once(run, let_go)
    np.testing.assert_array_equal(found, expected)
