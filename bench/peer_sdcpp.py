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
from typing import Any

from measuring import PROMPT, Laps, peak_memory

LATENT_SECONDS = re.compile(r"latent \d+ decoded, taking ([\d.]+)s")
ENCODE_SECONDS = re.compile(r"get_learned_condition completed, taking ([\d.]+)s")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load, encode, evaluate and decode once in this process."""
    import ctypes

    import stable_diffusion_cpp as peer

    said: list[str] = []

    def keep(level: int, text: bytes, data: Any) -> None:
        said.append(text.decode(errors="replace"))

    keep_native = peer.sd_log_callback(keep)  # a name, because the library does not own it
    peer.sd_set_log_callback(keep_native, ctypes.c_void_p(0))
    started = time.perf_counter()
    pipe = peer.StableDiffusion(
        model_path=str(arguments.model),
        wtype=arguments.weight_type,
        n_threads=arguments.threads,
        diffusion_flash_attn=arguments.flash,
        diffusion_conv_direct=arguments.direct,
        vae_conv_direct=arguments.vae_direct,
        vae_decode_only=True,
        verbose=True,
    )
    loaded = time.perf_counter()
    laps, memory = Laps(), [0]

    def report() -> dict[str, Any]:
        log = "".join(said)
        return {
            "load": round(loaded - started, 3),
            "encode": _seconds(ENCODE_SECONDS, log),
            "unet": laps.summary(warm_ups=min(1, arguments.steps - 1)),
            "unet_peak_memory": memory[0],
            "vae": {"first": _seconds(LATENT_SECONDS, log)},
            "peak_memory": peak_memory(),
        }

    def progress(step: int, steps: int, seconds: float) -> None:
        if step == 0:
            laps.restart()
            return
        laps.lap()
        memory[0] = peak_memory()
        if step == steps and not arguments.vae:
            # The binding has no way to leave the decoding out; this process has nothing else to do.
            print("\n" + json.dumps(report()), flush=True)
            os._exit(0)

    pipe.generate_image(
        prompt=PROMPT,
        cfg_scale=1.0,
        sample_method="euler",
        sample_steps=arguments.steps,
        width=arguments.size,
        height=arguments.size,
        seed=1,
        progress_callback=progress,
    )
    return report()


def _seconds(pattern: re.Pattern[str], log: str) -> float | None:
    found = pattern.search(log)
    return float(found.group(1)) if found else None


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


def convert(source: str, target: str, weight_type: str) -> dict[str, Any]:
    """Its own quantized file, so that loading is measured at its best too."""
    import stable_diffusion_cpp as peer

    done = peer.convert(
        source.encode(),
        b"",
        target.encode(),
        peer.stable_diffusion.GGML_TYPE_MAP[weight_type],
        b"",
        True,
    )
    return {"converted": bool(done)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", action="store_true", help="print only what was built and how")
    parser.add_argument("--convert-to", help="write --model as a GGUF of --weight-type here")
    parser.add_argument("--model")
    parser.add_argument("--weight-type", default="default")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--flash", action="store_true")
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--vae-direct", action="store_true")
    parser.add_argument("--vae", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    if arguments.facts:
        report = facts()
    elif arguments.convert_to:
        report = convert(arguments.model, arguments.convert_to, arguments.weight_type)
    else:
        report = measure(arguments)
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
