"""Step caching: what it costs in likeness and what it saves (docs/step-caching.md).

``python bench/step_cache.py demo --captions 50`` runs the demo models on held-out captions with every mode, and
compares with the run without a cache: relative L2 error of the final latents, PSNR and SSIM of the pictures, the
share of captions that come out right, and processor seconds of the steps.

``python bench/step_cache.py parts MODEL --size 512`` times the parts of a full-size denoiser, of a UNet or of a
Stable Diffusion 3, for a pair of branches, and what a run of 20 steps takes by that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
STEPS, GUIDANCE = 20, 3.0
SEED = 0
Array = NDArray[np.float64]
# Wang et al. 2004, "Image quality assessment": the window's deviation, and constants against division by nothing.
SSIM_SIGMA, SSIM_C1, SSIM_C2 = 1.5, (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(found: Array, expected: Array) -> float:
    """Peak signal to noise ratio of pictures 0..255, in dB; at most 99."""
    error = float(np.mean((found - expected) ** 2))
    return min(99.0, 10 * float(np.log10(255**2 / error))) if error else 99.0


def ssim(found: Array, expected: Array) -> float:
    """Structural similarity of pictures ``[H, W, 3]``, 0..255; the mean over pixels and channels."""
    from scipy.ndimage import gaussian_filter

    def mean(x: Array) -> Any:
        return gaussian_filter(x, (SSIM_SIGMA, SSIM_SIGMA, 0))

    a, b = mean(found), mean(expected)
    spread_a, spread_b = mean(found**2) - a**2, mean(expected**2) - b**2
    both = mean(found * expected) - a * b
    likeness = (2 * a * b + SSIM_C1) * (2 * both + SSIM_C2)
    return float(np.mean(likeness / ((a**2 + b**2 + SSIM_C1) * (spread_a + spread_b + SSIM_C2))))


def demo(captions: int) -> dict[str, Any]:
    """Both demo models, every mode."""
    sys.path.insert(0, str(ROOT))
    import sdengine
    from demo.checker import check
    from demo.evaluate import HELD_OUT
    from demo.shapes import read_held_out
    from sdengine.api import DEMO_MODEL
    from sdengine.step_cache import MODES

    tests = read_held_out(HELD_OUT)
    tests = tests[:: max(1, len(tests) // captions)][:captions]
    report: dict[str, Any] = {"captions": len(tests), "steps": STEPS}
    for title, path in (("UNet", DEMO_MODEL), ("transformer", ROOT / "demo" / "dit.gguf")):
        pipe = sdengine.load(path, threads=1)
        plain: list[tuple[Array, Array]] = []
        seconds = 0.0
        for mode in MODES:
            made, right, reused, cpu = [], 0, 0.0, 0.0
            for test in tests:
                run = pipe.start(
                    *(test.caption, None),
                    **{"steps": STEPS, "guidance_scale": GUIDANCE, "seed": test.seed},
                    cache=mode,
                )
                began = time.process_time()
                while not run.done:
                    run.step()
                cpu += time.process_time() - began
                result = run.result()
                right += check(result.image).matches(test.triple)
                reused += run.reused
                made.append((np.float64(result.latents), np.asarray(result.image, np.float64)))
            plain, seconds = (made, cpu) if mode == "off" else (plain, seconds)
            pairs = list(zip(made, plain, strict=True))
            errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for (a, _), (b, _) in pairs]
            report[f"{title} {mode}"] = {
                "relative_l2": round(float(np.mean(errors)), 4),
                "psnr": round(float(np.mean([psnr(a, b) for (_, a), (_, b) in pairs])), 1),
                "ssim": round(float(np.mean([ssim(a, b) for (_, a), (_, b) in pairs])), 4),
                "right": round(right / len(tests), 3),
                "reused": round(reused / len(tests), 3),
                "cpu_seconds": round(cpu, 2),
                "speed_up": round(seconds / cpu, 2),
            }
    return report


def _cpu(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def parts(model: Path, size: int, repeats: int) -> dict[str, Any]:
    """Processor seconds of a denoiser's parts, alternating, after one warm-up."""
    import sdengine
    from sdengine.step_cache import FIGURES, figures

    network = sdengine.load(model, threads=1, prompt_cache=False).denoiser
    random = np.random.default_rng(SEED)

    def values(*shape: int) -> Any:
        return random.standard_normal(shape, np.float32)

    side, times = size // 8, np.full(2, 500.0, np.float32)
    if network.reuse == "features":
        given = {"latents": values(2, 4, side, side), "context": values(2, 77, 768)}
        given["timesteps"] = times
        kept = network.run(given, {"part": 1})
        runs = {
            "whole": lambda: network.run(given, {}),
            "shallow": lambda: network.run({**given, "features": kept["features"]}, {"part": 2}),
        }
    else:
        given = {"latents": values(2, 16, side, side), "context": values(2, 154, 4096)}
        given |= {"pooled": values(2, 2048), "timesteps": times}
        first = network.run(given, {"part": 3})
        hidden = {**given, **{k: v for k, v in first.items() if k != "change"}}
        rest = network.run(hidden, {"part": 4})
        last = {**hidden, "residual": rest["residual"]}
        runs = {
            "whole": lambda: network.run(given, {}),
            "first": lambda: network.run(given, {"part": 3}),
            "rest": lambda: network.run(hidden, {"part": 4}),
            "last": lambda: network.run(last, {"part": 5}),
        }
    taken = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, work in runs.items():
            taken[name].append(_cpu(work))
    found = {name: round(float(np.median(seconds[1:])), 3) for name, seconds in taken.items()}
    report: dict[str, Any] = {"model": model.name, "size": size, "cpu_seconds": found}
    for mode in FIGURES[network.reuse]:
        interval, _, fresh = figures(mode, network.reuse, STEPS) or (1, 0.0, [])
        report[mode] = _run_of(found, full_steps(interval, fresh))
    return report


def full_steps(interval: int, fresh: list[int]) -> int:
    """Full steps of a run where as many are taken over as the mode allows."""
    full, age = 0, interval
    for step in range(STEPS):
        age = interval if step in fresh else age + 1
        if age >= interval:
            full, age = full + 1, 0
    return full


def _run_of(found: dict[str, float], full: int) -> dict[str, Any]:
    """20 steps of which `full` are full."""
    if "shallow" in found:
        taken = full * found["whole"] + (STEPS - full) * found["shallow"]
    else:
        always = STEPS * found["first"]
        taken = always + full * found["rest"] + (STEPS - full) * found["last"]
    return {"full_steps": full, "speed_up_at_most": round(STEPS * found["whole"] / taken, 2)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    quality = commands.add_parser("demo", help="likeness and time of the demo models")
    quality.add_argument("--captions", type=int, default=50)
    cost = commands.add_parser("parts", help="time of a full-size denoiser's parts")
    cost.add_argument("model", type=Path)
    cost.add_argument("--size", type=int, default=512)
    cost.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.command == "demo":
        report = demo(options.captions)
    else:
        report = parts(options.model, options.size, options.repeats)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
