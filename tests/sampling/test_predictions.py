"""What a denoiser's output means, against diffusers' schedulers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

import sdengine
from sdengine import _core
from sdengine.sampling import Prediction

SD = ("scaled_linear", 0.00085, 0.012, 1000)
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    generator = torch.Generator().manual_seed(5)
    x, output = torch.randn((2, 2, 4, 5, 3), generator=generator).numpy()
    return x, output


def close(found: np.ndarray, expected: torch.Tensor, limit: float = 1e-6) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected.numpy()).max() <= limit * expected.abs().max()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_over_betas_equals_diffusers(kind: str, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    x, output = map(torch.from_numpy, arrays)
    prediction = Prediction(kind)
    scheduler = EulerDiscreteScheduler(**TABLE, prediction_type=kind)
    scheduler.set_timesteps(7)
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        scaled = scheduler.scale_model_input(x, t)
        close(arrays[0] * prediction.input_scale(sigma), scaled)
        expected = scheduler.step(output, t, x).pred_original_sample
        close(prediction.denoise(*arrays, sigma), expected, 3e-6)
        assert prediction.latents_scale(sigma) == 1


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.3])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler_class", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_edm_equals_diffusers(
    scheduler_class: type, kind: str, sigma_data: float, arrays: tuple[np.ndarray, np.ndarray]
) -> None:
    x, output = map(torch.from_numpy, arrays)
    scheduler = scheduler_class(sigma_data=sigma_data, prediction_type=kind)
    prediction = Prediction("edm" if kind == "epsilon" else "edm_v_prediction", sigma_data)
    for value in (0.002, 0.1, 1.0, 17.3, 80.0):
        sigma = torch.tensor(value)
        close(arrays[0] * prediction.input_scale(value), scheduler.precondition_inputs(x, sigma))
        expected = scheduler.precondition_outputs(x, output, sigma)
        close(prediction.denoise(*arrays, value), expected)
        told = _core.NoiseLevels.edm().timestep(value)
        assert told == pytest.approx(scheduler.precondition_noise(sigma).item(), rel=1e-6, abs=1e-7)


def test_usual_deviations_of_the_data(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    for kind, sigma_data in (("edm", 0.5), ("edm_v_prediction", 1.0), ("v_prediction", 1.0)):
        expected = Prediction(kind, sigma_data).denoise(*arrays, 2.0)
        assert np.array_equal(Prediction(kind).denoise(*arrays, 2.0), expected)


def test_flow_equals_diffusers(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    x, output = map(torch.from_numpy, arrays)
    prediction = Prediction("flow")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2])
    for i, t in enumerate(scheduler.timesteps):
        sigma, following = map(float, scheduler.sigmas[i : i + 2])
        assert prediction.input_scale(sigma) == 1
        denoised = torch.from_numpy(prediction.denoise(*arrays, sigma))
        # Its step goes along the output; ours along the line to the estimate.
        expected = scheduler.step(output, t, x).prev_sample
        close((x + (x - denoised) / sigma * (following - sigma)).numpy(), expected, 1e-6)


def test_flow_latents_and_noise_mix(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    latents, noise = map(torch.from_numpy, arrays)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2])
    prediction = Prediction("flow")
    for i in range(3):
        sigma = float(scheduler.sigmas[i])
        mixed = arrays[0] * prediction.latents_scale(sigma) + arrays[1] * sigma
        close(mixed, scheduler.scale_noise(latents, scheduler.timesteps[i : i + 1], noise))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_boundary_equals_diffusers_lcm(kind: str, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    x, output = map(torch.from_numpy, arrays)
    levels = _core.NoiseLevels(*SD)
    prediction = Prediction(kind, boundary=levels)
    scheduler = LCMScheduler(**TABLE, prediction_type=kind, clip_sample=False)
    for t in (0, 1, 19, 259, 999):
        scheduler.set_timesteps(timesteps=[t], original_inference_steps=1000)
        sigma = levels[t]
        expected = scheduler.step(output, t, x, return_dict=True).denoised
        # The reference works on the network's input.
        found = prediction.denoise(arrays[0] / prediction.input_scale(sigma), arrays[1], sigma)
        close(found, expected, 3e-6)
    if kind != "sample":
        assert prediction.denoise(*arrays, levels[0]) == pytest.approx(
            arrays[0] * prediction.input_scale(levels[0]), rel=1e-5
        )


def test_bad_predictions(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(sdengine.ParameterError, match="a prediction is epsilon"):
        Prediction("noise")
    for sigma_data in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(sdengine.ParameterError, match="sigma_data must be above 0"):
            Prediction("edm", sigma_data)
    with pytest.raises(sdengine.ParameterError, match="boundary scalings are of latent"):
        Prediction("flow", boundary=_core.NoiseLevels(*SD))
    with pytest.raises(sdengine.ParameterError, match="boundary scalings are of latent"):
        Prediction("epsilon", boundary=_core.NoiseLevels.flow())
    with pytest.raises(sdengine.ParameterError, match="one shape"):
        Prediction("edm").denoise(arrays[0], arrays[1][:1], 1.0)
