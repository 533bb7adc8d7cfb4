"""Noise levels and timesteps against diffusers, k-diffusion and closed forms."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

import sdengine
from sdengine import _core
from sdengine.sampling import SCHEDULES, resolve_names, sigmas

TABLE = {"beta_start": 0.00085, "beta_end": 0.012}
STEPS = [1, 2, 4, 7, 20, 50, 999]


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


@pytest.mark.parametrize("steps", [2, 4, 20, 100])
def test_karras_and_exponential_equal_k_diffusion(k_diffusion: ModuleType, steps: int) -> None:
    low, high = levels().sigma_min, levels().sigma_max
    close(
        sigmas("karras", steps),
        k_diffusion.get_sigmas_karras(steps, low, high, device="cpu").numpy(),
        2e-6,
    )
    expected = k_diffusion.get_sigmas_exponential(steps, low, high, device="cpu").numpy()
    close(sigmas("exponential", steps), expected, 2e-6)


@pytest.mark.parametrize("steps", [1, 2, 10, 37])
def test_timestep_schedules_equal_their_closed_forms(steps: int) -> None:
    table = np.log(np.array(list(levels()), np.float64))

    def at(timesteps: np.ndarray) -> np.ndarray:
        return np.append(np.exp(np.interp(timesteps, np.arange(1000), table)), 0)

    close(sigmas("discrete", steps), at(np.linspace(999, 0, steps)), 2e-6)
    close(sigmas("sgm_uniform", steps), at(np.linspace(999, 0, steps + 1)[:-1]), 2e-6)
    indices = [999 - int(i * (1000 / steps)) for i in range(steps)]
    close(sigmas("simple", steps), np.append(np.exp(table[indices]), 0))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_falls_to_zero(name: str) -> None:
    for steps in (1, 2, 3, 30):
        values = sigmas(name, steps)
        assert values.dtype == np.float32
        assert len(values) == steps + 1
        assert values[-1] == 0
        assert (np.diff(values) < 0).all()


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
    with pytest.raises(sdengine.ParameterError, match="timestep"):
        sigmas("leading", 1000, steps_offset=1)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("euler", ("euler", None)),
        ("Euler a", ("euler_a", None)),
        ("k_euler_ancestral", ("euler_a", None)),
        ("EulerAncestralDiscreteScheduler", ("euler_a", None)),
        ("DPM++ 2M Karras", ("dpm++2m", "karras")),
        ("dpmpp_2m", ("dpm++2m", None)),
        ("dpm++2m", ("dpm++2m", None)),
        ("DPMSolverMultistepScheduler", ("dpm++2m", None)),
        ("dpmpp_2s_ancestral", ("dpm++2s_a", None)),
    ],
)
def test_spellings(spelling: str, expected: tuple[str, str | None]) -> None:
    assert resolve_names(spelling) == expected


def test_torch_is_not_needed_at_run_time() -> None:
    assert torch.__version__  # this test suite has it; the package must not import it
    import subprocess
    import sys

    code = "import sys, sdengine; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
