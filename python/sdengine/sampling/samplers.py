"""Samplers over a Python function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sdengine import _core
from sdengine.errors import ParameterError, SDEngineError
from sdengine.sampling.names import resolve_names

Array: TypeAlias = NDArray[np.float32]
Denoiser: TypeAlias = Callable[[Array, float], "Array | tuple[Array, Array]"]


def sample(
    denoiser: Denoiser,
    x: Array,
    sigmas: Sequence[float] | Array,
    sampler: str = "euler",
    seed: int | Sequence[int] = 0,
    *,
    flow: bool = False,
    eta: float | None = None,
    s_noise: float = 1.0,
    noise: str = "torch-cpu",
    brownian: bool | None = None,
    order: int | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    callback: Callable[[int, Array, Array], None] | None = None,
) -> Array:
    """Run a sampler over a Python function.

    Args:
        denoiser: ``(x, sigma) -> x0 estimate``, arrays of x's shape. The CFG++ samplers need a pair ``(x0 estimate,
            x0 estimate without guidance)``; the others take the first of a pair.
        x: start, float32: ``x0 + sigmas[0] * noise``, or for a flow ``(1 - sigmas[0]) * x0 + sigmas[0] * noise``.
        sigmas: falling noise levels, usually with a final 0; from 0 to 1 for a flow.
        sampler: a name of :data:`SAMPLERS` or an alias.
        seed: of the noise that samplers add; a list gives one per entry of x's first axis.
        flow: whether x follows the law of rectified flow (SD3, FLUX, ...) instead of ``x0 + sigma * noise``.
        eta: how much noise ancestral and SDE samplers add, 0 to 10; None is the sampler's own default, 0 none.
        s_noise: scale of that noise.
        noise: its kind, see :func:`sdengine.random.normal`.
        brownian: take each step's noise from a Brownian path per seed, equal to torchsde's ``BrownianTree``, so that
            runs with other numbers of steps give alike pictures; None does so for the ``dpm++`` SDE samplers only, as
            k-diffusion, ComfyUI and A1111 do.
        order: of ``ipndm``, ``ipndm_v``, ``lms`` (1 to 4, default 4), ``deis`` and ``unipc_*`` (1 to 3, default 2).
        s_churn: noise added before each step of ``euler``, ``heun``, ``heunpp2`` and ``dpm2``, over the whole run
            (Karras et al. 2022); not for a flow.
        s_tmin: lowest noise level that `s_churn` applies to.
        s_tmax: highest one.
        callback: called after each step with (steps done, x, denoised).

    Returns:
        x at the last sigma, float32.

    Raises:
        ParameterError: unknown sampler, one that is not for a flow, an option that it lacks, sigmas that do not fall,
            a denoiser whose result has another shape or lacks the estimate without guidance.
        NumericError: the denoiser returned NaN or infinity; the message names the step.
    """
    name, _ = resolve_names(sampler)
    listed: Sequence[Any] = seed if isinstance(seed, (list, tuple, np.ndarray)) else [seed]
    if not all(isinstance(s, Integral) and 0 <= int(s) < 2**64 for s in listed):
        raise ParameterError(f"seeds must be whole numbers from 0 to 2**64 - 1, not {seed!r}")
    if order is not None and (isinstance(order, bool) or not isinstance(order, int)):
        raise ParameterError(f"order must be a whole number, not {order!r}")
    if not callable(denoiser) or not (callback is None or callable(callback)):
        raise ParameterError("the denoiser must be a function, and callback one or None")
    try:
        run = _core.Sampler(
            name,
            np.asarray(x, np.float32),
            np.asarray(sigmas, np.float32),
            [int(s) for s in listed],
            eta,
            s_noise,
            noise,
            flow=flow,
            brownian=brownian,
            order=order,
            s_churn=s_churn,
            s_tmin=s_tmin,
            s_tmax=s_tmax,
        )
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, SDEngineError):
            raise
        raise ParameterError(
            "x and sigmas must be arrays of numbers, noise a name, flow and brownian True or False,"
            " and the other options numbers"
        ) from None
    while not run.done:
        run.step(denoiser)
        if callback is not None:
            callback(run.index, run.x, run.denoised)
    return run.x
