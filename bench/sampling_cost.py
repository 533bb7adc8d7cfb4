"""What a sampler's step costs on the host, beside the evaluations of the network.

Latents [1, 4, 128, 128] are those of a picture of 1024 x 1024. The denoiser gives back an array that is ready, so that
what is measured is the sampler, its noise, and the copies to and from Python. The target is 1 % of the seconds that the
evaluations of a step take.

    python bench/sampling_cost.py --unet-seconds 1.5
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from sdengine import _core
from sdengine.sampling import SAMPLERS, sigmas

Array = npt.NDArray[np.float32]
SHAPE = (1, 4, 128, 128)


class Trivial:
    """A denoiser whose answer is ready, and a clock that counts its calls."""

    def __init__(self) -> None:
        self.answer: Array = np.zeros(SHAPE, np.float32)
        self.calls = 0

    def __call__(self, x: Array, sigma: float) -> tuple[Array, Array]:
        self.calls += 1
        return self.answer, self.answer


def steps_of(name: str, steps: int, options: dict[str, Any]) -> tuple[list[float], float]:
    """Seconds of each step but the last, and the evaluations that a step makes."""
    levels = sigmas("karras", steps)
    x = np.full(SHAPE, levels[0], np.float32)
    run, denoiser = _core.Sampler(name, x, levels, [1], **options), Trivial()
    seconds = []
    for _ in range(steps - 1):
        began = time.perf_counter()
        run.step(denoiser)
        seconds.append(time.perf_counter() - began)
    return seconds, denoiser.calls / (steps - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--unet-seconds", type=float, default=1.5, help="of one evaluation")
    arguments = parser.parse_args()
    print(f"{'sampler':20}{'evaluations':>12}{'ms a step':>11}{'slowest':>9}{'share':>9}")
    for name in SAMPLERS:
        seconds: list[float] = []
        for _ in range(arguments.repeats):
            some, evaluations = steps_of(name, arguments.steps, {})
            seconds += some
        median, slowest = statistics.median(seconds), max(seconds)
        share = median / (evaluations * arguments.unet_seconds)
        print(f"{name:20}{evaluations:12.2f}{median * 1e3:11.3f}{slowest * 1e3:9.3f}{share:9.4%}")


if __name__ == "__main__":
    main()
