"""Bad guidance and bad branches give typed errors; the LCM embedding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.guidance import (
    AdaptiveProjection,
    DynamicThreshold,
    Guidance,
    MimicScale,
    NormalizedAttention,
    PerturbedAttention,
    SkipLayers,
    ZeroStar,
    lcm_guidance_embedding,
)

from .conftest import LEVELS, PREDICTION, SHAPE, STEPS, WIDTH, Model, branch, context, noise

POSITIVE, NEGATIVE = branch("positive", 0), branch("negative", 1)
NAN = float("nan")


@pytest.mark.parametrize(
    "values",
    [
        {"scale": NAN},
        {"scale": -1.0},
        {"scale": float("inf")},
        {"scale": []},
        {"scale": "7"},
        {"scale": [1.0, NAN]},
        {"interval": (0.6, 0.4)},
        {"interval": (-0.1, 1.0)},
        {"interval": 0.5},
        {"rescale": 1.5},
        {"rescale": NAN},
        {"image_scale": -1.0},
        {"projection": AdaptiveProjection(eta=NAN)},
        {"projection": AdaptiveProjection(norm_threshold=-1.0)},
        {"projection": AdaptiveProjection(momentum=2.0)},
        {"projection": 3.0},
        {"threshold": DynamicThreshold(percentile=95.0)},
        {"threshold": DynamicThreshold(floor=0.0)},
        {"mimic": MimicScale(scale=NAN)},
        {"mimic": MimicScale(percentile=1.1)},
        {"skip_layers": SkipLayers([])},
        {"skip_layers": SkipLayers(["mid_block"], scale=NAN)},
        {"perturbed_attention": PerturbedAttention(interval=(0.5, 0.1))},
        {"normalized_attention": NormalizedAttention(scale=0.5)},
        {"normalized_attention": NormalizedAttention(tau=0.0)},
        {"normalized_attention": NormalizedAttention(alpha=2.0)},
        {"zero_star": ZeroStar(-1)},
    ],
    ids=repr,
)
def test_figures_out_of_range(values: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match="guidance|must|interval"):
        Guidance(**values)


def test_guidance_is_plain_data() -> None:
    guidance = Guidance(scale=3.0, mimic=MimicScale(4.0))
    assert dataclasses.asdict(guidance)["mimic"] == {"scale": 4.0, "percentile": 1.0}
    assert dataclasses.replace(guidance, rescale=0.5).scale == 3.0
    assert Guidance(scale=np.float32(2.0)) == Guidance(scale=2.0)


@pytest.mark.parametrize(
    ("guidance", "words"),
    [
        (Guidance(scale=[3.0] * 3), "3 scales for a run of 4 steps"),
        (Guidance(skip_layers=SkipLayers(["mid_blok"])), "no layer 'mid_blok'"),
        (Guidance(skip_layers=SkipLayers([6])), "no layer '6'"),
        (Guidance(perturbed_attention=PerturbedAttention(["up_blocks.9"])), "it has 6: down"),
    ],
)
def test_guidance_that_does_not_fit_the_run(model: Model, guidance: Guidance, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        model.start([POSITIVE, NEGATIVE], guidance)


@pytest.mark.parametrize(
    ("guidance", "branches"),
    [
        (Guidance(scale=2.0), [POSITIVE]),
        (Guidance(scale=[1.0, 1.0, 1.0, 2.0]), [POSITIVE]),
        (Guidance(), [branch("positive", 0, weight=0.5)]),
        (Guidance(normalized_attention=NormalizedAttention()), [POSITIVE]),
        (Guidance(image_scale=2.0), [POSITIVE, branch("image", 2)]),
    ],
    ids=["scale", "last step", "weights", "attention", "image"],
)
def test_a_missing_negative_branch(model: Model, guidance: Guidance, branches) -> None:
    with pytest.raises(ParameterError, match="negative branch"):
        model.start(branches, guidance)


def test_a_negative_branch_is_needed_only_where_guidance_acts(model: Model) -> None:
    phases = [(1, [POSITIVE, NEGATIVE]), (STEPS, [POSITIVE])]
    model.start(phases, Guidance(scale=4.0, interval=(0.0, 0.25)))
    with pytest.raises(ParameterError, match="step 2 needs a negative"):
        model.start(phases, Guidance(scale=4.0))


@pytest.mark.parametrize(
    "phases",
    [
        [(STEPS, [])],
        [(STEPS, [NEGATIVE])],
        [(STEPS, [POSITIVE, NEGATIVE, NEGATIVE])],
        [(STEPS, [POSITIVE, POSITIVE, branch("image", 2)])],
        [(STEPS - 1, [POSITIVE])],
        [(2, [POSITIVE]), (2, [POSITIVE]), (STEPS, [POSITIVE])],
        [(0, [POSITIVE]), (STEPS, [POSITIVE])],
    ],
    ids=["empty", "no positive", "two negatives", "two and a picture", "short", "same", "zero"],
)
def test_bad_phases(model: Model, phases) -> None:
    with pytest.raises(ParameterError, match="phase"):
        model.start(phases)


def test_no_phases(model: Model) -> None:
    with pytest.raises(ParameterError, match="phases end at step 0"):
        _core.DenoiseRun(
            model.network,
            sampler="euler",
            x=model.latents,
            schedule=model.schedule(),
            levels=LEVELS,
            prediction=PREDICTION,
            seeds=[0, 1],
            phases=[],
        )


@pytest.mark.parametrize("kind", ["projection", "mimic", "zero_star"])
def test_kinds_that_know_two_conditions_only(model: Model, kind: str) -> None:
    values = {"projection": AdaptiveProjection(), "mimic": MimicScale(), "zero_star": ZeroStar()}
    branches = [POSITIVE, branch("image", 2), NEGATIVE]
    with pytest.raises(ParameterError, match="image branch"):
        model.start(branches, Guidance(scale=3.0, **{kind: values[kind]}))


def test_bad_branches(model: Model) -> None:
    damaged = context(0)
    damaged[1, 2, 3] = NAN
    for bad in (
        _core.Branch("positive", {"context": context(0, pictures=3)}),
        _core.Branch("positive", {"context": damaged}),
        _core.Branch("positive", {"context": context(0)}, weight=NAN),
        _core.Branch("positive", {"context": context(0)}, extra_channels=noise(2, 4, 8, 7)),
        _core.Branch("positive", {"context": context(0)}, extra_channels=noise(2, 8, 8)),
    ):
        with pytest.raises(ParameterError):
            model.start([bad])
    with pytest.raises(ParameterError, match="positive, negative or image"):
        _core.Branch("neutral", {})


def test_shapes_that_only_the_network_knows(model: Model) -> None:
    for bad in (
        _core.Branch("positive", {}),
        _core.Branch("positive", {"context": noise(SHAPE[0], 5, WIDTH + 1)}),
        _core.Branch("positive", {"context": context(0), "surprise": context(0)}),
        _core.Branch("positive", {"context": context(0)}, extra_channels=noise(*SHAPE)),
    ):
        run = model.start([bad])
        with pytest.raises(ParameterError):
            run.step()
        assert run.index == 0


def test_bad_blends(model: Model) -> None:
    good, mask = noise(*SHAPE), np.ones((SHAPE[0], 1, *SHAPE[2:]), np.float32)
    for blend in (
        (good[:1], good, mask),
        (good, good * NAN, mask),
        (good, good, mask[:, 0]),
        (good, good, mask * 2.0),
        (good, good, mask * NAN),
    ):
        with pytest.raises(ParameterError, match="blend"):
            model.start([POSITIVE], blend=(*blend, False))


def test_bad_latents(model: Model) -> None:
    run = model.start([POSITIVE])
    for bad in (noise(*SHAPE)[:1], noise(*SHAPE) * NAN, noise(SHAPE[0], 4, 64)):
        with pytest.raises(ParameterError, match="latents"):
            run.set_latents(bad)
    with pytest.raises(ParameterError, match="latents"):
        model.start([POSITIVE], x=noise(2, 4, 64))


@pytest.mark.parametrize("width", [256, 32, 7])
def test_lcm_embedding(width: int) -> None:
    from diffusers import LatentConsistencyModelPipeline

    embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    scales = [1.0, 4.5, 8.0]
    expected = embed(None, torch.tensor(scales) - 1, width).numpy()
    found = lcm_guidance_embedding(scales, width)
    assert found.dtype == np.float32
    # Single precision angles of up to 7000.
    assert np.abs(found - expected).max() <= 2e-3
    assert np.array_equal(lcm_guidance_embedding(8.0, width), found[2:])


def test_lcm_embedding_refuses() -> None:
    for scale, width in ((NAN, 256), ([[1.0]], 256), (1.0, 3)):
        with pytest.raises(ParameterError):
            lcm_guidance_embedding(scale, width)
