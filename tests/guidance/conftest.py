"""A tiny UNet, runs over it, and the same runs written out in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import sdengine
from sdengine import _core
from sdengine.guidance import Guidance
from tests.models import UNET_CONFIG, tiny_sd1_folder

LIMIT = 1e-4
STEPS = 4
SHAPE = (2, 4, 8, 8)
WIDTH = UNET_CONFIG["cross_attention_dim"]
PREDICTION = _core.Prediction("epsilon")
LEVELS = _core.NoiseLevels("scaled_linear", 0.00085, 0.012, 1000)

Array = np.ndarray
Estimator = Callable[[int, Array, float], Array]


def relative_error(found: Array, expected: Array) -> float:
    """Relative L2 error."""
    assert found.shape == expected.shape
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def branch(role: str, seed: int, *, tokens: int = 5, **more: object) -> _core.Branch:
    return _core.Branch(role, {"context": context(seed, tokens)}, **more)


def context(seed: int, tokens: int = 5, pictures: int = SHAPE[0]) -> Array:
    return noise(pictures, tokens, WIDTH, seed=100 + seed)


@dataclass(frozen=True)
class Model:
    """A denoiser with its folder."""

    folder: Path
    network: _core.Network
    latents: Array

    def schedule(self, steps: int = STEPS) -> _core.Schedule:
        return _core.Schedule("karras", steps, LEVELS)

    def start(self, phases: object, guidance: Guidance | None = None, **more: object):
        """A run of four Euler steps; `phases` may be one list of branches."""
        schedule = more.pop("schedule", None) or self.schedule()
        if isinstance(phases[0], _core.Branch):
            phases = [(1000, phases)]
        token_side = more.pop("token_side", 0)
        settings = {
            "sampler": "euler",
            "x": self.latents * schedule.sigmas[0],
            "levels": LEVELS,
            "prediction": PREDICTION,
            "seeds": list(range(len(self.latents))),
            **more,
        }
        return _core.DenoiseRun(
            self.network,
            schedule=schedule,
            phases=phases,
            guidance=(guidance or Guidance()).native(token_side),
            **settings,
        )

    def predict(self, x: Array, sigma: float, text: Array, options=None, **inputs: Array) -> Array:
        """The raw prediction, float64."""
        schedule = self.schedule()
        step = int(np.argmin(np.abs(schedule.sigmas - sigma)))
        given = {
            "latents": (x / np.sqrt(sigma**2 + 1)).astype(np.float32),
            "timesteps": np.full(len(x), schedule.timesteps[step], np.float32),
            "context": text,
            **inputs,
        }
        return self.network.run(given, options or {})["prediction"].astype(np.float64)

    def euler(self, estimate: Estimator) -> Array:
        """The run with `estimate(step, x, sigma)` for the guided denoiser."""
        sigmas = self.schedule().sigmas.astype(np.float64)
        x = self.latents.astype(np.float64) * sigmas[0]
        for step, (sigma, following) in enumerate(pairwise(sigmas)):
            x = x + (x - estimate(step, x, sigma)) / sigma * (following - sigma)
        return x


def finish(run: _core.DenoiseRun) -> Array:
    """The final latents."""
    while not run.done:
        run.step()
    return run.latents


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tiny_sd1_folder(tmp_path_factory.mktemp("guidance") / "model", seed=4)
    return Model(folder, sdengine.load(folder).denoiser, noise(*SHAPE))
