"""Each kind of guidance against the same run in numpy, or with diffusers' arithmetic."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from sdengine.errors import ParameterError
from sdengine.guidance import (
    AdaptiveProjection,
    DynamicThreshold,
    Guidance,
    MimicScale,
    PerturbedAttention,
    SkipLayers,
    ZeroStar,
)

from .conftest import LIMIT, SHAPE, STEPS, Model, branch, context, finish, noise, relative_error

POSITIVE, NEGATIVE = branch("positive", 0), branch("negative", 1)


def cfg(model: Model, scale: float, x: np.ndarray, sigma: float) -> np.ndarray:
    """The guided raw prediction of the two branches above."""
    positive, negative = (model.predict(x, sigma, context(i)) for i in (0, 1))
    return negative + scale * (positive - negative)


def check(model: Model, guidance: Guidance, estimate, evaluations: int, branches=None) -> None:
    run = model.start(branches or [POSITIVE, NEGATIVE], guidance)
    found = finish(run)
    expected = model.euler(estimate)
    assert relative_error(found, expected) <= LIMIT
    assert run.evaluations == evaluations
    plain = model.euler(lambda _, x, sigma: x - sigma * cfg(model, 1.5, x, sigma))
    assert relative_error(expected, plain) > 100 * LIMIT  # the kind does something at all


def test_classifier_free(model: Model) -> None:
    check(
        model,
        Guidance(scale=6.0),
        lambda _, x, sigma: x - sigma * cfg(model, 6.0, x, sigma),
        2 * STEPS,
    )


def test_scale_one_costs_one_evaluation(model: Model) -> None:
    check(model, Guidance(), lambda _, x, sigma: x - sigma * cfg(model, 1.0, x, sigma), STEPS)


def test_a_scale_per_step(model: Model) -> None:
    scales = [7.0, 1.0, 4.0, 0.5]
    check(
        model,
        Guidance(scale=scales),
        lambda step, x, sigma: x - sigma * cfg(model, scales[step], x, sigma),
        2 * STEPS - 1,
    )


def test_interval(model: Model) -> None:
    check(
        model,
        Guidance(scale=9.0, interval=(0.25, 0.75)),
        lambda step, x, sigma: x - sigma * cfg(model, 9.0 if step in (1, 2) else 1.0, x, sigma),
        2 * STEPS - 2,
    )


def test_row_norms(model: Model) -> None:
    """As diffusers' Lumina2Pipeline: norms over the last axis."""

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        wanted, guided = (cfg(model, scale, x, sigma) for scale in (1.0, 6.0))
        norms = [np.linalg.norm(a, axis=-1, keepdims=True) for a in (wanted, guided)]
        return x - sigma * guided * norms[0] / norms[1]

    check(model, Guidance(scale=6.0, norms="row"), estimate, 2 * STEPS)


def test_rescale(model: Model) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        guided = torch.tensor(cfg(model, 8.0, x, sigma))
        positive = torch.tensor(model.predict(x, sigma, context(0)))
        return x - sigma * rescale_noise_cfg(guided, positive, 0.7).numpy()

    check(model, Guidance(scale=8.0, rescale=0.7), estimate, 2 * STEPS)


def test_norms_of_tokens(model: Model) -> None:
    """As in diffusers' QwenImagePipeline: norms over the channels of a patch of 2 x 2 latents."""

    def norms(values: np.ndarray) -> np.ndarray:
        n, c, h, w = values.shape
        cells = np.square(values).reshape(n, c, h // 2, 2, w // 2, 2).sum(axis=(1, 3, 5))
        return np.sqrt(cells).repeat(2, axis=1).repeat(2, axis=2)[:, None]

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        guided, positive = cfg(model, 8.0, x, sigma), model.predict(x, sigma, context(0))
        return x - sigma * guided * norms(positive) / norms(guided)

    run = model.start([POSITIVE, NEGATIVE], Guidance(scale=8.0), token_side=2)
    found, expected = finish(run), model.euler(estimate)
    assert relative_error(found, expected) <= LIMIT
    plain = model.euler(lambda _, x, sigma: x - sigma * cfg(model, 8.0, x, sigma))
    assert relative_error(expected, plain) > 100 * LIMIT
    # Without a negative prompt there is nothing to correct.
    alone = [finish(model.start([POSITIVE], token_side=side)) for side in (0, 2)]
    np.testing.assert_array_equal(*alone)
    with pytest.raises(ParameterError, match="are no whole tokens of side 3"):
        model.start([POSITIVE, NEGATIVE], Guidance(scale=8.0), token_side=3)
    with pytest.raises(ParameterError, match="norms must be one of free, token, row"):
        Guidance(norms=2)


def test_adaptive_projection(model: Model) -> None:
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    scale, eta, threshold, momentum = 8.0, 0.3, 6.0, -0.5
    buffer = MomentumBuffer(momentum)

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        clean = [torch.tensor(x - sigma * model.predict(x, sigma, context(i))) for i in (0, 1)]
        # The paper's form, in which scale - 1 multiplies the difference.
        return normalized_guidance(*clean, scale - 1, buffer, eta, threshold, True).numpy()

    guidance = Guidance(scale=scale, projection=AdaptiveProjection(eta, threshold, momentum))
    check(model, guidance, estimate, 2 * STEPS)


def test_projection_that_keeps_everything_is_plain_guidance(model: Model) -> None:
    plain = finish(model.start([POSITIVE, NEGATIVE], Guidance(scale=5.0)))
    kept = Guidance(scale=5.0, projection=AdaptiveProjection(1.0, 0.0, 0.0))
    assert relative_error(finish(model.start([POSITIVE, NEGATIVE], kept)), plain) <= 1e-5


def test_dynamic_threshold(model: Model) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e6
    )

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        clean = torch.tensor(x - sigma * cfg(model, 5.0, x, sigma))
        return scheduler._threshold_sample(clean).numpy()

    check(model, Guidance(scale=5.0, threshold=DynamicThreshold(0.9)), estimate, 2 * STEPS)


def test_mimic_scale(model: Model) -> None:
    scale, wanted, percentile = 12.0, 4.0, 0.95

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        guided = x - sigma * cfg(model, scale, x, sigma)
        reference = x - sigma * cfg(model, wanted, x, sigma)
        mean = guided.mean((2, 3), keepdims=True)
        guided = guided - mean
        spread = np.abs(reference - reference.mean((2, 3), keepdims=True)).max((2, 3))
        limit = np.maximum(np.quantile(np.abs(guided).reshape(2, 4, -1), percentile, 2), spread)
        limit, spread = limit[..., None, None], spread[..., None, None]
        return np.clip(guided, -limit, limit) / limit * spread + mean

    guidance = Guidance(scale=scale, mimic=MimicScale(wanted, percentile))
    check(model, guidance, estimate, 2 * STEPS)


def test_zero_star(model: Model) -> None:
    from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale

    def estimate(step: int, x: np.ndarray, sigma: float) -> np.ndarray:
        if step == 0:
            return x
        positive, negative = (model.predict(x, sigma, context(i)) for i in (0, 1))
        flat = (torch.tensor(p).flatten(1) for p in (positive, negative))
        negative = cfg_zero_star_scale(*flat).numpy()[:, :, None, None] * negative
        return x - sigma * (negative + 5.0 * (positive - negative))

    check(model, Guidance(scale=5.0, zero_star=ZeroStar(1)), estimate, 2 * STEPS - 2)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_weakened_layers(model: Model, scale: float) -> None:
    """SLG and PAG together; what they do inside the network is compared in test_networks."""
    layers = model.network.guidance_layers
    skipped = {"skip_layers": 1 << layers.index("down_blocks.0.attentions.1")}
    perturbed = {"perturb_layers": 1 << layers.index("mid_block.attentions.0")}

    def estimate(step: int, x: np.ndarray, sigma: float) -> np.ndarray:
        guided = cfg(model, scale, x, sigma)
        positive = model.predict(x, sigma, context(0))
        if step < 2:
            guided += 2.8 * (positive - model.predict(x, sigma, context(0), skipped))
        guided += 3.0 * (positive - model.predict(x, sigma, context(0), perturbed))
        return x - sigma * guided

    guidance = Guidance(
        scale=scale,
        skip_layers=SkipLayers(["down_blocks.0.attentions.1"], interval=(0.0, 0.5)),
        perturbed_attention=PerturbedAttention(),
    )
    check(model, guidance, estimate, (STEPS if scale == 1.0 else 2 * STEPS) + STEPS + 2)


def test_composition_of_prompts(model: Model) -> None:
    weights = [0.7, 1.1, -0.4]
    branches = [branch("positive", 2 + i, weight=w) for i, w in enumerate(weights)]

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        negative = model.predict(x, sigma, context(1))
        total = sum(
            w * (model.predict(x, sigma, context(2 + i)) - negative) for i, w in enumerate(weights)
        )
        return x - sigma * (negative + 4.0 * total)

    check(model, Guidance(scale=4.0), estimate, 4 * STEPS, [*branches, NEGATIVE])


def test_weights_that_add_up_to_one_need_no_negative(model: Model) -> None:
    halves = [branch("positive", i, weight=0.5) for i in (2, 3)]
    run = model.start(halves)
    expected = model.euler(
        lambda _, x, sigma: (
            x - sigma * sum(0.5 * model.predict(x, sigma, context(i)) for i in (2, 3))
        )
    )
    assert relative_error(finish(run), expected) <= LIMIT


@pytest.mark.parametrize(
    ("text", "image", "branches"), [(7.5, 1.5, 3), (3.0, 3.0, 2), (4.0, 1.0, 2)]
)
def test_two_conditions(model: Model, text: float, image: float, branches: int) -> None:
    """InstructPix2Pix; a branch whose factor is 0 is not evaluated."""

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        both, neither, picture = (model.predict(x, sigma, context(i)) for i in (0, 1, 2))
        guided = neither + image * (picture - neither) + text * (both - picture)
        return x - sigma * guided

    conditions = [POSITIVE, branch("image", 2), NEGATIVE]
    guidance = Guidance(scale=text, image_scale=image)
    check(model, guidance, estimate, branches * STEPS, conditions)


def test_samplers_that_read_the_unguided_estimate(model: Model) -> None:
    """CFG++ evaluates the negative branch even at scale 1."""
    run = model.start([POSITIVE, NEGATIVE], sampler="euler_cfg_pp")
    sigmas = model.schedule().sigmas.astype(np.float64)
    x = noise(*SHAPE).astype(np.float64) * sigmas[0]
    for sigma, following in pairwise(sigmas):
        clean = x - sigma * cfg(model, 1.0, x, sigma)
        x = clean + model.predict(x, sigma, context(1)) * following
    assert relative_error(finish(run), x) <= LIMIT
    assert run.evaluations == 2 * STEPS
