"""What ControlNets cost on a full-size synthetic Stable Diffusion 1.5: a step, and memory.

``python bench/control.py --size 512 --weight-type q8_0 --nets 0,1,2 --threads 4``

Every number of networks is measured in a process of its own, which makes the steps of one picture.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import shapes
import synthetic
from step import default_threads


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The steps of a picture that follows as many control pictures as there are networks."""
    import sdengine

    nets = arguments.controlnets
    pipe = sdengine.load(arguments.model, threads=arguments.threads, controlnets=nets)
    random = np.random.default_rng(0)
    size = (arguments.size, arguments.size, 3)
    hints = [random.integers(0, 256, size, np.uint8) for _ in nets]
    run = pipe.start(
        measuring.PROMPT,
        width=arguments.size,
        height=arguments.size,
        steps=arguments.steps + 1,
        sampler="euler",
        guidance_scale=arguments.guidance,
        seed=1,
        control_images=hints or None,
    )
    report: dict[str, Any] = {"memory_text": measuring.peak_memory()}
    laps = measuring.Laps()
    while not run.done:
        run.step()
        laps.lap()
    report["steps"] = laps.summary(warm_ups=1)
    report["memory_steps"] = measuring.peak_memory()
    report["finite"] = bool(np.isfinite(run.latents).all())
    return report


def run(arguments: argparse.Namespace, nets: int, threads: int) -> dict[str, Any]:
    """The same in a process of its own, from a warm file cache."""
    model = synthetic.model(arguments.weight_type)
    files = [
        synthetic.network(f"sd15-control-{number}", shapes.controlnet(shapes.FULL), number)
        for number in range(nets)
    ]
    for path in (model, *files):
        measuring.warm(path)
    options = ["--child", "--model", str(model), "--threads", str(threads)]
    for name in ("size", "steps", "guidance"):
        options += [f"--{name}", str(getattr(arguments, name))]
    for path in files:
        options += ["--controlnet", str(path)]
    report = measuring.child("control.py", options, threads)
    return {"nets": nets, **report, "load_average": measuring.load_average()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--weight-type", default="q8_0", help="of the model; the networks are f16")
    parser.add_argument("--nets", default="0,1,2", help="how many, several with commas")
    parser.add_argument("--steps", type=int, default=3, help="after the warm-up")
    parser.add_argument("--guidance", type=float, default=7.5, help="1 halves the work")
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument(
        "--controlnet", dest="controlnets", action="append", default=[], help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.child:
        print("\n" + json.dumps(measure(arguments)))
        return
    threads = arguments.threads or default_threads()
    machine = measuring.machine()
    measuring.bind_to_cores(threads)
    results: list[dict[str, Any]] = []
    print(HEADINGS)
    for nets in map(int, arguments.nets.split(",")):
        results.append(run(arguments, nets, threads))
        print(row(results[-1], results[0]), flush=True)
    if arguments.json:
        report = {"machine": machine, "threads": threads, "size": arguments.size}
        report |= {"weight_type": arguments.weight_type, "guidance": arguments.guidance}
        measuring.write_json(arguments.json, {**report, "results": results})


HEADINGS = "nets  step_s  cpu_s  ratio  steps_GB"


def row(result: dict[str, Any], first: dict[str, Any]) -> str:
    """One line of the table; the ratio is that of processor seconds, to the first line's."""
    steps = result["steps"]
    ratio = steps["cpu_median"] / first["steps"]["cpu_median"]
    return (
        f"{result['nets']:4d} {steps['median']:7.2f} {steps['cpu_median']:6.2f} {ratio:6.2f}"
        f" {result['memory_steps'] / 1e9:9.2f}"
    )


if __name__ == "__main__":
    main()
