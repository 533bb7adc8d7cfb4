"""Pictures within limits of memory: time and peaks of full-size models, as a table and as plots.

``python bench/memory.py --threads 4 --steps 2 --plot docs/images/memory.svg --docs docs/memory.md``

Every case (a model, a size, a limit) is one picture in a process of its own. What is measured is written after each
case, and a case that is in the file is not measured again: a campaign can be stopped and continued. It fails where a
peak exceeds its limit. The models are synthetic ones in the folder of ``bench/synthetic.py``, which writes them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measuring

Report = dict[str, Any]
CASES: dict[str, tuple[tuple[int, str], ...]] = {
    "sd15": (
        *((256, limit) for limit in ("200MB", "300MB", "350MB", "400MB")),
        *((512, limit) for limit in ("400MB", "600MB", "800MB", "1GB", "1.2GB", "2GB")),
    ),
    "sdxl": tuple((1024, limit) for limit in ("1GB", "2.5GB", "4GB", "6GB", "8GB")),
    "sd35-medium": tuple((1024, limit) for limit in ("1.5GB", "2.5GB", "4GB", "6GB", "8GB")),
    "flux-dev": tuple((512, limit) for limit in ("2GB", "4GB", "6GB", "8GB", "12GB")),
}
"""By model: sides of a square picture in pixels, and limits. SD1.5 is q8_0, the others q4_0."""
BEGIN, END = "<!-- measured by bench/memory.py -->", "<!-- end -->"
"""Around the table in a document."""


def key(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same for measurements of one case."""
    return tuple(result[name] for name in ("model", "size", "limit", "steps", "threads", "device"))


def cases(arguments: argparse.Namespace) -> list[Report]:
    """What is to be measured: the chosen models', or the given sizes and limits of them."""
    chosen = arguments.models.split(",")
    if unknown := set(chosen) - set(CASES):
        raise SystemExit(f"no cases of {', '.join(sorted(unknown))}; known are {', '.join(CASES)}")
    common = {name: getattr(arguments, name) for name in ("steps", "threads", "device")}
    found = []
    for model in chosen:
        of_model = CASES[model]
        if arguments.limits:
            size = arguments.size or of_model[-1][0]
            of_model = tuple((size, limit) for limit in arguments.limits.split(","))
        elif arguments.size:
            of_model = tuple(case for case in of_model if case[0] == arguments.size)
        found += [
            {"model": model, "size": size, "limit": limit, **common} for size, limit in of_model
        ]
    return found


def measure(case: Mapping[str, Any]) -> Report:
    """One case."""
    from sdengine.memory.measuring import measured_apart, synthetic_model
    from sdengine.memory.sizes import parse_size

    load = {"threads": case["threads"], "device": case["device"]}
    options = {"width": case["size"], "height": case["size"], "steps": case["steps"]}
    began = time.perf_counter()
    found = measured_apart(str(synthetic_model(case["model"])), load, options, case["limit"])
    return {
        **case,
        **asdict(found),
        "limit_bytes": parse_size("memory_limit", case["limit"]),
        "wall": round(time.perf_counter() - began, 1),
        "load_average": measuring.load_average(),
    }


def exceeded(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which peaks are above their limits."""
    return [
        f"{r['model']} {r['size']}: {r['peak'] / 1e9:.2f} GB within {r['limit']}"
        for r in results
        if r["peak"] > r["limit_bytes"]
    ]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """All results as Markdown."""
    lines = [
        "| model | size | limit | peak | planned | of it not in files | s/step | s/picture | weights are |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        head = f"| {r['model']} | {r['size']} | {r['limit']} |"
        if r["refused"]:
            lines.append(f"{head} refused: {r['refused']} | | | | | |")
            continue
        sizes = " | ".join(f"{r[name] / 1e9:.2f} GB" for name in ("peak", "planned", "peak_own"))
        lines.append(f"{head} {sizes} | {r['step']:.2f} | {r['image']:.0f} | {r['placement']} |")
    return "\n".join(lines)


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Peaks and seconds of a step over the limits, a column for each model and size."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sdengine"  # the same file for the same numbers
    from matplotlib import pyplot

    made = [r for r in results if not r["refused"]]
    groups = list(dict.fromkeys((r["model"], r["size"]) for r in made))
    if not groups:
        return
    size = (2.8 * len(groups), 4.6)
    figure, axes = pyplot.subplots(
        2, len(groups), figsize=size, layout="constrained", squeeze=False
    )
    for column, group in enumerate(groups):
        rows = sorted(
            (r for r in made if (r["model"], r["size"]) == group), key=lambda r: r["limit_bytes"]
        )
        limits = [r["limit_bytes"] / 1e9 for r in rows]
        memory, speed = axes[0][column], axes[1][column]
        memory.plot(limits, limits, "--", color="grey", label="limit")
        memory.plot(limits, [r["peak"] / 1e9 for r in rows], "o-", label="measured")
        memory.plot(limits, [r["planned"] / 1e9 for r in rows], "x", label="planned")
        memory.set(title=f"{group[0]} {group[1]}²", ylim=(0, None))
        speed.plot(limits, [r["step"] for r in rows], "o-", color="C2")
        speed.set(xlabel="limit, GB", ylim=(0, None))
    axes[0][0].set(ylabel="peak, GB")
    axes[0][0].legend(fontsize="small")
    axes[1][0].set(ylabel="seconds per step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def write_into(document: Path, text: str) -> None:
    """Replace what is between the marks of a document."""
    whole = document.read_text(encoding="utf-8")
    if BEGIN not in whole or END not in whole:
        raise SystemExit(f"{document} has no lines {BEGIN} and {END}")
    before, rest = whole.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(CASES), help="with commas")
    parser.add_argument("--size", type=int, help="only this one, or that of --limits")
    parser.add_argument("--limits", help="with commas, instead of the usual ones")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--json", type=Path, help="default: results/memory-*.json in this folder")
    parser.add_argument("--plot", type=Path, help="draw, as SVG")
    parser.add_argument("--docs", type=Path, help="a document with marks, to write the table into")
    parser.add_argument("--draw-only", action="store_true", help="draw what is in the file")
    arguments = parser.parse_args()
    machine = measuring.machine()
    path = arguments.json or measuring.HERE / "results" / f"memory-{measuring.slug(machine)}.json"
    known = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    results = {key(result): result for result in known}
    for case in () if arguments.draw_only else cases(arguments):
        if key(case) in results and not arguments.again:
            continue
        results[key(case)] = found = measure(case)
        print(f"  {case['model']} {case['size']} {case['limit']}: {found['wall']} s", flush=True)
        measuring.write_json(path, {"machine": machine, "results": _sorted(results.values())})
    ordered = _sorted(results.values())
    print(table(ordered))
    if arguments.plot:
        plot(ordered, arguments.plot)
    if arguments.docs:
        write_into(arguments.docs, table(ordered))
    if above := exceeded(ordered):
        sys.exit("above their limits: " + "; ".join(above))


def _sorted(results: Any) -> list[Report]:
    names = list(CASES)
    return sorted(results, key=lambda r: (names.index(r["model"]), r["size"], r["limit_bytes"]))


if __name__ == "__main__":
    main()
