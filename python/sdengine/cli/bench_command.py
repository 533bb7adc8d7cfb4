"""``sdengine bench``."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import click

from sdengine.cli.console import progress, readable_bytes
from sdengine.cli.options import (
    BENCH,
    load_arguments,
    model_options,
    open_generate,
    picture_arguments,
    settings,
)


@click.command()
@model_options
@settings(BENCH)
@click.option("--prompt", default="a red circle on a blue background", show_default=True)
@click.option("--repeat", type=click.IntRange(1, 1000), default=3, show_default=True, help="Runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(prompt: str, repeat: int, as_json: bool, **options: Any) -> None:
    """Measure how long a picture takes, stage by stage.

    One run warms up and is not counted; the medians of the others are shown.
    """
    arguments = load_arguments(options)
    started = time.perf_counter()
    run, given = open_generate(arguments), picture_arguments(options)
    loaded = time.perf_counter() - started
    results = []
    with progress("measuring") as report:
        for index in range(repeat + 1):
            report(index, repeat + 1, "warm-up" if index == 0 else "")
            results.append(run(prompt, **given, seed=index))
    runs = [result.timings for result in results[1:]]
    seconds = {stage: statistics.median(timing[stage] for timing in runs) for stage in runs[0]}
    measured = {
        "parameters": results[0].metadata[0],
        "batch_size": len(results[0].images),
        "load": loaded,
        "seconds": seconds,
        "runs": runs,
        "peak_memory": max(result.peak_memory for result in results),
    }
    click.echo(json.dumps(measured, indent=2, default=str) if as_json else _table(measured))


def _table(measured: dict[str, Any]) -> str:
    parameters = measured["parameters"]
    lines = [
        f"{parameters['model']}, {parameters['width']}x{parameters['height']}, "
        f"{parameters['steps']} steps of {parameters['sampler']}, batch {measured['batch_size']}",
        f"{'load':<10}{measured['load']:>10.3f} s",
    ]
    lines += [f"{stage:<10}{value:>10.3f} s" for stage, value in measured["seconds"].items()]
    if measured["peak_memory"]:
        lines.append(f"{'memory':<10}{readable_bytes(measured['peak_memory']):>12}")
    return "\n".join(lines)
