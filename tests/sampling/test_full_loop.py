"""diffusers' own scheduler tests: its full loops with a dummy model, and the sums and means that they publish.

Every row is run twice: with the diffusers class as its test runs it, and with our sampler; both must give the published
figures, and each other's samples. What has no row, and why:

* LMSDiscrete's published loop writes the scaled input over the sample, so that its history belongs to other samples
  than its steps; only a loop without that is compared (below).
* DPMSolverSinglestep takes two steps of the grid as one step with a midpoint; `dpm++2s_a` puts the midpoint half way.
* DPMSolverSDE draws from a Brownian tree of torchsde; its steps are compared without noise in test_samplers.
* IPNDM has a grid of its own, and its test runs the loop twice over one history; PNDM starts with Runge-Kutta steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sdengine import _core
from sdengine.sampling import NoiseLevels, Prediction, sample

Array = np.ndarray
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
SHORT = {"num_train_timesteps": 1000, **LINEAR}
LONG = {"num_train_timesteps": 1100, **LINEAR}
SCALED = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
MULTISTEP = {**SHORT, "solver_order": 2, "final_sigmas_type": "sigma_min"}
V = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}


def dummy_sample() -> torch.Tensor:
    """The tests' sample: 768 values from 0 to 1."""
    return (torch.arange(768).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)


def dummy_noise() -> torch.Tensor:
    """The tests' noise: the same, from 1 to 0."""
    return (torch.arange(768).flip(-1).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)


def dummy_model(x: Any, timestep: float) -> Any:
    """The tests' network."""
    return x * (timestep / (timestep + 1))


@dataclass(frozen=True)
class Loop:
    """One of the tests."""

    scheduler: str
    sampler: str
    config: dict[str, Any]
    mean: float
    sum: float | None = None
    steps: int = 10
    start: int = 0
    """The loop begins here, from the sample with noise."""
    step: dict[str, Any] = field(default_factory=dict)
    """What the tests pass to the class's step."""
    eta: float | None = None
    """What we pass to the sampler."""
    last: str | None = None
    """The sampler that does the last step as the class does: DEIS ends with order 1 (``lower_order_final``)."""

    def made(self) -> Any:
        return getattr(diffusers, self.scheduler + "Scheduler")(**self.config)

    def prediction(self, boundary: NoiseLevels | None = None) -> Prediction:
        return Prediction(self.config.get("prediction_type", "epsilon"), boundary=boundary)

    def check(self, found: Array) -> None:
        """The published figures, with the tests' tolerances."""
        assert abs(np.abs(found).mean() - self.mean) < 1e-3
        if self.sum is not None:
            assert abs(np.abs(found).sum() - self.sum) < 1e-2


def close(found: Array, expected: Array, limit: float = 1e-4) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= limit * max(1e-3, np.abs(expected).max())


# ------------------------------------------------------------------------------- variance preserving
VARIANCE_PRESERVING = [
    Loop("DPMSolverMultistep", "dpm++2m", {**MULTISTEP, "lower_order_final": False}, 0.3301),
    Loop("DPMSolverMultistep", "dpm++2m", {**MULTISTEP, "lower_order_final": False, **V}, 0.2251),
    Loop(
        "DPMSolverMultistep",
        "dpm++2m",
        {**MULTISTEP, "lower_order_final": False, **V, **KARRAS},
        0.2096,
    ),
    Loop(
        "DPMSolverMultistep",
        "dpm++2m",
        {**MULTISTEP, "lower_order_final": False},
        0.4146,
        318.4111,
        start=5,
    ),
    Loop("DEISMultistep", "deis", {**SHORT, "solver_order": 2}, 0.23916, last="euler"),
    Loop("DEISMultistep", "deis", {**SHORT, "solver_order": 2, **V}, 0.091, last="euler"),
    Loop(
        "DEISMultistep",
        "deis",
        {**SHORT, "solver_order": 2},
        0.41054,
        315.3016,
        start=8,
        last="euler",
    ),
    Loop("UniPCMultistep", "unipc_bh2", MULTISTEP, 0.2464),
    Loop("UniPCMultistep", "unipc_bh2", {**MULTISTEP, **KARRAS}, 0.2925),
    Loop("UniPCMultistep", "unipc_bh2", {**MULTISTEP, **V}, 0.1014),
    Loop("UniPCMultistep", "unipc_bh2", {**MULTISTEP, **V, **KARRAS}, 0.1966),
    Loop("UniPCMultistep", "unipc_bh2", MULTISTEP, 0.4109, 315.5757, start=8),
    Loop("DDIM", "ddim", SHORT, 0.223967, 172.0067),
    Loop("DDIM", "ddim", {**SHORT, **V}, 0.0684, 52.5302),
    Loop("DDIM", "ddim", {**SHORT, "beta_start": 0.01}, 0.1951, 149.8295),
    Loop(
        "DDIM", "ddim", {**SHORT, "beta_start": 0.01, "set_alpha_to_one": False}, 0.1941, 149.0784
    ),
    Loop("DDIM", "ddim", SHORT, 0.4616, 354.5418, start=8),
    Loop("LCM", "lcm", SCALED, 0.0244, 18.7097, steps=1),
    Loop("LCM", "lcm", SCALED, 0.2575, 197.7616),
    Loop("TCD", "tcd", SCALED, 0.0389, 29.8715, steps=1, step={"eta": 0.0}, eta=0.0),
    Loop("TCD", "tcd", SCALED, 0.2359, 181.2040, step={"eta": 0.0}, eta=0.0),
    Loop("DDPM", "ddpm", SHORT, 0.3372, 258.9606, steps=1000),
    Loop("DDPM", "ddpm", {**SHORT, **V}, 0.2631, 202.0296, steps=1000),
]


def sigmas_of(scheduler: Any) -> Array:
    """The class's noise levels, with the last one that it goes to."""
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.numpy().copy()
    else:
        table = scheduler.alphas_cumprod.numpy()
        # TCD ends at the first training timestep, the others at 0 if they are not told otherwise.
        whole = "TCD" not in type(scheduler).__name__
        whole = whole and scheduler.config.get("set_alpha_to_one", True)
        kept = np.append(table[scheduler.timesteps.numpy()], np.float32(1) if whole else table[0])
        sigmas = np.sqrt((1 - kept) / kept)
    if sigmas[-1] == sigmas[-2]:  # a step that leads nowhere, but corrects the one before (UniPC)
        sigmas[-1] = np.nextafter(sigmas[-1], np.float32(0))
    return sigmas


def takes_generator(loop: Loop) -> bool:
    return loop.scheduler in ("LCM", "TCD", "DDPM")


@pytest.mark.parametrize(
    "loop", VARIANCE_PRESERVING, ids=lambda r: f"{r.scheduler}-{r.steps}-{r.mean}"
)
def test_loops_over_scaled_samples(loop: Loop) -> None:
    scheduler = loop.made()
    scheduler.set_timesteps(loop.steps)
    timesteps = scheduler.timesteps[loop.start :]
    start = dummy_sample()
    if loop.start:
        start = scheduler.add_noise(start, dummy_noise(), timesteps[:1])
    noise = {"generator": torch.manual_seed(0)} if takes_generator(loop) else {}
    x = start
    for t in timesteps:
        x = scheduler.step(dummy_model(x, t), t, x, **loop.step, **noise).prev_sample
    loop.check(x.numpy())

    sigmas = sigmas_of(scheduler)[loop.start :]
    told = dict(zip(sigmas.tolist(), timesteps.tolist(), strict=False))
    boundary = NoiseLevels("scaled_linear", 0.00085, 0.012, 1000)
    prediction = loop.prediction(boundary if loop.scheduler == "LCM" else None)

    def denoiser(scaled: Array, sigma: float) -> Array:
        output = dummy_model(scaled * np.float32(prediction.input_scale(sigma)), told[sigma])
        estimate = prediction.denoise(scaled, output, sigma)
        clips = loop.scheduler in ("DDPM", "DDIM")  # the classes' clip_sample
        return estimate.clip(-1, 1) if clips else estimate

    # x0 + sigma noise, where the class has it times 1 / sqrt(1 + sigma^2).
    found = start.numpy() * np.sqrt(1 + sigmas[0] ** 2)
    whole = sigmas if loop.last is None else sigmas[:-1]
    found = sample(denoiser, found, whole, loop.sampler, seed=0, eta=loop.eta)
    if loop.last is not None:
        found = sample(denoiser, found, sigmas[-2:], loop.last)
    found = found / np.sqrt(1 + sigmas[-1] ** 2)
    close(found, x.numpy())
    loop.check(found)


# ------------------------------------------------------------------------------------ x0 + sigma noise
EULER_STEPS = {"euler": 0.0, "euler_a": 1.0, "heun": 0.0, "dpm2": 0.0, "dpm2_a": 1.0}
"""Sampler -> its eta."""
TWO_EVALUATIONS = ("heun", "dpm2", "dpm2_a")

OVERWRITTEN = [
    Loop("EulerDiscrete", "euler", LONG, 0.0131, 10.0807),
    Loop("EulerDiscrete", "euler", {**LONG, **V}, 2.2676e-06, 0.0002),
    Loop("EulerDiscrete", "euler", {**LONG, **KARRAS}, 0.16213932, 124.522995),
    Loop("EulerAncestralDiscrete", "euler_a", LONG, 0.1983, 152.3192),
    Loop("EulerAncestralDiscrete", "euler_a", {**LONG, **V}, 0.1412, 108.4439),
    Loop("HeunDiscrete", "heun", LONG, 0.0002, 0.1233),
    Loop("HeunDiscrete", "heun", {**LONG, **V}, 6.1112e-10, 4.6934e-07),
    Loop("HeunDiscrete", "heun", {**LONG, **KARRAS}, 1.9869554e-07, 0.00015),
    Loop("KDPM2Discrete", "dpm2", LONG, 0.0266, 20.4125),
    Loop("KDPM2Discrete", "dpm2", {**LONG, **V}, 6.1112e-10, 4.6934e-07),
    Loop("KDPM2AncestralDiscrete", "dpm2_a", LONG, 18.2030, 13979.9433),
    Loop("KDPM2AncestralDiscrete", "dpm2_a", {**LONG, **V}, 0.4320, 331.8133),
]
PROPER = [
    *OVERWRITTEN,
    Loop("LMSDiscrete", "lms", LONG, 0.0),
    Loop("LMSDiscrete", "lms", {**LONG, **V}, 0.0),
]


def run_class(loop: Loop, *, overwritten: bool) -> tuple[Any, Array]:
    """The tests' loop; they write the scaled input over the sample, which a pipeline does not."""
    scheduler = loop.made()
    scheduler.set_timesteps(loop.steps)
    x = dummy_sample() * float(scheduler.init_noise_sigma)
    ancestral = "Ancestral" in loop.scheduler
    noise = {"generator": torch.manual_seed(0)} if ancestral else {}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        output = dummy_model(scaled, t)
        x = scheduler.step(output, t, scaled if overwritten else x, **noise).prev_sample
    return scheduler, x.numpy()


def levels_of(scheduler: Any) -> Array:
    """The steps' sigmas; classes with two evaluations list them twice."""
    sigmas = scheduler.sigmas.tolist()
    return np.array(list(dict.fromkeys(sigmas)), np.float32)


def network(loop: Loop, scheduler: Any) -> Callable[[Array, float], Array]:
    """(scaled x, sigma) -> what the dummy model answers at that level."""
    table = NoiseLevels("linear", 0.0001, 0.02, 1100)
    told = dict(zip(scheduler.sigmas.tolist(), scheduler.timesteps.tolist(), strict=False))

    def run(scaled: Array, sigma: float) -> Array:
        return dummy_model(scaled, told.get(sigma, table.timestep(sigma)))

    return run


@pytest.mark.parametrize("loop", PROPER, ids=lambda r: f"{r.sampler}-{r.mean}")
def test_loops_of_samples(loop: Loop) -> None:
    scheduler, expected = run_class(loop, overwritten=False)
    sigmas = levels_of(scheduler)
    model, prediction = network(loop, scheduler), loop.prediction()

    def denoiser(x: Array, sigma: float) -> Array:
        output = model(x * np.float32(prediction.input_scale(sigma)), sigma)
        return prediction.denoise(x, output, sigma)

    start = dummy_sample().numpy() * np.float32(scheduler.init_noise_sigma)
    close(sample(denoiser, start, sigmas, loop.sampler, seed=0), expected)


class Overwriting:
    """A denoiser whose slopes make a sampler walk as if its sample were scaled before each evaluation.

    The first evaluation of a step scales x by c, so the step has to start at c x: what is missing, (c - 1) x, is spread
    over the step's length. The second evaluation sees its own x scaled, and has to make up for the same.
    """

    def __init__(self, loop: Loop, scheduler: Any) -> None:
        self.model, self.prediction = network(loop, scheduler), loop.prediction()
        sigmas = levels_of(scheduler).tolist()
        self.plan = []  # of each evaluation: first of its step, the step's sigma, where its slope leads
        for sigma, following in pairwise(sigmas):
            up = EULER_STEPS[loop.sampler] * np.sqrt(
                following**2 * (sigma**2 - following**2) / sigma**2
            )
            down = np.sqrt(following**2 - up**2)
            middle = down if loop.sampler == "heun" else np.sqrt(sigma * down)
            if loop.sampler in TWO_EVALUATIONS and following > 0:
                self.plan += [(True, sigma, middle), (False, sigma, down)]
            else:
                self.plan.append((True, sigma, down))

    def __call__(self, x: Array, sigma: float) -> Array:
        first, begin, target = self.plan.pop(0)
        scale = np.float32(self.prediction.input_scale(sigma))
        scaled = x * scale
        slope = (scaled - self.prediction.denoise(scaled, self.model(scaled, sigma), sigma)) / sigma
        if first:
            self.missing = (scale - 1) * x
        return (x - sigma * (slope + self.missing / (target - begin))).astype(np.float32)


@pytest.mark.parametrize("loop", OVERWRITTEN, ids=lambda r: f"{r.sampler}-{r.mean}")
def test_loops_that_overwrite_the_sample(loop: Loop) -> None:
    scheduler, expected = run_class(loop, overwritten=True)
    loop.check(expected)
    start = dummy_sample().numpy() * np.float32(scheduler.init_noise_sigma)
    denoiser = Overwriting(loop, scheduler)
    found = sample(denoiser, start, levels_of(scheduler), loop.sampler, seed=0)
    assert not denoiser.plan
    loop.check(found)
    close(found, expected)


# ------------------------------------------------------------------------------------------------- EDM
def test_the_loop_of_edm_euler() -> None:
    loop = Loop("EDMEuler", "euler", {"num_train_timesteps": 256}, 0.044, 34.1855)
    scheduler = loop.made()
    scheduler.set_timesteps(10)
    x = dummy_sample() * scheduler.init_noise_sigma
    start = x.numpy().astype(np.float32)
    for t in scheduler.timesteps:
        output = dummy_model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x).prev_sample
    loop.check(x.numpy())

    levels, prediction = NoiseLevels.edm(), Prediction("edm")

    def denoiser(x: Array, sigma: float) -> Array:
        output = dummy_model(x * prediction.input_scale(sigma), levels.timestep(sigma))
        return prediction.denoise(x, output, sigma)

    sigmas = _core.Schedule("karras", 10, levels).sigmas
    found = sample(denoiser, start, sigmas)
    close(found, x.numpy())
    loop.check(found)


@pytest.mark.parametrize(("kind", "mean"), [("epsilon", 0.0001), ("v_prediction", 0.0092)])
def test_the_loop_of_edm_dpm_solver(kind: str, mean: float) -> None:
    config = {"prediction_type": kind, "lower_order_final": False, "euler_at_final": False}
    loop = Loop(
        "EDMDPMSolverMultistep", "dpm++2m", {**config, "final_sigmas_type": "sigma_min"}, mean
    )
    scheduler = loop.made()
    scheduler.set_timesteps(10)
    x = dummy_sample()
    for t in scheduler.timesteps:
        x = scheduler.step(dummy_model(x, t), t, x).prev_sample
    loop.check(x.numpy())

    levels = NoiseLevels.edm()
    prediction = Prediction("edm" if kind == "epsilon" else "edm_v_prediction", 0.5)

    def denoiser(x: Array, sigma: float) -> Array:
        return prediction.denoise(x, dummy_model(x, levels.timestep(sigma)), sigma)

    # The last level comes twice: its test keeps the class from going to 0, so it stays where it is.
    sigmas = _core.Schedule("karras", 10, levels).sigmas[:-1]
    found = sample(denoiser, dummy_sample().numpy(), sigmas, "dpm++2m")
    loop.check(found)
