"""``sdengine bench``."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sdengine.cli.console import progress, readable_bytes
from sdengine.cli.options import (
    BENCH,
    LOAD,
    load_arguments,
    model_options,
    open_generate,
    open_pipeline,
    picture_arguments,
    settings,
)
from sdengine.profiling import Grouping, profiled

_GROUPINGS: tuple[Grouping, ...] = ("network", "kind", "block")


@click.command()
@click.argument("path", metavar="[MODEL]", required=False)
@model_options
@settings(BENCH)
@click.option("--prompt", default="a red circle on a blue background", show_default=True)
@click.option("--repeat", type=click.IntRange(1, 1000), default=3, show_default=True, help="Runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--profile",
    "profiles",
    is_flag=True,
    help="One more run, operator by operator: time, GFLOP/s and share of the peak by kind and block.",
)
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the profile as a trace for Chrome or Perfetto.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the table of --memory-limit as SVG, with matplotlib.",
)
def bench(
    path: str | None,
    prompt: str,
    repeat: int,
    as_json: bool,
    profiles: bool,
    trace: Path | None,
    plot: Path | None,
    **options: Any,
) -> None:
    """Measure how long a picture takes, stage by stage.

    One run warms up and is not counted; the medians of the others are shown.

    With --memory-limit 2GB,4GB,8GB one picture is made within each limit, in a process of its own: seconds, and peaks
    of memory beside what was planned. MODEL may then name a synthetic model: sd15, sdxl, sd35-medium, flux-dev.
    """
    if path is not None:
        options["model"] = path
    if options["memory_limit"] is not None:
        _within_limits(options.pop("memory_limit"), as_json, plot, options)
        return
    from sdengine.api import DEMO_MODEL

    # A prompt that was kept would not be encoded again, and that is to be measured.
    arguments = {"model": str(DEMO_MODEL), "prompt_cache": False, **load_arguments(options)}
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
    profile = None
    if profiles or trace:
        pipeline = open_pipeline(arguments)
        pipeline.generate(prompt, **given, seed=0)  # its weights are read from the file here
        with profiled(pipeline) as profile:
            pipeline.generate(prompt, **given, seed=repeat)
        measured["profile"] = {
            by: [asdict(share) for share in profile.shares(by)] for by in _GROUPINGS
        }
    if trace and profile:
        profile.write_trace(trace)
    click.echo(json.dumps(measured, indent=2, default=str) if as_json else _table(measured))
    if profiles and profile and not as_json:
        click.echo(f"\npeak of {profile.peak_gflops:.0f} GFLOP/s")
        for by in _GROUPINGS:
            click.echo("\n" + profile.table(by))


def _within_limits(limits: str, as_json: bool, plot: Path | None, options: dict[str, Any]) -> None:
    """Measure one picture within each of `limits`."""
    from sdengine.api import DEMO_MODEL
    from sdengine.memory import measuring
    from sdengine.memory.sizes import parse_size

    listed = [limit.strip() for limit in limits.split(",")]
    for limit in listed:
        parse_size("memory_limit", limit)
    load = load_arguments({**options, "memory_limit": None})
    model = str(load.pop("model", DEMO_MODEL))
    if not Path(model).exists():
        model = str(measuring.synthetic_model(model))
    given = picture_arguments({k: v for k, v in options.items() if k not in LOAD})
    given = {"steps": 2, **given}
    rows = []
    with progress("measuring") as report:
        for done, limit in enumerate(listed):
            report(done, len(listed), limit)
            rows.append(measuring.measured_apart(model, load, given, limit))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        click.echo(f"{Path(model).stem}\n{measuring.table(rows)}")
    if plot is not None:
        measuring.plot(rows, Path(model).stem, plot)


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
