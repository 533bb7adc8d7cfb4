"""A whole picture on a full-size synthetic model: text, steps, decoding, and the memory of each.

``python bench/picture.py --model sdxl --size 1024 --weight-type q8_0,q4_0 --threads 4``

Every combination is measured in a process of its own, which makes one picture.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import measuring
import synthetic


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One picture of one model, in this process."""
    with measuring.UnmappedPeak() as unmapped:
        report = _measure(arguments, unmapped)
    return {**report, "unmapped_peak": unmapped.highest}


def _measure(arguments: argparse.Namespace, unmapped: measuring.UnmappedPeak) -> dict[str, Any]:
    import sdengine

    started = time.perf_counter()
    pipe = sdengine.load(arguments.model, threads=arguments.threads, prompt_cache=False)
    report: dict[str, Any] = {"load": round(time.perf_counter() - started, 3)}
    report["memory_loaded"] = measuring.peak_memory()
    distilled = (
        pipe.model.reads_guidance
    )  # such a model is told its guidance; a second branch is extra
    scale = "true_cfg_scale" if distilled else "guidance_scale"
    run = pipe.start(
        measuring.PROMPT,
        width=arguments.size,
        height=arguments.size,
        steps=arguments.steps,
        seed=1,
        tiled_diffusion=arguments.tiled,
        **{scale: arguments.guidance},
    )
    report["memory_text"] = measuring.peak_memory()
    laps = measuring.Laps()
    while not run.done:
        run.step()
        laps.lap()
    report["steps"] = laps.summary()
    report["memory_steps"] = measuring.peak_memory()
    report["unmapped_steps"] = unmapped.highest
    report["denoiser_activations"] = pipe.denoiser.activation_bytes
    result = run.result()
    report["text"] = round(result.timings["encode"], 3)
    report["decode"] = round(result.timings["decode"], 3)
    side, channels = arguments.size // measuring.FACTOR, pipe.model.latents.channels
    report["decoder_activations"] = pipe.vae.decoder.planned_bytes(
        {"latents": [1, channels, side, side]}, {}
    )
    report["peak_memory"] = measuring.peak_memory()
    return report


def run(
    model: str,
    weight_type: str,
    size: int,
    steps: int,
    guidance: float,
    threads: int,
    tiled: bool = False,
) -> dict[str, Any]:
    """The same in a process of its own, from a warm file cache."""
    path = synthetic.model(weight_type, name=model)
    measuring.warm(path)
    options = ["--child", "--model", str(path), "--size", str(size), "--steps", str(steps)]
    options += ["--guidance", str(guidance), "--threads", str(threads)]
    options += ["--tiled"] * tiled
    report = {"model": model, "weight_type": weight_type, "size": size, "guidance": guidance}
    before = measuring.load_average()
    report |= measuring.child("picture.py", options, threads)
    return {**report, "threads": threads, "load_average": [before, measuring.load_average()]}


HEADINGS = (
    "model        type  size guidance  load s  text s  step s decode s"
    "  loaded GB  text GB  steps GB  peak GB  unmapped GB"
)


def row(result: dict[str, Any]) -> str:
    """One line of the table; GB are 10^9 bytes, each the highest so far; the last leaves mapped weights out."""
    memory = (result[f"memory_{stage}"] for stage in ("loaded", "text", "steps"))
    loaded, text, steps = (nbytes / 1e9 for nbytes in memory)
    return (
        f"{result['model']:11} {result['weight_type']:5} {result['size']:5d}"
        f" {result['guidance']:8.1f} {result['load']:7.2f} {result['text']:7.2f}"
        f" {result['steps']['median']:7.2f} {result['decode']:8.2f} {loaded:10.2f} {text:8.2f}"
        f" {steps:9.2f} {result['peak_memory'] / 1e9:8.2f} {result['unmapped_peak'] / 1e9:12.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sdxl", help="of synthetic.py, several with commas")
    parser.add_argument("--weight-type", default="q8_0,q4_0", help="several with commas")
    parser.add_argument("--size", default="1024", help="pixels, several with commas")
    parser.add_argument("--guidance", default="5,1", help="several with commas; 1 is one branch")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--tiled", action="store_true", help="the denoiser sees tiles")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        arguments.size, arguments.guidance = int(arguments.size), float(arguments.guidance)
        print("\n" + json.dumps(measure(arguments)))
        return
    machine, results = measuring.machine(), []
    print(HEADINGS)
    for model in arguments.model.split(","):
        for weight_type in arguments.weight_type.split(","):
            for size in map(int, arguments.size.split(",")):
                for guidance in map(float, arguments.guidance.split(",")):
                    results.append(
                        run(
                            *(model, weight_type, size, arguments.steps, guidance),
                            *(arguments.threads, arguments.tiled),
                        )
                    )
                    print(row(results[-1]), flush=True)
    if arguments.json:
        measuring.write_json(arguments.json, {"machine": machine, "results": results})


if __name__ == "__main__":
    main()
