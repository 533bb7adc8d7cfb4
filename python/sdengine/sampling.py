"""Samplers and schedules on their own: numpy in, numpy out, over any denoiser.

``x = x0 + sigma * noise`` throughout; a denoiser is a function ``(x, sigma) -> estimate of x0``. See docs/sampling.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import ParameterError

Array = NDArray[np.float32]
Denoiser = Callable[[Array, float], Array]

SAMPLERS: tuple[str, ...] = tuple(_core.sampler_names())
SCHEDULES: tuple[str, ...] = tuple(_core.schedule_names())

SAMPLER_ALIASES = {
    "euler ancestral": "euler_a",
    "euler discrete": "euler",
    "euler ancestral discrete": "euler_a",
    "gradient estimation": "euler_ge",
    "heun discrete": "heun",
    "dpm 2 ancestral": "dpm2_a",
    "kdpm2 discrete": "dpm2",
    "kdpm2 ancestral discrete": "dpm2_a",
    "dpm++ 2s": "dpm++2s_a",
    "dpm++ 2s ancestral": "dpm++2s_a",
    "dpm++ 2m v2": "dpm++2mv2",
    "dpm solver multistep": "dpm++2m",
    "dpm solver singlestep": "dpm++2s_a",
    "dpm solver sde": "dpm++sde",
    "deis multistep": "deis",
    "lms discrete": "lms",
    "pndm": "ipndm",
    "plms": "ipndm",
    "ddim trailing": "ddim",
    "unipc": "unipc_bh1",
    "unipc multistep": "unipc_bh2",
}
"""Spellings of A1111, ComfyUI, diffusers, stable-diffusion.cpp and GPUStack that differ in more than case, spaces,
``_``, ``-``, ``pp`` for ``++``, ``k_`` in front, and ``scheduler`` or ``gpu`` at the end: those are ignored."""

SCHEDULE_ALIASES = {
    "normal": "discrete",
    "default": "discrete",
    "automatic": "discrete",
    "uniform": "discrete",
    "ddim": "ddim_uniform",
    "align your steps": "ays",
    "align your steps sdxl": "ays_sdxl",
    "sd turbo": "turbo",
}


def resolve_names(sampler: str, schedule: str | None = None) -> tuple[str, str | None]:
    """The names that sdengine uses for a sampler and a schedule.

    A sampler's name may end in a schedule's: ``"DPM++ 2M Karras"`` gives ``("dpm++2m", "karras")``.

    Raises:
        ParameterError: a name is unknown; the message lists the choices.
    """
    for given in (sampler, schedule):
        if given is not None and not isinstance(given, str):
            raise ParameterError(f"a sampler or schedule is named by a text, not {given!r}")
    samplers = _spellings(SAMPLERS, SAMPLER_ALIASES)
    schedules = _spellings(SCHEDULES, SCHEDULE_ALIASES)
    name, implied = samplers.get(_folded(sampler)), None
    if name is None:
        # The longest first: "polyexponential" ends in "exponential" too.
        for ending in sorted(schedules, key=len, reverse=True):
            if found := samplers.get(_folded(sampler).removesuffix(ending)):
                name, implied = found, schedules[ending]
                break
    if name is None:
        raise ParameterError(f"there is no sampler {sampler!r}; known are {', '.join(SAMPLERS)}")
    if schedule is None:
        return name, implied
    if _folded(schedule) not in schedules:
        raise ParameterError(f"there is no schedule {schedule!r}; known are {', '.join(SCHEDULES)}")
    return name, schedules[_folded(schedule)]


def sigmas(
    schedule: str = "discrete",
    steps: int = 20,
    *,
    betas: str = "scaled_linear",
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    train_steps: int = 1000,
    zero_terminal_snr: bool = False,
    rho: float | None = None,
    steps_offset: int = 0,
) -> Array:
    """The noise levels of a schedule, falling, with a final 0: ``steps + 1`` values, float32.

    ``beta`` and ``smoothstep`` give fewer where steps fall on the same timestep, ``ddim_uniform`` one more where
    `steps` does not divide `train_steps`.

    Args:
        schedule: one of :data:`SCHEDULES`; ``leading``, ``linspace`` and ``trailing`` are diffusers' timestep spacings;
            ``ays`` and ``gits`` are for Stable Diffusion's levels.
        steps: 1 to `train_steps`; at most 50 for ``lcm`` and 10 for ``turbo``, at least 2 for ``gits``.
        betas: ``scaled_linear``, ``linear`` or ``squaredcos_cap_v2``; the defaults are Stable Diffusion's.
        beta_start: first beta.
        beta_end: last beta.
        train_steps: timesteps that the model was trained with.
        zero_terminal_snr: rescale so that the last timestep is pure noise (Lin et al. 2023).
        rho: exponent of ``karras`` (None is 7) and ``polyexponential`` (None is 1): 1 to 100.
        steps_offset: of ``leading``.

    Raises:
        ParameterError: an argument is out of range.
    """
    _, name = resolve_names("euler", schedule)
    assert name is not None
    if not isinstance(steps, int):
        raise ParameterError(f"steps must be a whole number, not {steps!r}")
    levels = _core.NoiseLevels(betas, beta_start, beta_end, train_steps, zero_terminal_snr)
    return _core.Schedule(name, steps, levels, rho, steps_offset).sigmas


def sample(
    denoiser: Denoiser,
    x: Array,
    sigmas: Sequence[float] | Array,
    sampler: str = "euler",
    seed: int | Sequence[int] = 0,
    *,
    eta: float | None = None,
    s_noise: float = 1.0,
    noise: str = "torch-cpu",
    callback: Callable[[int, Array, Array], None] | None = None,
) -> Array:
    """Run a sampler over a Python function.

    Args:
        denoiser: ``(x, sigma) -> x0 estimate``, arrays of x's shape.
        x: start, float32: ``x0 + sigmas[0] * noise``.
        sigmas: falling noise levels, usually with a final 0.
        sampler: a name of :data:`SAMPLERS` or an alias.
        seed: of the noise that ancestral samplers add; a list gives one per entry of x's first axis.
        eta: how much of that noise; None is the sampler's own default, 0 none.
        s_noise: scale of that noise.
        noise: its kind, see :func:`sdengine.random.normal`.
        callback: called after each step with (steps done, x, denoised).

    Returns:
        x at the last sigma, float32.

    Raises:
        ParameterError: unknown sampler, sigmas that do not fall, a denoiser whose result has another shape.
        NumericError: the denoiser returned NaN or infinity; the message names the step.
    """
    name, _ = resolve_names(sampler)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if not all(isinstance(s, int) and 0 <= s < 2**64 for s in seeds):
        raise ParameterError(f"seeds must be whole numbers from 0 to 2**64 - 1, not {seed!r}")
    run = _core.Sampler(
        name, np.asarray(x, np.float32), np.asarray(sigmas, np.float32), seeds, eta, s_noise, noise
    )
    while not run.done:
        run.step(denoiser)
        if callback is not None:
            callback(run.index, run.x, run.denoised)
    return run.x


def _folded(name: str) -> str:
    """A name without what its spellings differ in."""
    text = name.lower().removeprefix("k_").removesuffix("_gpu").removesuffix("scheduler")
    return re.sub(r"[\s_()-]", "", text).replace("++", "pp")


def _spellings(names: Sequence[str], aliases: dict[str, str]) -> dict[str, str]:
    """Folded spelling -> name, the names themselves among them."""
    return {_folded(key): name for key, name in [*aliases.items(), *((n, n) for n in names)]}
