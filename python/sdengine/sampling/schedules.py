"""Noise levels of a run, as numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.sampling.names import resolve_names

Array = NDArray[np.float32]


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
