"""Prompts, noise and guidance of the demo model: what is asked for is what the pictures show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sdengine
from demo.checker import check
from demo.evaluate import HELD_OUT
from demo.shapes import read_held_out
from sdengine import Guidance
from sdengine.api import demo_pipeline
from sdengine.guidance import (
    AdaptiveProjection,
    DynamicThreshold,
    MimicScale,
    NormalizedAttention,
    PerturbedAttention,
    SkipLayers,
)
from sdengine.options import GenerateOptions
from tests.sampling.test_random import numpy_cuda_normal

GROUND = "on a blue background"
RED = f"a red circle {GROUND}"
TESTS = read_held_out(HELD_OUT)[::50]


def triple(prompt: str, **options: object) -> tuple[str | None, str | None, str | None]:
    return check(demo_pipeline().generate(prompt, **{"seed": 1, **options}).image).triple


def latents(prompt: str | list[str], **options: object) -> np.ndarray:
    return demo_pipeline().generate(prompt, **{"seed": 1, "steps": 8, **options}).latents


def right(**options: object) -> int:
    """How many of four held-out captions come out right."""
    result = demo_pipeline().generate([t.caption for t in TESTS], seed=1000, steps=15, **options)
    return sum(check(i).matches(t.triple) for i, t in zip(result.images, TESTS, strict=True))


# ----------------------------------------------------------------------------------------- prompts
@pytest.mark.parametrize(
    ("prompt", "colour"),
    [
        (f"a [red:green:0.1] circle {GROUND}", "green"),
        (f"a [red:green:1] circle {GROUND}", "green"),
        (f"a [red:green:1.0] circle {GROUND}", "red"),
        (f"a [green::1] red circle {GROUND}", "red"),
        (f"a (red:1.3) circle {GROUND}", "red"),
        (f"{RED} AND {RED}", "red"),
        (f"{RED} AND a green star on a yellow background :-0.3", "red"),
    ],
)
def test_edited_prompts(prompt: str, colour: str) -> None:
    assert triple(prompt) == ("circle", colour, "blue")


def test_a_switch_happens_at_its_step() -> None:
    pipe = demo_pipeline()
    runs = [
        pipe.start(prompt, steps=8, seed=1, guidance_scale=1.0)
        for prompt in (f"a [red:green:3] circle {GROUND}", RED)
    ]
    for step in range(1, 5):
        for run in runs:
            run.step()
        assert np.array_equal(runs[0].latents, runs[1].latents) == (step <= 3)


def test_alternation_reads_both_words() -> None:
    pipe = demo_pipeline()
    red, green = RED, f"a green circle {GROUND}"
    runs = [pipe.start(p, steps=8, seed=1) for p in (f"a [red|green] circle {GROUND}", red)]
    for run in runs:
        run.step()
    np.testing.assert_array_equal(runs[0].latents, runs[1].latents)  # red at the first step
    second = pipe.start(green, steps=8, seed=1)
    second.step()
    second.latents = runs[0].latents
    for run in (runs[0], second):
        run.step()
    np.testing.assert_array_equal(runs[0].latents, second.latents)  # green at the second


def test_composed_prompts_share_their_weight() -> None:
    halves = latents(f"{RED} :0.5 AND {RED} :0.5")
    np.testing.assert_allclose(halves, latents(RED), atol=1e-4)
    # negative + scale * (w1 (p - n) + w2 (p - n)): two of them are twice the scale
    twice = latents(f"{RED} AND {RED}", guidance_scale=2.0)
    np.testing.assert_allclose(twice, latents(RED, guidance_scale=4.0), atol=1e-4)


def test_emphasis() -> None:
    plain = latents(RED)
    np.testing.assert_array_equal(latents(f"a (red:1.0) circle {GROUND}"), plain)
    assert np.abs(latents(f"a (red:1.4) circle {GROUND}") - plain).max() > 0.05
    np.testing.assert_array_equal(
        latents(f"a (red:1.4) circle {GROUND}", weighting="diffusers"),
        latents(f"a \\(red:1.4\\) circle {GROUND}"),
    )


def test_a_prompt_per_picture() -> None:
    prompts, negatives = [RED, "a green star on white"], ["a moon", ""]
    both = latents(prompts, negative_prompt=negatives, sampler="euler_a")
    for index, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        alone = latents(prompt, negative_prompt=negative, seed=1 + index, sampler="euler_a")
        np.testing.assert_array_equal(both[index], alone[0])


def test_negative_prompts_push_away() -> None:
    # Nothing says which colour the circle has.
    assert triple(f"a circle {GROUND}", negative_prompt=f"a green circle {GROUND}")[1] != "green"
    assert triple(f"a circle {GROUND}", negative_prompt=RED)[1] != "red"
    # A prompt against itself is no guidance, and no guidance reads no negative prompt.
    alone = latents(RED, guidance_scale=1.0)
    np.testing.assert_allclose(latents(RED, negative_prompt=RED), alone, atol=1e-4)
    np.testing.assert_array_equal(latents(RED, negative_prompt="a star", guidance_scale=1.0), alone)


def test_encoded_prompts_give_the_same_picture() -> None:
    cond = demo_pipeline().encode_prompt([RED, "a green star on white"], "a moon")
    np.testing.assert_array_equal(
        demo_pipeline().generate(conditioning=cond, seed=1, steps=8).latents,
        latents([RED, "a green star on white"], negative_prompt="a moon"),
    )


# ------------------------------------------------------------------------------------------- noise
def first_state(**options: object) -> np.ndarray:
    options = {"steps": 8, "seed": 7, "batch_size": 2, **options}
    return demo_pipeline().start(RED, **options).latents


def drawn(seed: int, *shape: int) -> np.ndarray:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()


def drawn_by_cuda(call: int) -> np.ndarray:
    noise = [numpy_cuda_normal(4 * 16 * 16, seed, call) for seed in (7, 8)]
    return np.reshape(noise, (2, 4, 16, 16))


@pytest.fixture(scope="module")
def sigma() -> float:
    """The first noise level: the largest of a model with zero terminal signal, as diffusers clips it."""
    value = demo_pipeline().start(RED, steps=8).sigma
    assert value == pytest.approx(4096.0, rel=1e-5)
    return value


def test_noise_of_each_program(sigma: float) -> None:
    one, two, batch = drawn(7, 1, 4, 16, 16), drawn(8, 1, 4, 16, 16), drawn(7, 2, 4, 16, 16)
    cuda = drawn_by_cuda(0)
    for compat, expected in {
        None: np.concatenate([one, two]) * sigma,
        "diffusers": batch * sigma,
        "comfyui": batch * np.sqrt(np.float32(sigma) ** 2 + 1),
        "a1111": cuda * sigma,
    }.items():
        np.testing.assert_allclose(first_state(compat=compat), expected, rtol=1e-6)


def test_noise_of_a1111_as_published(sigma: float) -> None:
    # The first numbers of torch's CUDA generator with seed 0, as rng_philox.py of A1111's web UI quotes them.
    expected = [-0.92466259, -0.42534415, -2.6438457, 0.14518388]
    found = first_state(compat="a1111", seed=0)[0].ravel()[:4] / sigma
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def step_noise(compat: str | None) -> np.ndarray:
    """What the first ancestral step adds, in units of its deviation."""
    options = {"steps": 8, "seed": 7, "batch_size": 2, "compat": compat, "schedule": "karras"}
    run = demo_pipeline().start(RED, sampler="euler_a", **options)
    # From a low level, so that float32 resolves the noise that is added.
    for _ in range(5):
        run.step()
    before, high = run.latents.astype(np.float64), run.sigma
    run.step()
    low = run.sigma
    up = np.sqrt(low**2 * (high**2 - low**2) / high**2)
    down = np.sqrt(low**2 - up**2)
    slope = (before - run.denoised) / high
    return (run.latents - before - slope * (down - high)) / up


def test_step_noise_of_each_program() -> None:
    # The sixth draw behind the start noise, or behind nothing where a new generator is taken.
    def after(seed: int, draws: int, *shape: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator).numpy() for _ in range(draws)][-1]

    one_each = np.concatenate([after(seed, 7, 1, 4, 16, 16) for seed in (7, 8)])
    np.testing.assert_allclose(step_noise(None), one_each, atol=1e-3)
    np.testing.assert_allclose(step_noise("diffusers"), after(7, 7, 2, 4, 16, 16), atol=1e-3)
    np.testing.assert_allclose(step_noise("comfyui"), after(8, 6, 2, 4, 16, 16), atol=1e-3)
    np.testing.assert_allclose(step_noise("a1111"), drawn_by_cuda(6), atol=1e-3)


def test_variations() -> None:
    base = first_state(seed=7, batch_size=1)
    with_strength = lambda strength: first_state(  # noqa: E731
        seed=7, batch_size=1, variation_seed=40, variation_strength=strength
    )
    np.testing.assert_array_equal(with_strength(0.0), base)
    other = first_state(seed=40, batch_size=1)
    np.testing.assert_allclose(with_strength(1.0), other, rtol=1e-5)
    # Half way along the arc between two columns that are alike in length.
    low, high = torch.from_numpy(base[0]), torch.from_numpy(other[0])
    cosine = torch.nn.functional.cosine_similarity(low, high, dim=1)
    half = torch.sin(torch.acos(cosine) / 2) / torch.sin(torch.acos(cosine))
    expected = half[:, None] * (low + high)
    np.testing.assert_allclose(with_strength(0.5)[0], expected.numpy(), rtol=1e-4, atol=0.05)


def test_a_batch_of_variations_shares_its_seed() -> None:
    options = {"variation_seed": 40, "variation_strength": 0.3}
    both = first_state(**options)
    for index in range(2):
        alone = first_state(batch_size=1, variation_seed=40 + index, variation_strength=0.3)
        np.testing.assert_array_equal(both[index], alone[0])


@pytest.mark.parametrize("compat", ["diffusers", "comfyui", "a1111"])
def test_other_programs_pictures_are_right(compat: str) -> None:
    assert right(compat=compat) >= 3


# ---------------------------------------------------------------------------------------- guidance
@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(4.0, projection=AdaptiveProjection()),
        Guidance(6.0, interval=(0.1, 0.8)),
        Guidance(5.0, rescale=0.7),
        Guidance([4.0] * 8 + [1.0] * 7),
        Guidance(3.0, perturbed_attention=PerturbedAttention()),
        Guidance(3.0, skip_layers=SkipLayers(["mid_block"], 1.0)),
        Guidance(6.0, mimic=MimicScale(3.0)),
        Guidance(6.0, threshold=DynamicThreshold(floor=3.0)),
        Guidance(1.0, normalized_attention=NormalizedAttention()),
    ],
    ids=lambda guidance: "+".join(["scale", *guidance.unusual()]),
)
def test_guided_pictures_are_right(guidance: Guidance) -> None:
    assert right(guidance=guidance) >= 3


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "euler_a_cfg_pp", "dpm++2m_cfg_pp"])
def test_cfg_plus_plus_at_scale_one(sampler: str) -> None:
    assert right(sampler=sampler, guidance_scale=1.0) >= 3


def test_guidance_costs_what_the_documentation_says() -> None:
    for guidance, evaluations in [
        (Guidance(1.0), 1),
        (Guidance(3.0), 2),
        (Guidance(3.0, perturbed_attention=PerturbedAttention()), 3),
        (Guidance(3.0, interval=(0.0, 0.5)), 1.5),
        (Guidance([3.0, 1.0, 1.0, 1.0]), 1.25),
    ]:
        run = demo_pipeline().start(RED, steps=4, seed=1, guidance=guidance)
        while not run.done:
            run.step()
        assert run.evaluations == 4 * evaluations


def test_composition_needs_no_guidance() -> None:
    # At scale 1: negative + (p - n) + (p - n), which asks for the negative prompt all the same.
    twice = latents(f"{RED} AND {RED}", guidance_scale=1.0)
    np.testing.assert_allclose(twice, latents(RED, guidance_scale=2.0), atol=1e-4)


# --------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    "options",
    [
        {"timesteps": [float("nan")]},
        {"timesteps": [float("inf"), 0]},
        {"timesteps": [10.5]},
        {"guidance": 3.0},
        {"compat": []},
        {"conditioning": "a prompt"},
        {"brownian": "yes"},
        {"s_tmax": float("nan")},
        {"s_tmax": "high"},
    ],
    ids=str,
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(sdengine.ParameterError, match=next(iter(options))):
        demo_pipeline().generate(RED, **options)


def test_none_is_the_default_of_every_option() -> None:
    nothing = dict.fromkeys(GenerateOptions.__annotations__)
    given = {**nothing, "steps": 8, "seed": 1}
    np.testing.assert_array_equal(demo_pipeline().generate(RED, **given).latents, latents(RED))
