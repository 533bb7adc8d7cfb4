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
    "ddim": "euler",  # without noise DDIM is Euler in sigma (Song et al. 2020; Karras et al. 2022)
    "dpm 2": "dpm2",
    "dpmpp 2m": "dpm++2m",
    "dpmpp 2s a": "dpm++2s_a",
    "dpmpp 2s ancestral": "dpm++2s_a",
    "dpm++ 2s": "dpm++2s_a",
    "euler discrete": "euler",
    "euler ancestral discrete": "euler_a",
    "heun discrete": "heun",
    "kdpm2discrete": "dpm2",
    "dpmsolvermultistep": "dpm++2m",
    "pndm": "ipndm",
    "plms": "ipndm",
}
"""Spellings of A1111, ComfyUI, diffusers and stable-diffusion.cpp; compared without case, spaces, ``_`` and ``-``."""

SCHEDULE_ALIASES = {"normal": "discrete", "default": "discrete", "sgm uniform": "sgm_uniform"}


def resolve_names(sampler: str, schedule: str | None = None) -> tuple[str, str | None]:
    """The names that sdengine uses for a sampler and a schedule.

    A sampler's name may end in a schedule's: ``"DPM++ 2M Karras"`` gives ``("dpm++2m", "karras")``.

    Raises:
        ParameterError: a name is unknown; the message lists the choices.
    """
    for given in (sampler, schedule):
        if given is not None and not isinstance(given, str):
            raise ParameterError(f"a sampler or schedule is named by a text, not {given!r}")
    name, implied = _lookup(sampler, SAMPLERS, SAMPLER_ALIASES), None
    if name is None:
        for candidate in SCHEDULES:
            stem = re.sub(rf"[\s_]*{candidate}$", "", sampler, flags=re.IGNORECASE)
            if stem != sampler and (name := _lookup(stem, SAMPLERS, SAMPLER_ALIASES)):
                implied = candidate
                break
    if name is None:
        raise ParameterError(f"there is no sampler {sampler!r}; known are {', '.join(SAMPLERS)}")
    if schedule is None:
        return name, implied
    found = _lookup(schedule, SCHEDULES, SCHEDULE_ALIASES)
    if found is None:
        raise ParameterError(f"there is no schedule {schedule!r}; known are {', '.join(SCHEDULES)}")
    return name, found


def sigmas(
    schedule: str = "discrete",
    steps: int = 20,
    *,
    betas: str = "scaled_linear",
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    train_steps: int = 1000,
    zero_terminal_snr: bool = False,
    rho: float = 7.0,
    steps_offset: int = 0,
) -> Array:
    """The noise levels of a schedule, falling, with a final 0: ``steps + 1`` values, float32.

    Args:
        schedule: one of :data:`SCHEDULES`; ``leading``, ``linspace`` and ``trailing`` are diffusers' timestep spacings.
        steps: 1 to `train_steps`.
        betas: ``scaled_linear``, ``linear`` or ``squaredcos_cap_v2``; the defaults are Stable Diffusion's.
        beta_start: first beta.
        beta_end: last beta.
        train_steps: timesteps that the model was trained with.
        zero_terminal_snr: rescale so that the last timestep is pure noise (Lin et al. 2023).
        rho: exponent of ``karras``.
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
        name, np.asarray(x, np.float32), np.asarray(sigmas, np.float32), seeds, eta, s_noise
    )
    while not run.done:
        run.step(denoiser)
        if callback is not None:
            callback(run.index, run.x, run.denoised)
    return run.x


def _lookup(name: str, known: Sequence[str], aliases: dict[str, str]) -> str | None:
    def folded(text: str) -> str:
        text = text.lower().removesuffix("scheduler").removeprefix("k_")
        return re.sub(r"[\s_-]", "", text)

    wanted = folded(name)
    for candidate in known:
        if folded(candidate) == wanted:
            return candidate
    return next((target for alias, target in aliases.items() if folded(alias) == wanted), None)
