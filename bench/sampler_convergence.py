"""Orders of convergence of the samplers, where the exact answer is known.

Data is Gaussian of deviation 1, so that the denoiser is D(x, s) = x / (1 + s^2) and x follows sqrt(1 + s^2). Every
sampler without noise goes from s = 10 to s = 0.1 in 8 to 256 steps. Steps are even in log s, but for short ones at both
ends: multistep samplers begin with a step of first order, and some end with one, whose error would hide that of the
others. (Samplers that are made for even steps get even ones; their names say so.) The fitted order is the slope of log
error over log steps, from 16 steps on and down to errors of float32's rounding.

    python bench/sampler_convergence.py --plot docs/images/sampler-convergence.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdengine.sampling import sample

Array = npt.NDArray[np.float32]
FIRST, LAST = 10.0, 0.1
STEPS = (8, 16, 32, 64, 128, 256)
ROUNDING = 5e-6
"""Errors below this are rounding's more than the sampler's: float32, summed over 256 steps."""

RUNS: dict[str, tuple[str, dict[str, Any], int]] = {
    "euler": ("euler", {}, 1),
    "euler_a, eta 0": ("euler_a", {"eta": 0.0}, 1),
    "ddim": ("ddim", {}, 1),
    "euler_cfg_pp": ("euler_cfg_pp", {}, 1),
    "heunpp2": ("heunpp2", {}, 1),
    "euler_ge": ("euler_ge", {}, 1),
    "heun": ("heun", {}, 2),
    "dpm2": ("dpm2", {}, 2),
    "dpm2_a, eta 0": ("dpm2_a", {"eta": 0.0}, 2),
    "dpm++2m": ("dpm++2m", {}, 2),
    "dpm++2mv2, even": ("dpm++2mv2", {}, 2),
    "dpm++2m_cfg_pp": ("dpm++2m_cfg_pp", {}, 2),
    "dpm++2s_a, eta 0": ("dpm++2s_a", {"eta": 0.0}, 2),
    "dpm++sde, eta 0": ("dpm++sde", {"eta": 0.0}, 2),
    "dpm++2m_sde, eta 0": ("dpm++2m_sde", {"eta": 0.0}, 2),
    "dpm++2m_sde_heun, eta 0": ("dpm++2m_sde_heun", {"eta": 0.0}, 2),
    "dpm++3m_sde, eta 0": ("dpm++3m_sde", {"eta": 0.0}, 2),
    "res_multistep": ("res_multistep", {}, 2),
    "res_multistep_a, eta 0": ("res_multistep_a", {"eta": 0.0}, 2),
    "res_2s": ("res_2s", {}, 2),
    "ipndm, even": ("ipndm", {}, 2),
    "ipndm_v, even": ("ipndm_v", {}, 2),
    "lms": ("lms", {}, 3),
    "deis, order 1": ("deis", {"order": 1}, 1),
    "deis": ("deis", {}, 2),
    "deis, order 3": ("deis", {"order": 3}, 3),
    "unipc_bh1, order 1": ("unipc_bh1", {"order": 1}, 2),
    "unipc_bh1": ("unipc_bh1", {}, 3),
    "unipc_bh1, order 3": ("unipc_bh1", {"order": 3}, 4),
    "unipc_bh2, order 1": ("unipc_bh2", {"order": 1}, 2),
    "unipc_bh2": ("unipc_bh2", {}, 3),
    "unipc_bh2, order 3": ("unipc_bh2", {"order": 3}, 4),
}
"""A name for the table: sampler, options, and the order that it is documented to have."""


def denoiser(x: Array, sigma: float) -> tuple[Array, Array]:
    """The best estimate of Gaussian data, with and without guidance alike."""
    estimate = (x / (1 + sigma**2)).astype(np.float32)
    return estimate, estimate


def levels_of(steps: int, even: bool) -> Array:
    """Levels from first to last; the end steps' squared length is as the cube of the others'."""
    short = 1 / steps if even else steps**-1.5
    inner = np.linspace(short, 1 - short, steps - 1)
    way = np.concatenate([[0.0], inner, [1.0]])
    return (FIRST * (LAST / FIRST) ** way).astype(np.float32)


def error(name: str, steps: int) -> float:
    """Relative error of a run of the table at the last level."""
    sampler, options, _ = RUNS[name]
    levels = levels_of(steps, name.endswith("even"))
    x = np.full((1, 1), 3.0, np.float32)
    first, last = float(levels[0]), float(levels[-1])
    exact = 3.0 * np.sqrt((1 + last**2) / (1 + first**2))
    return abs(float(sample(denoiser, x, levels, sampler, **options)[0, 0]) / exact - 1)


def fitted_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Slope of log error over log steps; at least the first two of 16 steps and more count."""
    pairs = [(n, e) for n, e in zip(steps, errors, strict=True) if n >= 16]
    kept = [pair for pair in pairs if pair[1] > ROUNDING]
    kept = kept if len(kept) >= 2 else pairs[:2]
    n, e = np.log2(np.array(kept)).T
    return float(-np.polyfit(n, e, 1)[0])


def plot(path: Path, table: dict[str, list[float]], steps: Sequence[int]) -> None:
    """Error over steps, a line for each sampler that differs from the ones before it."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("the plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9.5, 5.5))
    colours = pyplot.get_cmap("tab20").colors
    seen: list[list[float]] = []
    for name, errors in table.items():
        if any(np.allclose(errors, other, rtol=0.05) for other in seen):
            continue
        axes.loglog(
            steps,
            errors,
            marker="o",
            markersize=3,
            color=colours[len(seen) % 20],
            linestyle="-" if len(seen) < 20 else "--",
            label=name,
        )
        seen.append(errors)
    axes.set_xlabel("steps")
    axes.set_xticks(list(steps), [str(n) for n in steps])
    axes.minorticks_off()
    axes.set_ylabel("relative error")
    axes.set_title("Gaussian data, sigma 10 to 0.1")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=66, bbox_inches="tight", pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw the errors (needs matplotlib)"
    )
    arguments = parser.parse_args()
    table = {name: [error(name, n) for n in STEPS] for name in RUNS}
    print(f"{'sampler':26}" + "".join(f"{n:>10}" for n in STEPS) + "   order  documented")
    for name, errors in table.items():
        numbers = "".join(f"{e:10.1e}" for e in errors)
        print(f"{name:26}{numbers}{fitted_order(STEPS, errors):8.2f}{RUNS[name][2]:12}")
    if arguments.plot:
        plot(arguments.plot, table, STEPS)


if __name__ == "__main__":
    main()
