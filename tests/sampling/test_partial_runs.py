"""Explicit noise levels, parts of schedules, and the conventions of other programs for runs from a picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img import (
    StableDiffusion3Img2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)

import sdengine
from sdengine import _core
from sdengine.sampling import Schedule, ensemble_part, partial_run, sigmas
from tests.sampling.test_schedules import TABLE, close, levels

STRENGTHS = [0.05, 0.1, 0.29, 0.3, 0.5, 0.57, 0.75, 0.8, 0.999, 1.0]


def euler(steps: int, spacing: str = "leading", offset: int = 1) -> EulerDiscreteScheduler:
    scheduler = EulerDiscreteScheduler(
        **TABLE, beta_schedule="scaled_linear", timestep_spacing=spacing, steps_offset=offset
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("steps", [1, 4, 20, 29, 50])
def test_strength_equals_diffusers(steps: int, strength: float) -> None:
    scheduler = euler(steps)
    pipeline = SimpleNamespace(scheduler=scheduler)
    timesteps, count = StableDiffusionXLImg2ImgPipeline.get_timesteps(
        pipeline, steps, strength, "cpu"
    )
    if count == 0:
        with pytest.raises(sdengine.ParameterError, match="leaves none"):
            partial_run(steps, strength)
        return
    run = partial_run(steps, strength)
    assert run == (steps, count)
    schedule = Schedule("leading", steps, levels(), steps_offset=1)
    part = schedule.part(steps - run.kept, steps)
    close(part.timesteps, timesteps.numpy())
    close(part.sigmas, scheduler.sigmas.numpy()[scheduler.begin_index :])
    # A run from pure noise has the schedule's scale; another one starts at its first sigma.
    expected = schedule.initial_scale if run.kept == steps else part.sigmas[0]
    assert part.initial_scale == pytest.approx(expected)


@pytest.mark.parametrize("strength", [*STRENGTHS, 1 / 3, 0.7])
@pytest.mark.parametrize("steps", [1, 4, 10, 28, 50])
def test_strength_equals_diffusers_for_flow_models(steps: int, strength: float) -> None:
    pipeline = SimpleNamespace(scheduler=SimpleNamespace(timesteps=np.arange(steps), order=1))
    _, count = StableDiffusion3Img2ImgPipeline.get_timesteps(pipeline, steps, strength, "cpu")
    assert partial_run(steps, strength, "diffusers-flow") == (steps, count)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("steps", [1, 4, 20, 29])
def test_strength_as_comfyui_and_a1111_have_it(steps: int, strength: float) -> None:
    total = steps if strength > 0.9999 else int(steps / strength)
    assert partial_run(steps, strength, "comfyui") == (total, steps)
    encoded = int(min(strength, 0.999) * steps)
    assert partial_run(steps, strength, "a1111") == (steps, encoded + 1)
    # sigmas[steps - t_enc - 1:], of which the last is 0
    kept = sigmas("karras", steps)[steps - encoded - 1 :]
    assert len(kept) == partial_run(steps, strength, "a1111").kept + 1
    assert partial_run(steps, strength, "a1111-exact") == (int(steps / min(strength, 0.999)), steps)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.7, 0.8, 0.8135, 0.99])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [4, 10, 25, 40])
def test_ensembles_equal_diffusers(steps: int, spacing: str, share: float) -> None:
    scheduler = euler(steps, spacing)
    timesteps = scheduler.timesteps
    cut = round(1000 - share * 1000)
    base = [t for t in timesteps if t >= cut]  # StableDiffusionXLPipeline's denoising_end
    refiner, count = StableDiffusionXLImg2ImgPipeline.get_timesteps(
        SimpleNamespace(scheduler=scheduler), steps, 0.3, "cpu", denoising_start=share
    )
    whole = Schedule(spacing, steps, levels(), steps_offset=1)
    if count:
        part = whole.part(*ensemble_part(whole.timesteps, start=share))
        close(part.timesteps, refiner.numpy())
    if base:
        first, last = ensemble_part(whole.timesteps, end=share)
        part = whole.part(first, last)
        close(part.timesteps, np.array(base))
        # It hands over at the sigma where the refiner starts.
        assert part.sigmas[-1] == whole.sigmas[last]
        assert last == steps - count


def test_an_ensemble_of_three() -> None:
    times = Schedule("trailing", 20, levels()).timesteps
    parts = [
        ensemble_part(times, start=a, end=b) for a, b in ((None, 0.3), (0.3, 0.7), (0.7, None))
    ]
    assert parts == [(0, 6), (6, 14), (14, 20)]


def test_parts_join_to_the_whole() -> None:
    whole = Schedule("karras", 10, levels())
    first, second = whole.part(0, 4), whole.part(4, 10)
    assert (first.steps, second.steps) == (4, 6)
    assert np.array_equal(np.append(first.sigmas, second.sigmas[1:]), whole.sigmas)
    assert np.array_equal(np.append(first.timesteps, second.timesteps), whole.timesteps)
    assert first.sigmas[-1] == second.sigmas[0] > 0
    assert second.initial_scale == second.sigmas[0]


@pytest.mark.parametrize("bounds", [(-1, 3), (3, 3), (4, 2), (0, 11), (10, 11)])
def test_parts_that_do_not_exist(bounds: tuple[int, int]) -> None:
    with pytest.raises(sdengine.ParameterError, match="part of a schedule of 10 steps"):
        Schedule("karras", 10, levels()).part(*bounds)


def test_explicit_sigmas() -> None:
    values = [14.6, 5.0, 1.0, 0.3]
    schedule = Schedule.from_sigmas(values, levels())
    close(schedule.sigmas, np.array([*values, 0]))
    scheduler = EulerDiscreteScheduler(**TABLE, beta_schedule="scaled_linear")
    scheduler.set_timesteps(sigmas=[*values, 0.0])
    assert np.abs(schedule.timesteps - scheduler.timesteps.numpy()).max() <= 2e-3
    assert schedule.initial_scale == pytest.approx(14.6)
    assert np.array_equal(Schedule.from_sigmas([*values, 0], levels()).sigmas, schedule.sigmas)

    flow = Schedule.from_sigmas(np.array([1.0, 0.5]), _core.NoiseLevels.flow(3.0))
    assert flow.sigmas.tolist() == [1, 0.5, 0]
    assert flow.timesteps.tolist() == [1000, 500]


def test_explicit_timesteps_equal_diffusers() -> None:
    values = [999, 759, 500, 259, 19, 0]
    scheduler = EulerDiscreteScheduler(**TABLE, beta_schedule="scaled_linear")
    scheduler.set_timesteps(timesteps=values)
    schedule = Schedule.from_timesteps(values, levels())
    close(schedule.sigmas, scheduler.sigmas.numpy())
    assert schedule.timesteps.tolist() == values
    # Between entries of the table sigma is linear, as there.
    half = Schedule.from_timesteps([700.5], levels()).sigmas[0]
    assert half == pytest.approx((levels()[700] + levels()[701]) / 2, rel=1e-6)

    flow = _core.NoiseLevels.flow(3.0)
    for given in ([1000, 500], [1000, 500, 0]):
        found = Schedule.from_timesteps(given, flow)
        assert found.sigmas.tolist() == [1, 0.5, 0]
        assert found.timesteps.tolist() == [1000, 500]


@pytest.mark.parametrize(
    ("values", "flow", "message"),
    [
        ([], False, "there are none"),
        ([1.0, 2.0], False, "entry 1 is 2"),
        ([2.0, 2.0, 1.0], False, "must be numbers that fall"),
        ([float("nan")], False, "must be numbers that fall"),
        ([float("inf"), 1.0], False, "must be numbers that fall"),
        ([1.0, -0.5], False, "above 0 but for a final 0"),
        ([0.0], False, "above 0 but for a final 0"),
        ([1.5, 1.0], True, "at most 1"),
    ],
)
def test_bad_sigmas(values: list[float], flow: bool, message: str) -> None:
    table = _core.NoiseLevels.flow(1.0) if flow else levels()
    with pytest.raises(sdengine.ParameterError, match=message):
        Schedule.from_sigmas(values, table)


@pytest.mark.parametrize("values", [[], [1, 2], [1000, 1], [5, -1], [float("nan")]])
def test_bad_timesteps(values: list[float]) -> None:
    with pytest.raises(sdengine.ParameterError, match="explicit"):
        Schedule.from_timesteps(values, levels())
    if values != [1000, 1]:
        with pytest.raises(sdengine.ParameterError, match="explicit"):
            Schedule.from_timesteps(values, _core.NoiseLevels.flow(1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.5), "steps must be 1"),
        ((2.5, 0.5), "steps must be 1"),
        ((10**6, 0.5), "steps must be 1"),
        ((10, -0.1), "strength must be 0 to 1"),
        ((10, 1.1), "strength must be 0 to 1"),
        ((10, float("nan")), "strength must be 0 to 1"),
        ((10, 0.0), "leaves none"),
        ((10, 0.0, "comfyui"), "leaves no step"),
        ((10, 0.0, "a1111-exact"), "leaves no step"),
        ((10, 0.5, "other"), "a convention is"),
    ],
)
def test_bad_strengths(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(sdengine.ParameterError, match=message):
        partial_run(*arguments)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (-0.1, None, "start of a part must be 0 to 1"),
        (None, 1.1, "end of a part must be 0 to 1"),
        (0.5, 0.5, "below its end"),
        (0.8, 0.2, "below its end"),
        (1.0, None, "no step of 4"),
        (0.3, 0.31, "no step of 4"),
    ],
)
def test_bad_ensembles(start: float | None, end: float | None, message: str) -> None:
    with pytest.raises(sdengine.ParameterError, match=message):
        ensemble_part([999, 749, 499, 249], start=start, end=end)
