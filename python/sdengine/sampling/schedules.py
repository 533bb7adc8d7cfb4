"""Noise levels of a run, as numbers, and which part of them a run visits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.sampling.names import resolve_names

Array = NDArray[np.float32]
RANGES = {"edm": (0.002, 80.0), "edm_v_prediction": (0.002, 120.0)}
"""Prediction over a range of sigmas -> the range of the models that have it (Playground v2.5, CosXL)."""

_MOST_STEPS = 100_000


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
    prediction: str = "epsilon",
    shift: float | None = None,
    mu: float | None = None,
    terminal: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    spacing: str | None = None,
    coefficient: float | None = None,
) -> Array:
    """The noise levels of a schedule, falling, with a final 0: ``steps + 1`` values, float32.

    ``beta``, ``smoothstep`` and ``laplace`` give fewer where steps fall on the same sigma, ``ddim_uniform`` one more
    where `steps` does not divide `train_steps`.

    Args:
        schedule: one of :data:`SCHEDULES`; ``leading``, ``linspace`` and ``trailing`` are diffusers' timestep spacings;
            ``ays`` and ``gits`` are for Stable Diffusion's levels; see docs/sampling.md for flow models.
        steps: 1 to `train_steps`; at most 50 for ``lcm`` and 10 for ``turbo``, at least 2 for ``gits``.
        betas: ``scaled_linear``, ``linear`` or ``squaredcos_cap_v2``; the defaults are Stable Diffusion's.
        beta_start: first beta.
        beta_end: last beta.
        train_steps: timesteps that the model was trained with, or entries of a flow model's table.
        zero_terminal_snr: rescale so that the last timestep is pure noise (Lin et al. 2023).
        rho: exponent of ``karras`` (None is 7) and ``polyexponential`` (None is 1): 1 to 100.
        steps_offset: of ``leading``.
        prediction: with ``flow`` the levels are times of 0 to 1, with ``edm`` and ``edm_v_prediction`` a range, else
            those of the betas.
        shift: of a flow model: ``sigma = shift * t / (1 + (shift - 1) * t)``; above 0, None is 1.
        mu: the same in its exponential form, ``shift = exp(mu)``; see :func:`dynamic_mu`.
        terminal: of a flow model: the last sigma above 0, to which the others are stretched.
        sigma_min: the smallest sigma of ``karras``, ``exponential``, ``polyexponential``, ``kl_optimal``, ``laplace``
            and ``beta_sigmas``; None is the model's. With a range it is the range's (0.002).
        sigma_max: the largest, likewise (80 with ``edm``, 120 with ``edm_v_prediction``).
        spacing: the schedule whose ends those schedules take instead, as diffusers does.
        coefficient: of ``gits``: 0.80 to 1.50 in steps of 0.05 (1.20).

    Raises:
        ParameterError: an argument is out of range, or the schedule is not defined for such a model.
    """
    name = _schedule_name(schedule)
    if not isinstance(steps, int):
        raise ParameterError(f"steps must be a whole number, not {steps!r}")
    flow = prediction == "flow"
    _core.Prediction(prediction)  # a known one
    if not flow and (shift, mu) != (None, None):
        raise ParameterError(f"shift and mu belong to flow models, not to {prediction}")
    if flow:
        levels = _core.NoiseLevels.flow(_shift(shift, mu), train_steps)
    elif prediction in RANGES:
        low, high = RANGES[prediction]
        levels = _core.NoiseLevels.edm(
            low if sigma_min is None else sigma_min,
            high if sigma_max is None else sigma_max,
            train_steps,
        )
        sigma_min = sigma_max = None
    else:
        levels = _core.NoiseLevels(betas, beta_start, beta_end, train_steps, zero_terminal_snr)
    return _core.Schedule(
        name,
        steps,
        levels,
        rho,
        steps_offset,
        sigma_min,
        sigma_max,
        "" if spacing is None else _schedule_name(spacing),
        coefficient,
        terminal,
    ).sigmas


def dynamic_mu(
    tokens: int,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    base_tokens: int = 256,
    max_tokens: int = 4096,
) -> float:
    """The shift of a flow model that depends on the picture's size, as its logarithm mu.

    mu is linear in the number of image tokens (latent pixels after the denoiser's patches), beyond both points too
    (Esser et al. 2024, arXiv 2403.03206, section 5.3.2, and Black Forest Labs' code). The defaults are FLUX.1's.

    Args:
        tokens: of the picture, at least 1.
        base_shift: mu at `base_tokens`.
        max_shift: mu at `max_tokens`.
        base_tokens: at least 1.
        max_tokens: more than `base_tokens`.

    Raises:
        ParameterError: an argument is out of range.
    """
    if not (tokens >= 1 and 1 <= base_tokens < max_tokens):
        raise ParameterError(
            f"tokens must be at least 1 and base_tokens below max_tokens, not {tokens!r},"
            f" {base_tokens!r} and {max_tokens!r}"
        )
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return tokens * slope + (base_shift - slope * base_tokens)


class PartialRun(NamedTuple):
    """A run over the last part of a schedule."""

    steps: int
    """Steps of the whole schedule."""
    kept: int
    """Steps to do: the last ones, over the last ``kept + 1`` sigmas."""


def partial_run(
    steps: int,
    strength: float,
    convention: Literal[
        "diffusers", "diffusers-flow", "comfyui", "a1111", "a1111-exact"
    ] = "diffusers",
) -> PartialRun:
    """What a run from a noised picture does, in the conventions of other programs.

    ``diffusers`` keeps the last ``min(floor(steps * strength), steps)``, and in its pipelines of flow models
    (``diffusers-flow``) the last ``ceil(steps * strength)``. ``comfyui`` makes a longer schedule of
    ``floor(steps / strength)`` and keeps `steps`. ``a1111`` keeps ``floor(min(strength, 0.999) * steps) + 1``, and
    ``a1111-exact`` (its option to do exactly the steps) keeps `steps` of ``floor(steps / min(strength, 0.999))``.

    Args:
        steps: as the user asks, 1 to 100000.
        strength: how much of the picture is replaced by noise, 0 to 1 ("denoise" in ComfyUI).
        convention: the program.

    Raises:
        ParameterError: an argument is out of range, or no step is left.
    """
    if not (isinstance(steps, int) and 1 <= steps <= _MOST_STEPS):
        raise ParameterError(f"steps must be 1 to {_MOST_STEPS}, not {steps!r}")
    if not 0.0 <= strength <= 1.0:
        raise ParameterError(f"strength must be 0 to 1, not {strength!r}")
    most = min(strength, 0.999)
    if convention == "diffusers":
        run = PartialRun(steps, min(int(steps * strength), steps))
    elif convention == "diffusers-flow":  # with the rounding errors that its pipelines make
        run = PartialRun(steps, steps - int(max(steps - steps * strength, 0)))
    elif convention == "a1111":
        run = PartialRun(steps, int(most * steps) + 1)
    elif convention in ("comfyui", "a1111-exact"):
        if strength == 0.0:
            raise ParameterError("strength 0 leaves no step to do; give a larger one")
        if strength * _MOST_STEPS < steps:
            raise ParameterError(
                f"strength {strength!r} asks for more than {_MOST_STEPS} steps; give a larger one"
            )
        part = most if convention == "a1111-exact" else 1.0 if strength > 0.9999 else strength
        run = PartialRun(int(steps / part), steps)
    else:
        raise ParameterError(
            f"a convention is diffusers, diffusers-flow, comfyui, a1111 or a1111-exact, not {convention!r}"
        )
    if run.kept < 1:
        raise ParameterError(
            f"strength {strength!r} leaves none of {steps} steps to do; give at least 1 / steps"
        )
    return run


def ensemble_part(
    timesteps: Sequence[float] | Array,
    train_steps: int = 1000,
    start: float | None = None,
    end: float | None = None,
) -> tuple[int, int]:
    """Which steps a model of an ensemble does, as (first, last) for :meth:`Schedule.part`.

    One model denoises down to the share `end` of the way, the next from that share on as its `start`: steps are
    divided at the training timestep ``round(train_steps * (1 - share))``, as diffusers' SDXL pipelines do with
    ``denoising_end`` and ``denoising_start``.

    Args:
        timesteps: of the whole schedule, falling.
        train_steps: timesteps that the model was trained with.
        start: share of the way that is done already, 0 to 1; None is 0.
        end: share of the way where this model stops, 0 to 1; None is 1.

    Raises:
        ParameterError: a share is out of range, `start` is not below `end`, or no step is left.
    """
    for name, share in (("start", start), ("end", end)):
        if share is not None and not 0.0 <= share <= 1.0:
            raise ParameterError(f"the {name} of a part must be 0 to 1, not {share!r}")
    if start is not None and end is not None and start >= end:
        raise ParameterError(f"the start of a part must be below its end, not {start!r}, {end!r}")
    times = np.asarray(timesteps, np.float64)

    def steps_above(share: float) -> int:
        return int((times >= round(train_steps - share * train_steps)).sum())

    first = 0 if start is None else steps_above(start)
    last = len(times) if end is None else steps_above(end)
    if first >= last:
        raise ParameterError(
            f"no step of {len(times)} lies from {start or 0} to {1 if end is None else end} of the"
            " way; use more steps or a wider part"
        )
    return first, last


def _schedule_name(schedule: str) -> str:
    _, name = resolve_names("euler", schedule)
    assert name is not None
    return name


def _shift(shift: float | None, mu: float | None) -> float:
    if shift is not None and mu is not None:
        raise ParameterError("a flow model's shift is given as shift or as mu, not both")
    if mu is None:
        return 1.0 if shift is None else shift
    if not -9.0 < mu < 9.0:
        raise ParameterError(f"mu must be -9 to 9, not {mu!r}")
    return math.exp(mu)
