"""One measurement of stable-diffusion.cpp through its Python binding; a child of ``compare.py``.

A step at guidance 1 with the Euler sampler is one evaluation of the denoiser and nothing else that
costs time, so the time between two progress reports is the seconds of an evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import cases
import measuring
import synthetic

LATENT_SECONDS = re.compile(r"latent \d+ decoded, taking ([\d.]+)s")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load and evaluate in this process, up to the part that the case is about."""
    import ctypes

    import stable_diffusion_cpp as peer

    case = cases.by_name(arguments.case)
    converted = file(case, arguments.weight_type)
    path = converted if converted.is_file() else case.file()
    decodes = case.part == "decoder"
    said: list[str] = []

    def keep(level: int, text: bytes, data: Any) -> None:
        said.append(text.decode(errors="replace"))

    keep_native = peer.sd_log_callback(keep)  # a name, because the library does not own it
    peer.sd_set_log_callback(keep_native, ctypes.c_void_p(0))
    started = time.perf_counter()
    pipe = peer.StableDiffusion(
        model_path=str(path),
        wtype="default" if path == converted else arguments.weight_type,
        n_threads=arguments.threads,
        diffusion_flash_attn=arguments.flash,
        diffusion_conv_direct=arguments.direct,
        vae_conv_direct=arguments.vae_direct,
        vae_decode_only=True,
        verbose=True,
    )
    loaded = time.perf_counter() - started
    loading = measuring.forget_peak()
    laps = measuring.Laps()

    def report(summary: dict[str, Any]) -> dict[str, Any]:
        return {**summary, "load": round(loaded, 3), **loading, **measuring.evaluating_peak()}

    def progress(step: int, steps: int, seconds: float) -> None:
        if step == 0:
            laps.restart()
            return
        laps.lap()
        if step == steps and not decodes:
            # The binding has no way to leave the decoding out; this process has nothing else to do.
            print("\n" + json.dumps(report(laps.summary(case.warm_ups))), flush=True)
            os._exit(0)

    size = arguments.size or case.size
    pipe.generate_image(
        prompt=measuring.PROMPT,
        cfg_scale=1.0,
        guidance=cases.GUIDANCE,
        sample_method="euler",
        sample_steps=1 if decodes else case.warm_ups + case.runs,
        width=size,
        height=size,
        seed=1,
        progress_callback=progress,
    )
    seconds = _seconds(LATENT_SECONDS, "".join(said))
    return report({"first": seconds, "seconds": [seconds], "median": seconds})


def _seconds(pattern: re.Pattern[str], log: str) -> float:
    found = pattern.search(log)
    if not found:
        raise RuntimeError(f"it did not say how long it took:\n{log[-2000:]}")
    return float(found.group(1))


def facts() -> dict[str, Any]:
    """Its version, and whether it was built with the fast matrix products."""
    import ctypes
    from importlib.metadata import version

    import stable_diffusion_cpp as peer

    system = " ".join(peer.sd_get_system_info().decode().split())
    built = [s for s in ("AVX512", "AVX2", "AVX", "NEON") if f"{s} = 1" in system]
    library = ctypes.CDLL(peer.stable_diffusion_cpp._lib._name)
    return {
        "version": version("stable-diffusion-cpp-python"),
        "instructions": built[0] if built else "none",
        "llamafile": bool(library.ggml_cpu_has_llamafile()),
    }


def file(case: cases.Case, weight_type: str) -> Path:
    """Where a model converted by stable-diffusion.cpp is kept."""
    return synthetic.cache_folder() / f"sdcpp-{case.model}-{weight_type}.gguf"


def convert(case: cases.Case, weight_type: str) -> dict[str, Any]:
    """Write its own quantized file, where making the type while loading takes minutes."""
    import stable_diffusion_cpp as peer

    path = file(case, weight_type)
    unfinished = path.with_name(f"unfinished-{path.name}")
    if not path.is_file():
        kind = peer.stable_diffusion.GGML_TYPE_MAP[weight_type]
        whole = peer.convert(
            str(case.file()).encode(), b"", str(unfinished).encode(), kind, b"", True
        )
        if not whole:
            raise RuntimeError(f"{path.name} was not converted")
        unfinished.replace(path)
    return {"converted": path.name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", action="store_true", help="print only what was built and how")
    parser.add_argument("--convert", action="store_true", help="only write the type's file")
    parser.add_argument("--case", default="unet-512")
    parser.add_argument("--size", type=int, help="other than the case's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--weight-type",
        default="f16",
        help="made while loading, or by --convert",
    )
    parser.add_argument("--flash", action="store_true")
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--vae-direct", action="store_true")
    arguments = parser.parse_args()
    if arguments.facts:
        report = facts()
    elif arguments.convert:
        report = convert(cases.by_name(arguments.case), arguments.weight_type)
    else:
        report = measure(arguments)
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
