"""Every sampler with every schedule on the demo model: which pairs give right pictures in 20 steps?

The pictures of 20 held-out captions are judged from their pixels. Results are kept pair by pair,
so that a sweep that was stopped goes on where it was::

    python -m demo.sweep
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from functools import cache
from pathlib import Path

import sdengine
from demo import sweep_page
from demo.checker import check
from demo.evaluate import HELD_OUT, STEPS
from demo.shapes import HeldOut, read_held_out
from demo.sweep_page import CAPTIONS, Outcome, Results
from sdengine.api import demo_pipeline
from sdengine.sampling import SAMPLERS, SCHEDULES

FIRST_SEED = 1000


def right_pictures(sampler: str, schedule: str, count: int = CAPTIONS) -> Outcome:
    """How many of `count` captions, spread over the held-out ones, come out right."""
    tests = _tests()[:: len(_tests()) // count][:count]
    with warnings.catch_warnings():
        # Pairs that are known to fail are what a sweep is about.
        warnings.simplefilter("ignore", sdengine.UnwiseWarning)
        try:
            result = demo_pipeline().generate(
                [test.caption for test in tests],
                steps=STEPS,
                seed=FIRST_SEED,
                sampler=sampler,
                schedule=schedule,
                guidance_scale=sweep_page.guidance_of(sampler),
            )
        except sdengine.SDEngineError as error:
            return str(error)
    pairs = zip(result.images, tests, strict=True)
    return sum(check(picture).matches(test.triple) for picture, test in pairs)


@cache
def _tests() -> list[HeldOut]:
    return read_held_out(HELD_OUT)


def _measured(pair: tuple[str, str]) -> tuple[str, str, Outcome]:
    return *pair, right_pictures(*pair)


def sweep(path: Path, processes: int) -> Results:
    """Measure the pairs that the results at `path` lack, and write each to it."""
    results = sweep_page.read_results(path) if path.exists() else {}
    left = [
        (sampler, schedule)
        for schedule in SCHEDULES
        for sampler in SAMPLERS
        if sampler not in results.get(schedule, {})
    ]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for sampler, schedule, outcome in pool.imap_unordered(_measured, left):
            results.setdefault(schedule, {})[sampler] = outcome
            path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            print(f"{sampler} {schedule}: {outcome}", flush=True)
    return results


def main() -> None:
    """Command line: measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=sweep_page.RESULTS, help="JSON to complete")
    parser.add_argument("--page", type=Path, default=sweep_page.PAGE, help="Markdown to write")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    results = sweep(options.results, options.processes)
    options.page.write_text(sweep_page.page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
