"""Runs of branches: phases, prompts of several lengths, blending, saving, forking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sdengine
from sdengine import _core
from sdengine.errors import Cancelled, SDEngineError
from sdengine.guidance import (
    AdaptiveProjection,
    DynamicThreshold,
    Guidance,
    MimicScale,
    PerturbedAttention,
    SkipLayers,
)
from tests.models import tiny_sd1_folder

from .conftest import LIMIT, SHAPE, STEPS, Model, branch, context, finish, noise, relative_error

POSITIVE, NEGATIVE = branch("positive", 0), branch("negative", 1)
PROJECTED = Guidance(scale=6.0, projection=AdaptiveProjection(0.2, 5.0, -0.6))


def test_phases_switch_at_their_step(model: Model) -> None:
    phases = [(1, [POSITIVE]), (3, [branch("positive", 5)]), (4, [branch("positive", 6)])]
    at = [0, 5, 5, 6]
    expected = model.euler(
        lambda step, x, sigma: x - sigma * model.predict(x, sigma, context(at[step]))
    )
    assert relative_error(finish(model.start(phases)), expected) <= LIMIT


def test_prompts_of_different_lengths(model: Model) -> None:
    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        positive = model.predict(x, sigma, context(0, 9))
        negative = model.predict(x, sigma, context(1))
        return x - sigma * (negative + 4.0 * (positive - negative))

    run = model.start([branch("positive", 0, tokens=9), NEGATIVE], Guidance(scale=4.0))
    assert relative_error(finish(run), model.euler(estimate)) <= LIMIT
    assert run.evaluations == 2 * STEPS


def test_branches_are_evaluated_one_by_one(model: Model) -> None:
    guidance = Guidance(scale=4.0)
    whole = finish(model.start([POSITIVE, NEGATIVE], guidance))
    model.network.release()
    # The graph of one branch is all that such a run needs.
    finish(model.start([POSITIVE], Guidance(scale=1.0)))
    built = model.network.graphs_built
    parts = finish(model.start([POSITIVE, NEGATIVE], guidance, together=SHAPE[0]))
    assert model.network.graphs_built == built
    assert relative_error(parts, whole) <= 1e-5


def test_network_options_are_those_of_every_branch(model: Model) -> None:
    options = {"perturb_layers": 1 << 2}

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        positive, negative = (model.predict(x, sigma, context(i), options) for i in (0, 1))
        return x - sigma * (negative + 3.0 * (positive - negative))

    run = model.start([POSITIVE, NEGATIVE], Guidance(scale=3.0), options=options)
    assert relative_error(finish(run), model.euler(estimate)) <= LIMIT


def test_graphs_of_every_kind_of_branch_stay_ready(model: Model) -> None:
    guidance = Guidance(
        scale=3.0,
        skip_layers=SkipLayers([0], interval=(0.0, 1.0)),
        perturbed_attention=PerturbedAttention(),
    )
    model.network.release()
    built = model.network.graphs_built
    finish(model.start([branch("positive", 0, tokens=9), NEGATIVE], guidance))
    assert model.network.graphs_built - built == 4


def test_extra_channels_differ_per_branch(tmp_path: Path) -> None:
    folder = tiny_sd1_folder(tmp_path / "model", seed=5, in_channels=8)
    model = Model(folder, sdengine.load(folder).denoiser, noise(*SHAPE))
    extras = [noise(*SHAPE, seed=7), np.zeros(SHAPE, np.float32)]
    branches = [
        branch(role, i, extra_channels=extras[i]) for i, role in enumerate(("positive", "negative"))
    ]

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        # predict() scales everything that it is given as latents.
        scale = np.sqrt(sigma**2 + 1)
        positive, negative = (
            model.predict(np.concatenate([x, extras[i] * scale], 1), sigma, context(i))
            for i in (0, 1)
        )
        return x - sigma * (negative + 3.0 * (positive - negative))

    run = model.start(branches, Guidance(scale=3.0))
    assert relative_error(finish(run), model.euler(estimate)) <= LIMIT


@pytest.mark.parametrize("flow", [False, True], ids=["k-space", "flow"])
def test_blend_keeps_the_original_at_every_noise_level(model: Model, flow: bool) -> None:
    original, kept_noise = noise(*SHAPE, seed=8), noise(*SHAPE, seed=9)
    mask = np.random.default_rng(1).random((SHAPE[0], 1, *SHAPE[2:]), np.float32)
    mask[:, :, :3], mask[:, :, 5:] = 0.0, 1.0
    settings: dict[str, object] = {"schedule": model.schedule()}
    if flow:
        levels = _core.NoiseLevels.flow(3.0)
        settings = {
            "schedule": _core.Schedule("simple", STEPS, levels),
            "levels": levels,
            "prediction": _core.Prediction("flow"),
        }
    run = model.start([POSITIVE], blend=(original, kept_noise, mask, False), **settings)
    plain = model.start([POSITIVE], **settings)
    for sigma in settings["schedule"].sigmas[1:]:
        plain.set_latents(run.latents)
        plain.step()
        run.step()
        kept = (1 - sigma if flow else 1) * original + sigma * kept_noise
        assert np.allclose(run.latents, mask * plain.latents + (1 - mask) * kept, atol=1e-5)
    assert run.done
    assert np.array_equal(run.latents[:, :, :3], original[:, :, :3])


def test_set_latents_goes_on_from_there(model: Model) -> None:
    first, second = model.start([POSITIVE]), model.start([POSITIVE])
    first.step()
    second.step()
    moved = noise(*SHAPE, seed=3)
    second.set_latents(moved)
    assert np.array_equal(second.latents, moved)
    assert relative_error(finish(second), finish(first)) > 0.01


@pytest.mark.parametrize("sampler", ["euler_a", "dpm++2m", "heun"])
def test_save_and_restore_continue_bit_for_bit(model: Model, sampler: str) -> None:
    def start() -> _core.DenoiseRun:
        return model.start([POSITIVE, NEGATIVE], PROJECTED, sampler=sampler)

    run = start()
    run.step()
    run.step()
    state = run.save()
    copy = start()
    copy.restore(state)
    assert (copy.index, copy.evaluations) == (run.index, run.evaluations)
    fork = run.fork()
    expected = finish(run)
    assert np.array_equal(finish(copy), expected)
    assert fork.index == 2  # a fork has a life of its own
    assert np.array_equal(finish(fork), expected)
    assert fork.evaluations == run.evaluations


def test_restore_refuses_a_damaged_state(model: Model) -> None:
    run = model.start([POSITIVE, NEGATIVE], PROJECTED)
    run.step()
    state = run.save()
    for damaged in (b"", state[:20], state[:-1], b"\xff" * 32):
        with pytest.raises(SDEngineError):
            run.restore(damaged)
    run.restore(state)
    assert run.index == 1


def test_a_cancelled_step_changes_nothing(model: Model) -> None:
    token = _core.CancelToken()
    token.cancel()
    run = model.start([POSITIVE, NEGATIVE], PROJECTED)
    run.step()
    before = run.save()
    with pytest.raises(Cancelled):
        run.step(token)
    assert run.save() == before


def test_a_batch_equals_single_runs(model: Model) -> None:
    """Norms, projections and percentiles are those of one picture."""
    guidance = Guidance(
        scale=6.0,
        rescale=0.3,
        projection=AdaptiveProjection(0.2, 5.0, -0.6),
        mimic=MimicScale(3.0, 0.9),
        threshold=DynamicThreshold(0.9, 0.5),
    )
    batch = finish(model.start([POSITIVE, NEGATIVE], guidance))
    for i in range(SHAPE[0]):
        alone = [
            _core.Branch(role, {"context": context(seed)[i : i + 1]})
            for seed, role in enumerate(("positive", "negative"))
        ]
        single = Model(model.folder, model.network, model.latents[i : i + 1])
        found = finish(single.start(alone, guidance))
        assert relative_error(found, batch[i : i + 1]) <= 1e-5
