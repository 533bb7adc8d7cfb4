"""How the time of an evaluation grows with the picture and shrinks with the cores: Stable Diffusion 1.5, as plots.

``python bench/scaling.py --threads 1,2,4 --size 256,384,512,768,1024 --plots docs/images``

Every combination is measured in a process of its own, on as many cores as threads. After the timed evaluations the
profiler records each operator's time; an operator that takes as long as with one thread did not run in parallel, and
what such operators take is stated as a share of the evaluation. Plots want matplotlib; everything else does not.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring
import synthetic

SERIAL_BELOW = 1.25
"""Speed-up against one thread under which an operator counts as not parallel."""
PROFILES = 3
"""Profiled evaluations; each operator's shortest time counts."""
Report = dict[str, Any]


def measure(arguments: argparse.Namespace) -> Report:
    """One size with one number of threads, in this process."""
    import sdengine
    from sdengine.profiling import profiled

    pipe = sdengine.load(arguments.model, threads=arguments.threads, prompt_cache=False)
    latents, context = measuring.denoiser_inputs(arguments.size)
    cond = sdengine.Conditioning(context)

    def work() -> object:
        return pipe.predict(latents, measuring.TIMESTEP, cond)

    report, _ = measuring.timed(work, arguments.repeats)
    report["peak_memory"] = measuring.peak_memory()
    if arguments.profile:
        operators: list[list[Any]] = []
        for _ in range(PROFILES):
            with profiled(pipe) as profile:
                work()
            operators.append(profile.operators)
        report["operators"] = [
            [runs[0].kind, round(min(run.seconds for run in runs), 7)]
            for runs in zip(*operators, strict=True)
        ]
    return report


def run(path: Path, size: int, threads: int, repeats: int, profile: bool) -> Report:
    """The same in a process of its own, bound to its cores."""
    options = ["--child", "--model", str(path), "--size", str(size), "--threads", str(threads)]
    options += ["--repeats", str(repeats), *["--profile"] * profile]
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    measuring.bind_to_cores(threads)
    try:
        report: Report = measuring.child("scaling.py", options, threads)
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)
    load = measuring.load_average()
    return {"size": size, "threads": threads, **report, "load_average": load}


def serial_shares(one: Sequence[Sequence[Any]], many: Sequence[Sequence[Any]]) -> dict[str, float]:
    """By kind, the share of an evaluation in operators that many threads do not make faster than one.

    Args:
        one: kind and seconds of every operator with one thread.
        many: the same operators with several.
    """
    if [kind for kind, _ in one] != [kind for kind, _ in many]:
        raise ValueError("the evaluations have different operators")
    whole = sum(seconds for _, seconds in many)
    shares: dict[str, float] = {}
    for (kind, alone), (_, together) in zip(one, many, strict=True):
        if alone < SERIAL_BELOW * together:
            shares[kind] = shares.get(kind, 0.0) + together / whole
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def add_shares(results: Sequence[Report]) -> None:
    """Replace the operators of every result by what they say: the largest list of a report is not kept."""
    alone = {r["size"]: r["operators"] for r in results if r["threads"] == 1 and "operators" in r}
    for result in results:
        operators = result.pop("operators", None)
        if operators and result["threads"] > 1 and result["size"] in alone:
            shares = serial_shares(alone[result["size"]], operators)
            result["serial_share"] = round(sum(shares.values()), 5)
            result["serial_kinds"] = {kind: round(share, 5) for kind, share in shares.items()}


def table(results: Sequence[Report]) -> str:
    """Seconds, speed-up, time per pixel, and the share that is not parallel."""
    alone = {r["size"]: r["median"] for r in results if r["threads"] == 1}
    lines = ["  size threads        s  speed-up  us/pixel  serial  peak GB"]
    for r in results:
        faster = alone.get(r["size"], float("nan")) / r["median"]
        serial = f"{r['serial_share']:7.2%}" if "serial_share" in r else "      -"
        lines.append(
            f"{r['size']:6d} {r['threads']:7d} {r['median']:8.2f} {faster:9.2f}"
            f" {r['median'] / r['size'] ** 2 * 1e6:9.2f} {serial} {r['peak_memory'] / 1e9:8.2f}"
        )
    return "\n".join(lines)


def plot(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``scaling-cores.svg`` and ``scaling-size.svg``; returns their paths."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sdengine"  # the same file for the same numbers
    from matplotlib import pyplot

    results = report["results"]
    threads = sorted({r["threads"] for r in results})
    sizes = sorted({r["size"] for r in results})
    seconds = {(r["size"], r["threads"]): r["median"] for r in results}
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "scaling-cores.svg", folder / "scaling-size.svg"]

    figure, axes = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
    for size in sizes:
        if (size, 1) in seconds:
            known = [t for t in threads if (size, t) in seconds]
            speed = [seconds[size, 1] / seconds[size, t] for t in known]
            axes.plot(known, speed, marker="o", label=f"{size} x {size}")
    axes.plot(threads, threads, color="grey", linestyle=":", label="linear")
    axes.set(xlabel="cores", ylabel="times as fast as one core", xticks=threads)
    axes.legend(fontsize="small")
    figure.savefig(paths[0], metadata={"Date": None})
    pyplot.close(figure)

    figure, axes = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
    for count in threads:
        known = [size for size in sizes if (size, count) in seconds]
        values = [seconds[size, count] for size in known]
        label = "1 core" if count == 1 else f"{count} cores"
        axes.plot([(s / 1024) ** 2 for s in known], values, marker="o", label=label)
    axes.set(xlabel="megapixels", ylabel="seconds of an evaluation", xlim=(0, None), ylim=(0, None))
    axes.legend(fontsize="small")
    figure.savefig(paths[1], metadata={"Date": None})
    pyplot.close(figure)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="256,384,512,768,1024", help="pixels, with commas")
    parser.add_argument("--threads", default="1,2,4", help="with commas")
    parser.add_argument("--weight-type", default="q8_0")
    parser.add_argument("--repeats", type=int, default=2, help="evaluations after the warm-up")
    parser.add_argument("--profile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="default: results/scaling-*.json in this folder")
    parser.add_argument("--plots", type=Path, help="also draw, into this folder")
    parser.add_argument("--draw-only", action="store_true", help="draw what is in the file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        arguments.size, arguments.threads = int(arguments.size), int(arguments.threads)
        print("\n" + json.dumps(measure(arguments)))
        return
    machine = measuring.machine()
    path = arguments.json or measuring.HERE / "results" / f"scaling-{measuring.slug(machine)}.json"
    if not arguments.draw_only:
        _run_all(arguments, machine, path)
    report = json.loads(path.read_text(encoding="utf-8"))
    print(table(report["results"]))
    for drawn in plot(report, arguments.plots) if arguments.plots else ():
        print(drawn)


def _run_all(arguments: argparse.Namespace, machine: Report, path: Path) -> None:
    model = synthetic.model(arguments.weight_type)
    measuring.warm(model)
    results: list[Report] = []
    for size in map(int, arguments.size.split(",")):
        # One thread first: the others are compared with it.
        for threads in sorted(map(int, arguments.threads.split(","))):
            results.append(run(model, size, threads, arguments.repeats, arguments.profile))
            print(f"  {size} {threads}: {results[-1]['median']} s", flush=True)
        add_shares([r for r in results if r["size"] == size])
        report = {"machine": machine, "weight_type": arguments.weight_type, "results": results}
        measuring.write_json(path, report)


if __name__ == "__main__":
    main()
