"""How long it takes to begin: importing the engine and its peers, and loading a model of full size.

``python bench/start.py --model sd15,sdxl --weight-type f16,q8_0``

Every figure is the median of several processes, from a warm file cache. Importing is timed inside Python, from before
the import to after it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measuring
import synthetic

IMPORTS = {
    "sdengine": "import sdengine",
    "numpy": "import numpy",
    "stable-diffusion.cpp": "import stable_diffusion_cpp",
    "diffusers": "from diffusers import StableDiffusionPipeline",
    "OpenVINO": "import openvino",
}
"""What a program begins with; numpy alone, because every one of them wants it."""
TIMED = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"


def importing(statement: str, turns: int) -> dict[str, Any]:
    """Seconds of an import, in `turns` processes; ``{"failure": ...}`` where it does not work."""
    seconds = []
    for _ in range(turns):
        done = subprocess.run(
            [sys.executable, "-c", TIMED.format(statement)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return {"failure": done.stderr.strip().splitlines()[-1]}
        seconds.append(float(done.stdout.split()[-1]))
    return {"median": statistics.median(seconds), "seconds": seconds}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load a model in this process."""
    import sdengine

    began = time.perf_counter()
    path = Path(arguments.model)
    pipe = sdengine.load(
        path, threads=arguments.threads, prompt_cache=False, **synthetic.beside(path)
    )
    seconds = time.perf_counter() - began
    del pipe
    return {"seconds": seconds, "peak_memory": measuring.peak_memory()}


def loading(path: Path, threads: int, turns: int) -> dict[str, Any]:
    """Seconds and memory of loading a file, in `turns` processes."""
    measuring.warm(path)
    options = ["--child", "--model", str(path), "--threads", str(threads)]
    reports = [measuring.child("start.py", options, threads) for _ in range(turns)]
    seconds = [report["seconds"] for report in reports]
    return {
        "median": statistics.median(seconds),
        "seconds": seconds,
        "peak_memory": statistics.median(report["peak_memory"] for report in reports),
        "file": path.stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sd15", help="with commas; see synthetic.py")
    parser.add_argument("--weight-type", default="f16,q8_0", help="with commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print("\n" + json.dumps(measure(arguments)))
        return
    report: dict[str, Any] = {"machine": measuring.machine(), "importing": {}, "loading": {}}
    for name, statement in IMPORTS.items():
        found = importing(statement, arguments.turns)
        report["importing"][name] = found
        print(f"import {name:21} {found.get('failure') or format(found['median'], '.3f') + ' s'}")
    for model in arguments.model.split(","):
        for weight_type in arguments.weight_type.split(","):
            path = synthetic.model(weight_type, name=model)
            found = loading(path, arguments.threads, arguments.turns)
            report["loading"][f"{model} {weight_type}"] = found
            print(
                f"load {model} {weight_type:8} {found['median']:7.3f} s of {found['file'] / 1e9:.2f} GB,"
                f" {found['peak_memory'] / 1e9:.2f} GB resident",
                flush=True,
            )
    report["load_average"] = measuring.load_average()
    if arguments.json:
        measuring.write_json(arguments.json, report)


if __name__ == "__main__":
    main()
