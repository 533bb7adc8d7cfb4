"""The engine on a full-size synthetic model: loading, one evaluation, decoding, memory.

``python bench/step.py --size 256,512 --weight-type f16,q8_0,q4_0 --json out.json``

Every combination is measured in a process of its own. Seconds are medians after one warm-up.
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
    """One model at one size, in this process."""
    import sdengine
    from sdengine import _core

    started = time.perf_counter()
    pipe = sdengine.load(arguments.model, threads=arguments.threads, prompt_cache=False)
    load = time.perf_counter() - started
    report: dict[str, Any] = {"load": round(load, 3)}

    # A prompt and its negative prompt are encoded together, so this is the time of two.
    report["encode_pair"], _ = measuring.timed(lambda: pipe.encode_prompt(measuring.PROMPT, ""), 3)

    report["peak_gflops_per_thread"] = round(_core.kernels.peak_gflops(), 1)
    latents, context = measuring.denoiser_inputs(arguments.size)
    cond = sdengine.Conditioning(context)
    report["unet"], noise = measuring.timed(
        lambda: pipe.predict(latents, measuring.TIMESTEP, cond), arguments.repeats
    )
    report["unet_probe"] = measuring.probe(noise)
    report["unet_peak_memory"] = measuring.peak_memory()
    report["unet_activations"] = pipe.denoiser.activation_bytes
    report["unet_graphs_built"] = pipe.graphs_built["unet"]

    if arguments.vae:
        report["vae"], picture = measuring.timed(
            lambda: pipe.decode_latents(latents, output_type="numpy"), 1
        )
        report["vae_probe"] = measuring.probe(picture)
        report["vae_activations"] = pipe.vae.decoder.planned_bytes(
            {"latents": list(latents.shape)}, {}
        )
    report["peak_memory"] = measuring.peak_memory()

    if arguments.guided:
        # Guidance evaluates the prompt and the negative prompt as one batch.
        pair, contexts = measuring.denoiser_inputs(arguments.size, batch=2)
        both = sdengine.Conditioning(contexts)
        report["unet_guided"], _ = measuring.timed(
            lambda: pipe.predict(pair, measuring.TIMESTEP, both), arguments.repeats
        )
        report["guided_peak_memory"] = measuring.peak_memory()
    return report


def run(
    weight_type: str,
    size: int,
    threads: int,
    repeats: int,
    *,
    guided: bool = True,
    vae: bool = True,
) -> dict[str, Any]:
    """The same in a process of its own, from a warm file cache."""
    path = synthetic.model(weight_type)
    measuring.warm(path)
    options = ["--child", "--model", str(path), "--size", str(size), "--threads", str(threads)]
    options += ["--repeats", str(repeats)]
    options += ["--no-guided"] * (not guided) + ["--no-vae"] * (not vae)
    report = {"weight_type": weight_type, "size": size, "threads": threads}
    report |= measuring.child("step.py", options, threads)
    return {**report, "load_average": measuring.load_average()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="256,512", help="pixels, several with commas")
    parser.add_argument("--weight-type", default="f16,q8_0,q4_0", help="several with commas")
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument("--repeats", type=int, default=3, help="evaluations after the warm-up")
    parser.add_argument("--guided", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--vae", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        arguments.size = int(arguments.size)
        print("\n" + json.dumps(measure(arguments)))
        return

    threads = arguments.threads or default_threads()
    machine = measuring.machine()
    measuring.bind_to_cores(threads)
    results = []
    print(f"{'type':6} {'size':>5}  {HEADINGS}")
    for weight_type in arguments.weight_type.split(","):
        for size in map(int, arguments.size.split(",")):
            result = run(
                weight_type,
                size,
                threads,
                arguments.repeats,
                guided=arguments.guided,
                vae=arguments.vae,
            )
            print(row(result), flush=True)
            results.append(result)
    if arguments.json:
        report = {"machine": machine, "threads": threads, "results": results}
        measuring.write_json(arguments.json, report)


def default_threads() -> int:
    """One per physical core, as the engine itself chooses."""
    from sdengine import _core

    return _core.physical_cores()


HEADINGS = "load s  text s  unet s  first s  guided s   vae s  unet GB  peak GB  activations MB"


def row(result: dict[str, Any]) -> str:
    """One line of the table; seconds are medians, GB are 10^9 bytes."""
    guided = result.get("unet_guided", {}).get("median", float("nan"))
    vae = result.get("vae", {}).get("median", float("nan"))
    return (
        f"{result['weight_type']:6} {result['size']:5d}  {result['load']:6.2f}"
        f" {result['encode_pair']['median']:7.2f} {result['unet']['median']:7.2f}"
        f" {result['unet']['first']:8.2f} {guided:9.2f} {vae:7.2f}"
        f" {result['unet_peak_memory'] / 1e9:8.2f} {result['peak_memory'] / 1e9:8.2f}"
        f" {result['unet_activations'] / 1e6:15.0f}"
    )


if __name__ == "__main__":
    main()
