"""Noise levels and timesteps against diffusers, k-diffusion and closed forms."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

import sdengine
from sdengine import _core
from sdengine.sampling import SCHEDULES, sigmas

TABLE = {"beta_start": 0.00085, "beta_end": 0.012}
STEPS = [1, 2, 3, 4, 7, 10, 20, 25, 50, 999]


def levels(kind: str = "scaled_linear", *, zero_snr: bool = False) -> _core.NoiseLevels:
    return _core.NoiseLevels(kind, 0.00085, 0.012, 1000, zero_snr)


def close(found: np.ndarray, expected: np.ndarray, limit: float = 1e-6) -> None:
    expected = np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    scale = np.where(expected == 0, 1, np.abs(expected))
    assert (np.abs(found - expected) / scale).max() <= limit


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_table_equals_diffusers(kind: str, zero_snr: bool) -> None:
    reference = EulerDiscreteScheduler(**TABLE, beta_schedule=kind, rescale_betas_zero_snr=zero_snr)
    kept = reference.alphas_cumprod.numpy()
    found = np.array(list(levels(kind, zero_snr=zero_snr)))
    if not zero_snr:
        assert np.array_equal(found, np.sqrt((1 - kept) / kept))
    # The reference takes a root on the way that torch does not round correctly (1 ulp off here and there), and then
    # multiplies a thousand ratios of such roots.
    assert np.abs(1 / (1 + found**2) - kept).max() <= 5e-7


def test_published_ends_of_the_table() -> None:
    # 1 - abar in float32, as torch has it, is good for four digits here.
    assert levels().sigma_min == pytest.approx(0.029167158, rel=2e-5)
    assert levels().sigma_max == pytest.approx(14.614641229, rel=1e-6)
    assert _core.NoiseLevels("scaled_linear", 0.00085, 0.014, 1100).sigma_max == pytest.approx(
        29.061221304, rel=1e-6
    )


@pytest.mark.parametrize(
    ("kind", "start", "end", "count", "low", "high"),
    [
        ("scaled_linear", 0.00085, 0.014, 1100, 0.029167158, 29.061221304),  # Kolors
        ("scaled_linear", 0.00085, 0.018, 1000, 0.029167158, 45.383623),  # Hunyuan-DiT 1.2
        ("scaled_linear", 0.00085, 0.03, 1000, 0.029167158, 419.879338),  # Hunyuan-DiT 1.0, 1.1
        ("scaled_linear", 0.00085, 0.02, 1000, 0.029167158, 65.928658),
        ("linear", 0.0001, 0.02, 1000, 0.0100005, 157.407281),  # PixArt
    ],
)
def test_tables_of_other_models(
    kind: str, start: float, end: float, count: int, low: float, high: float
) -> None:
    reference = EulerDiscreteScheduler(
        num_train_timesteps=count, beta_start=start, beta_end=end, beta_schedule=kind
    )
    kept = reference.alphas_cumprod.numpy()
    found = _core.NoiseLevels(kind, start, end, count)
    assert np.array_equal(np.array(list(found)), np.sqrt((1 - kept) / kept))
    # 1 - abar in float32, of 1e-4 at the least.
    assert found.sigma_min == pytest.approx(low, rel=3e-4)
    assert found.sigma_max == pytest.approx(high, rel=1e-6)


@pytest.mark.parametrize("count", [1000, 1100])
@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_zero_terminal_snr_equals_diffusers(kind: str, count: int) -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = EulerDiscreteScheduler(
        num_train_timesteps=count, beta_start=0.00085, beta_end=0.014, beta_schedule=kind
    ).betas
    kept = torch.cumprod(1 - rescale_zero_terminal_snr(betas).double(), 0).numpy()
    found = np.array(list(_core.NoiseLevels(kind, 0.00085, 0.014, count, True)), np.float64)
    assert np.abs(1 / (1 + found[:-1] ** 2) - kept[:-1]).max() <= 5e-7
    assert kept[-1] == 0
    assert found[-1] == pytest.approx(4096, rel=1e-6)  # diffusers' 2^-24 in place of that 0


def test_nearest_timesteps_as_comfyui_has_them() -> None:
    nearest = _core.NoiseLevels("scaled_linear", 0.00085, 0.012, 1000, nearest=True)
    table = np.log(np.array(list(nearest)))
    found, expected = [], []
    for sigma in np.geomspace(0.01, 30, 500).astype(np.float32):
        found.append(nearest.timestep(float(sigma)))
        expected.append(np.abs(np.log(sigma) - table).argmin())
    assert found == expected
    schedule = _core.Schedule("karras", 20, nearest)
    assert (schedule.timesteps == np.rint(schedule.timesteps)).all()
    # Sigmas do not depend on it.
    close(schedule.sigmas, _core.Schedule("karras", 20, levels()).sigmas)
    fractional = _core.Schedule("karras", 20, levels()).timesteps
    assert 0 < np.abs(schedule.timesteps - fractional).max() <= 0.51


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_diffusers_spacings(spacing: str, offset: int, steps: int) -> None:
    reference = EulerDiscreteScheduler(
        **TABLE, beta_schedule="scaled_linear", timestep_spacing=spacing, steps_offset=offset
    )
    reference.set_timesteps(steps)
    found = _core.Schedule(spacing, steps, levels(), steps_offset=offset)
    close(found.sigmas, reference.sigmas.numpy())
    close(found.timesteps, reference.timesteps.numpy())
    assert found.initial_scale == pytest.approx(float(reference.init_noise_sigma), rel=1e-6)


@pytest.mark.parametrize("steps", STEPS[:-1])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("solver", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_spacings_of_multistep_solvers(solver: Any, spacing: str, steps: int) -> None:
    reference = solver(
        **TABLE, beta_schedule="scaled_linear", timestep_spacing=spacing, steps_offset=1
    )
    reference.set_timesteps(steps)
    found = _core.Schedule(spacing, steps, levels(), steps_offset=1, multistep=True)
    assert np.array_equal(found.timesteps, reference.timesteps.numpy())
    close(found.sigmas, reference.sigmas.numpy())
    # They begin with noise of variance 1, divided by the part of the clean latents that is left.
    alpha, _ = reference._sigma_to_alpha_sigma_t(reference.sigmas[0])
    assert found.initial_scale == pytest.approx(float(1 / alpha), rel=1e-6)


@pytest.mark.parametrize("steps", [*STEPS[:-1], 100])
def test_karras_and_exponential_equal_k_diffusion(k_diffusion: ModuleType, steps: int) -> None:
    low, high = levels().sigma_min, levels().sigma_max
    close(
        sigmas("karras", steps),
        k_diffusion.get_sigmas_karras(steps, low, high, device="cpu").numpy(),
        1e-6,
    )
    expected = k_diffusion.get_sigmas_exponential(steps, low, high, device="cpu").numpy()
    close(sigmas("exponential", steps), expected, 1e-6)


@pytest.mark.parametrize("steps", [*STEPS[:-1], 37])
def test_timestep_schedules_equal_their_closed_forms(steps: int) -> None:
    table = np.log(np.array(list(levels()), np.float64))

    def at(timesteps: np.ndarray) -> np.ndarray:
        return np.append(np.exp(np.interp(timesteps, np.arange(1000), table)), 0)

    close(sigmas("discrete", steps), at(np.linspace(999, 0, steps)), 1e-6)
    close(sigmas("sgm_uniform", steps), at(np.linspace(999, 0, steps + 1)[:-1]), 1e-6)
    indices = [999 - int(i * (1000 / steps)) for i in range(steps)]
    close(sigmas("simple", steps), np.append(np.exp(table[indices]), 0))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_falls_to_zero(name: str) -> None:
    for steps in (1, 2, 3, 10, 30):
        if (name, steps) in (("gits", 1), ("turbo", 30)):  # not defined
            continue
        values = sigmas(name, steps)
        assert values.dtype == np.float32
        if name == "laplace":  # equal sigmas, clamped to the model's ends, come once
            assert 2 <= len(values) <= steps + 1
            assert values[-1] == 0
            assert (np.diff(values) < 0).all()
            continue
        # 1000 is not divisible by 30, and ddim_uniform takes an entry more.
        assert len(values) == steps + (2 if (name, steps) == ("ddim_uniform", 30) else 1)
        assert values[-1] == 0
        assert (np.diff(values) < 0).all()


@pytest.mark.parametrize("rho", [None, 2.0, 3.0])
@pytest.mark.parametrize("steps", STEPS[:-1])
def test_polyexponential_equals_k_diffusion(
    k_diffusion: ModuleType, steps: int, rho: float | None
) -> None:
    table = levels()
    expected = k_diffusion.get_sigmas_polyexponential(
        steps, table.sigma_min, table.sigma_max, rho=1.0 if rho is None else rho
    )
    close(sigmas("polyexponential", steps, rho=rho), expected.numpy(), 1e-6)


def table_at(timesteps: Iterable[float]) -> np.ndarray:
    """The model's sigmas of whole timesteps, repeated ones once, and the final 0."""
    table = np.array(list(levels()))
    return np.append(table[list(dict.fromkeys(int(t) for t in timesteps))], 0)


@pytest.mark.parametrize("steps", [*STEPS[:-1], 30, 200])
def test_schedules_over_table_entries(steps: int) -> None:
    u = 1 - np.arange(steps) / steps
    close(sigmas("beta", steps), table_at(np.rint(scipy.stats.beta.ppf(u, 0.6, 0.6) * 999)))
    close(sigmas("smoothstep", steps), table_at(np.floor((3 * u**2 - 2 * u**3) * 999 + 0.5)))
    close(sigmas("ddim_uniform", steps), table_at(reversed(range(1, 1000, 1000 // steps))))


@pytest.mark.parametrize("steps", [*STEPS[:-1], 8])
def test_lcm_equals_diffusers(steps: int) -> None:
    scheduler = LCMScheduler(**TABLE, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    expected = scheduler.timesteps.tolist()
    close(_core.Schedule("lcm", steps, levels()).timesteps, expected)
    close(sigmas("lcm", steps), table_at(expected))


def test_turbo_takes_the_first_of_ten_timesteps() -> None:
    close(sigmas("turbo", 1), table_at([999]))
    close(sigmas("turbo", 4), table_at([999, 899, 799, 699]))
    close(sigmas("turbo", 10), table_at(range(999, 0, -100)))


def linear_quadratic(steps: int) -> np.ndarray:
    """ComfyUI's formula: what is left of the largest sigma at each step."""
    linear = steps // 2
    rest = steps - linear
    values = [i * 0.025 / linear for i in range(linear)]
    if steps == 1:
        values = [0.0]
    else:
        gap = linear - 0.025 * steps
        a, b = gap / (linear * rest**2), 0.025 / linear - 2 * gap / rest**2
        values += [a * i**2 + b * i + a * linear**2 for i in range(linear, steps)]
    return 1 - np.array(values)


@pytest.mark.parametrize("steps", [*STEPS[:-1], 9, 30])
def test_sigma_schedules_equal_their_closed_forms(steps: int) -> None:
    low, high = levels().sigma_min, levels().sigma_max
    expected = np.tan(np.linspace(np.arctan(high), np.arctan(low), steps))
    close(sigmas("kl_optimal", steps), np.append(expected, 0), 1e-6)

    close(sigmas("linear_quadratic", steps), np.append(linear_quadratic(steps) * high, 0), 1e-6)


@pytest.mark.parametrize("steps", STEPS[:-1])
def test_vp_equals_k_diffusion(k_diffusion: ModuleType, steps: int) -> None:
    torch.set_default_dtype(torch.float64)  # in float32 its e^t - 1 loses the digits of small t
    try:
        expected = k_diffusion.get_sigmas_vp(steps).numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    close(sigmas("vp", steps), expected)


@pytest.mark.parametrize("steps", STEPS[:-1])
def test_laplace_equals_its_closed_form(steps: int) -> None:
    x = np.linspace(0, 1, steps)
    log_sigma = -0.5 * np.sign(0.5 - x) * np.log(1 - 2 * np.abs(0.5 - x) + 1e-5)
    for low, high in ((levels().sigma_min, levels().sigma_max), (0.1, 5.0)):
        clamped = np.clip(np.exp(log_sigma), low, high)
        expected = np.append(list(dict.fromkeys(clamped.tolist())), 0)
        close(sigmas("laplace", steps, sigma_min=low, sigma_max=high), expected)


@pytest.mark.parametrize("steps", STEPS[:-1])
def test_ends_that_are_not_the_model_s(k_diffusion: ModuleType, steps: int) -> None:
    if steps == 1:
        return
    found = sigmas("karras", steps, sigma_min=0.1, sigma_max=10.0, rho=5.0)
    expected = k_diffusion.get_sigmas_karras(steps, 0.1, 10.0, 5.0).numpy()
    close(found, expected, 1e-6)
    found = sigmas("beta_sigmas", steps, sigma_min=0.1, sigma_max=10.0)
    u = 1 - np.linspace(0, 1, steps)
    close(found, np.append(0.1 + scipy.stats.beta.ppf(u, 0.6, 0.6) * 9.9, 0))


def test_bong_tangent_equals_its_closed_form() -> None:
    low, high = levels().sigma_min, levels().sigma_max

    def stage(count: int, slope: float, pivot: int, start: float, end: float) -> np.ndarray:
        curve = np.arctan(-slope * (np.arange(count) - pivot)) / np.pi + 0.5
        return (curve - curve[-1]) / (curve[0] - curve[-1]) * (start - end) + end

    for steps in (3, 8, 20, 50):
        points = steps + 2
        first = int(points * 0.6)
        slope, middle = 0.2 / (points / 40), (low + high) / 2
        expected = np.concatenate(
            [
                stage(first, slope, first, high, middle)[:-1],
                stage(points - first, slope, 0, middle, low)[:-1],
                [0],
            ]
        )
        close(sigmas("bong_tangent", steps), expected, 3e-6)
    close(sigmas("bong_tangent", 1), np.array([high, 0]))


# As ComfyUI's nodes_align_your_steps.py and nodes_gits.py have them.
AYS = [14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092]
AYS += [0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582]
GITS_4 = [14.61464119, 2.36326075, 0.92192322, 0.36617002]


def test_published_tables() -> None:
    close(sigmas("ays", 10), np.append(AYS[:-1], 0))
    # diffusers publishes the timesteps of the same tables, rounded.
    for name, expected in (
        ("ays", [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]),
        ("ays_sdxl", [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]),
    ):
        found = _core.Schedule(name, 10, levels()).timesteps
        assert np.abs(found - expected).max() <= 1, name
    close(sigmas("gits", 4), np.append(GITS_4, 0))
    for name, steps in (("ays", 27), ("gits", 41)):
        base = sigmas(name, 10 if name == "ays" else 20).astype(float)
        base[-1] = 0.0291671582 if name == "ays" else 0.02916753
        at = np.linspace(0, len(base) - 1, steps + 1)[:-1]
        expected_sigmas = np.exp(np.interp(at, np.arange(len(base)), np.log(base)))
        close(sigmas(name, steps), np.append(expected_sigmas, 0), 1e-6)


# Sums of all figures of the 19 rows that each coefficient has in nodes_gits.py.
GITS_SUMS = [1820.23447, 1651.773349, 1445.365035, 1208.75629, 982.382098, 823.446623, 687.674339]
GITS_SUMS += [604.278257, 557.642688, 495.899651, 472.091847, 428.642089, 398.338487, 389.192215]
GITS_SUMS += [379.055877]
GITS_ROWS = {
    0.8: [14.61464119, 11.54541874, 7.49001646, 5.85520077, 2.05039096],
    1.0: [14.61464119, 6.77309084, 2.36326075, 0.803307],
    1.5: [14.61464119, 1.56271636, 0.72133851, 0.36617002, 0.19894916, 0.09824532],
}


def test_every_coefficient_of_gits() -> None:
    for coefficient, row in GITS_ROWS.items():
        found = sigmas("gits", len(row), coefficient=coefficient)
        close(found, np.array([*row, 0]))
    for i, expected in enumerate(GITS_SUMS):
        rows = [sigmas("gits", n, coefficient=0.8 + 0.05 * i) for n in range(2, 21)]
        assert all((np.diff(row) < 0).all() for row in rows)
        total = sum(float(row.sum()) for row in rows) + 19 * 0.02916753
        assert total == pytest.approx(expected, rel=1e-6)
    base = np.append(sigmas("gits", 20, coefficient=0.9)[:-1].astype(float), 0.02916753)
    at = np.linspace(0, 20, 51)[:-1]
    expected_sigmas = np.exp(np.interp(at, np.arange(21), np.log(base)))
    close(sigmas("gits", 50, coefficient=0.9), np.append(expected_sigmas, 0), 1e-6)
    for coefficient in (0.75, 1.55, 1.22, float("nan")):
        with pytest.raises(sdengine.ParameterError, match="0.80 to 1.50 by 0.05"):
            sigmas("gits", 4, coefficient=coefficient)


def test_tables_are_for_stable_diffusion() -> None:
    for name in ("ays", "gits"):
        with pytest.raises(sdengine.ParameterError, match=r"14\.6146.*choose another"):
            sigmas(name, 10, beta_end=0.02)
    with pytest.raises(sdengine.ParameterError, match="at least 2"):
        sigmas("gits", 1)
    with pytest.raises(sdengine.ParameterError, match="at most 10"):
        sigmas("turbo", 11)


def test_timestep_and_sigma_are_inverse() -> None:
    table = levels()
    for t in (0.0, 0.25, 1.0, 333.3, 998.9, 999.0):
        assert table.timestep(table.sigma(t)) == pytest.approx(t, abs=2e-3)
    assert table.timestep(1e-6) == 0
    assert table.timestep(1e6) == 999


def test_bad_arguments() -> None:
    for steps in (0, -1, 1001):
        with pytest.raises(sdengine.ParameterError, match="steps must be 1 to 1000"):
            sigmas("karras", steps)
    with pytest.raises(sdengine.ParameterError, match="no schedule 'never'; known are"):
        sigmas("never", 4)
    with pytest.raises(sdengine.ParameterError, match="betas"):
        sigmas("karras", 4, betas="round")
    with pytest.raises(sdengine.ParameterError, match="0 < start <= end < 1"):
        sigmas("karras", 4, beta_start=0.5, beta_end=0.1)
    for rho in (0.0, 0.5, 101.0, float("nan")):
        with pytest.raises(sdengine.ParameterError, match="rho must be 1 to 100"):
            sigmas("karras", 4, rho=rho)
    with pytest.raises(sdengine.ParameterError, match="timestep"):
        sigmas("leading", 1000, steps_offset=1)


def test_torch_is_not_needed_at_run_time() -> None:
    assert torch.__version__  # this test suite has it; the package must not import it
    import subprocess
    import sys

    code = "import sys, sdengine; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
