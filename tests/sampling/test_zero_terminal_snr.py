"""Samplers over the levels of a model with zero terminal SNR, whose largest sigma is 4096, against k-diffusion."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from sdengine.api import demo_pipeline
from sdengine.sampling import sample
from sdengine.steps import plan_steps

from .test_samplers import K_SAMPLERS, mixture, relative, start, torch_mixture

SCHEDULES = ("trailing", "discrete", "karras")
ROUNDING = 1e-4
"""In float32 latents beside noise of deviation 4096 are known to 2e-4."""


def levels_of(schedule: str) -> np.ndarray:
    """The 20 steps of the demo model."""
    pipe = demo_pipeline()
    steps = plan_steps(pipe.model, pipe.start("", steps=20, schedule=schedule).parameters)
    return np.asarray(steps.schedule.sigmas, np.float32)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", sorted(K_SAMPLERS))
def test_equals_k_diffusion(k_diffusion: ModuleType, name: str, schedule: str) -> None:
    levels = levels_of(schedule)
    x = start(levels)
    generator = torch.Generator().manual_seed(77)
    options: dict[str, object] = {"disable": True}
    if name.endswith("_a") or "sde" in name:
        options["noise_sampler"] = lambda *_: torch.randn(x.shape, generator=generator)
    if name == "dpm++2m_sde_heun":
        options["solver_type"] = "heun"
    function = getattr(k_diffusion, K_SAMPLERS[name])
    expected = function(torch_mixture, torch.tensor(x), torch.tensor(levels), **options).numpy()
    found = sample(mixture, x, levels, name, 77, brownian=False)
    assert relative(found, expected) <= ROUNDING
