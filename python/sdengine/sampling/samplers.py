"""Samplers over a Python function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.sampling.names import resolve_names

Array = NDArray[np.float32]
Denoiser = Callable[[Array, float], Array]


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
