"""Runs with step caching, against the same runs written out over the network's parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel

from sdengine import _core
from sdengine.errors import ParameterError, SDEngineError
from sdengine.guidance import Guidance, PerturbedAttention, SkipLayers
from tests.guidance.conftest import SHAPE, Model, branch, context, finish, noise, relative_error
from tests.models import tiny_sd1_folder
from tests.parity.dit import SD35, native, tiny
from tests.parity.test_dit_networks import SD3_TABLES

LIMIT = 1e-5
STEPS = 4
SCALE = 3.0
GUIDED = Guidance(scale=SCALE)
KEEPING, SHALLOW, FIRST, REST, LAST = 1, 2, 3, 4, 5
Array = np.ndarray


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Model:
    import sdengine

    folder = tiny_sd1_folder(tmp_path_factory.mktemp("cached") / "model", seed=4)
    return Model(folder, sdengine.load(folder).denoiser, noise(*SHAPE))


def pair(positive: int = 0, negative: int = 1) -> list[_core.Branch]:
    return [branch("positive", positive), branch("negative", negative)]


class ByHand:
    """A UNet run whose steps in `full` keep features and whose others read them."""

    def __init__(self, model: Model, full: set[int]) -> None:
        self.model, self.full, self.calls = model, full, 0
        self.kept: dict[Any, dict[str, Array]] = {}

    def predict(
        self, step: int, x: Array, sigma: float, text: int, weak: Any = (), **inputs: Array
    ) -> Array:
        schedule = self.model.schedule()
        at = int(np.argmin(np.abs(schedule.sigmas - sigma)))
        given = {
            "latents": (x / np.sqrt(sigma**2 + 1)).astype(np.float32),
            "timesteps": np.full(len(x), schedule.timesteps[at], np.float32),
            "context": context(text),
        }
        if step in self.full:
            options = {"part": KEEPING, **dict(weak)}
            made = self.model.network.run({**given, **inputs}, options)
            kept = {k: v for k, v in inputs.items() if k == "control_0"}
            self.kept[text, weak] = {"features": made["features"], **kept}
        else:
            given |= self.kept[text, weak]
            made = self.model.network.run(given, {"part": SHALLOW, **dict(weak)})
        return made["prediction"].astype(np.float64)

    def estimate(self, step: int, x: Array, sigma: float) -> Array:
        positive, negative = self.predict(step, x, sigma, 0), self.predict(step, x, sigma, 1)
        return x - sigma * (negative + SCALE * (positive - negative))


# ------------------------------ UNets
def test_an_interval_of_one_changes_nothing(unet: Model) -> None:
    plain = finish(unet.start(pair(), GUIDED))
    run = unet.start(pair(), GUIDED, cache=(1, 0.0, []))
    np.testing.assert_array_equal(finish(run), plain)
    assert (run.evaluations, run.reused) == (8, 0)


@pytest.mark.parametrize(
    ("interval", "fresh", "full"),
    [(2, [], {0, 2}), (3, [], {0, 3}), (9, [], {0}), (9, [2], {0, 2}), (2, [1, 2, 77], {0, 1, 2})],
)
def test_which_steps_are_full(unet: Model, interval: int, fresh: list[int], full: set[int]) -> None:
    run = unet.start(pair(), GUIDED, cache=(interval, 0.0, fresh))
    found = finish(run)
    assert relative_error(found, unet.euler(ByHand(unet, full).estimate)) <= LIMIT
    assert run.reused == (STEPS - len(full)) * 2 * len(unet.latents)
    assert run.evaluations == 8
    assert relative_error(found, finish(unet.start(pair(), GUIDED))) > LIMIT


def test_both_evaluations_of_a_step_are_full_or_neither(unet: Model) -> None:
    run = unet.start(pair(), GUIDED, sampler="heun", cache=(2, 0.0, []))
    plain = unet.start(pair(), GUIDED, sampler="heun")
    counts = []
    while not run.done:
        run.step()
        plain.step()
        if run.index == 1:
            np.testing.assert_array_equal(run.latents, plain.latents)
        counts.append((run.evaluations, run.reused // len(unet.latents)))
    assert counts == [(4, 0), (8, 4), (12, 4), (14, 6)]


def test_a_graph_per_part(unet: Model) -> None:
    before = unet.network.graphs_built
    finish(unet.start(pair(5, 6), GUIDED, cache=(2, 0.0, [])))
    assert unet.network.graphs_built - before <= 2


def test_another_text_takes_nothing_over(unet: Model) -> None:
    first, second = [branch("positive", 0)], [branch("positive", 2)]
    run = unet.start([(2, first), (STEPS, second)], cache=(9, 0.0, []))
    by_hand = ByHand(unet, {0, 2})

    def estimate(step: int, x: Array, sigma: float) -> Array:
        return x - sigma * by_hand.predict(step, x, sigma, 0 if step < 2 else 2)

    assert relative_error(finish(run), unet.euler(estimate)) <= LIMIT


def test_controls_rest_in_cached_steps(unet: Model) -> None:
    """The residual that a cached step reads is that of the last full one; a control that starts or ends is heeded."""
    sizes = {"control_0": (32, 8, 8), "control_mid": (64, 4, 4)}
    residuals = {n: noise(2, *shape, seed=40 + i) for i, (n, shape) in enumerate(sizes.items())}
    control = _core.Control(None, residuals, [0.7, 0.7, 0.0, 0.0])
    run = unet.start([branch("positive", 0)], cache=(9, 0.0, []), controls=[control])
    by_hand = ByHand(unet, {0, 2})

    def estimate(step: int, x: Array, sigma: float) -> Array:
        given = {n: 0.7 * r for n, r in residuals.items()} if step < 2 else {}
        return x - sigma * by_hand.predict(step, x, sigma, 0, **given)

    assert relative_error(finish(run), unet.euler(estimate)) <= LIMIT


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(SCALE, skip_layers=SkipLayers(("mid_block",), 2.0, (0.0, 1.0))),
        Guidance(SCALE, perturbed_attention=PerturbedAttention(("up_blocks.1",), 2.0)),
    ],
    ids=["skipped", "perturbed"],
)
def test_weakened_branches_keep_features_of_their_own(unet: Model, guidance: Guidance) -> None:
    run = unet.start(pair(), guidance, cache=(3, 0.0, []))
    by_hand = ByHand(unet, {0, 3})
    layers = unet.network.guidance_layers
    option, under = ("skip_layers", "mid") if guidance.skip_layers else ("perturb_layers", "up")
    weak = ((option, sum(1 << i for i, name in enumerate(layers) if name.startswith(under))),)

    def estimate(step: int, x: Array, sigma: float) -> Array:
        positive, weakened = (by_hand.predict(step, x, sigma, 0, w) for w in ((), weak))
        negative = by_hand.predict(step, x, sigma, 1)
        guided = negative + SCALE * (positive - negative)
        return x - sigma * (guided + 2.0 * (positive - weakened))

    assert relative_error(finish(run), unet.euler(estimate)) <= LIMIT
    assert run.reused == 2 * 3 * len(unet.latents)


def test_a_branch_that_was_not_asked_makes_the_step_full(unet: Model) -> None:
    """Guidance begins in the third step: the negative branch has nothing to read there."""
    guidance = Guidance(scale=SCALE, interval=(0.5, 1.0))
    run = unet.start(pair(), guidance, cache=(9, 0.0, []))
    counts = []
    for _ in range(STEPS):
        run.step()
        counts.append(run.reused // len(unet.latents))
    assert counts == [0, 1, 1, 3]


def test_new_latents_take_nothing_over(unet: Model) -> None:
    run = unet.start(pair(), GUIDED, cache=(9, 0.0, []))
    run.step()
    run.set_latents(run.latents * np.float32(0.5))
    run.step()
    assert run.reused == 0
    run.step()
    assert run.reused > 0


# ------------------------------ saved runs
@pytest.mark.parametrize("pause", [1, 2, 3])
def test_saved_in_the_middle(unet: Model, pause: int) -> None:
    settings: dict[str, Any] = {"cache": (3, 0.0, []), "sampler": "dpm++2m"}
    straight = unet.start(pair(), GUIDED, **settings)
    expected = finish(straight)
    run = unet.start(pair(), GUIDED, **settings)
    for _ in range(pause):
        run.step()
    fork, again = run.fork(), unet.start(pair(), GUIDED, **settings)
    again.restore(run.save())
    for one in (fork, again, run):
        np.testing.assert_array_equal(finish(one), expected)
        assert one.reused == straight.reused > 0


def test_a_damaged_state_is_refused(unet: Model) -> None:
    def start(**more: Any) -> _core.DenoiseRun:
        return unet.start(pair(), GUIDED, cache=(3, 0.0, []), **more)

    run = start()
    run.step()
    saved = run.save()
    begins = saved.index(b"features")
    rng = np.random.default_rng(0)
    for at in [*range(16, begins + 64, 3), *rng.integers(0, len(saved), 20)]:
        for damaged in (saved[:at], saved[:at] + bytes([saved[at] ^ 255]) + saved[at + 1 :]):
            other = start()
            try:
                other.restore(damaged)
                other.step()
            except SDEngineError:
                continue
    with pytest.raises(SDEngineError, match="damaged, or another run's"):
        start().restore(unet.start(pair(), GUIDED).save())


# ------------------------------ transformers
class Transformer:
    """A tiny SD3 and its runs."""

    def __init__(self, folder: Path) -> None:
        model = tiny(SD3Transformer2DModel, SD35 | {"num_layers": 3})
        with torch.no_grad():  # slow enough for a cache
            model.transformer_blocks[0].norm1.linear.weight.mul_(0.3)
        self.network = native(model, "mmdit", SD3_TABLES, folder)
        self.levels = _core.NoiseLevels.flow(1.0)
        self.schedule = _core.Schedule("simple", 8, self.levels)
        self.x = noise(2, 4, 8, 8, seed=5) * np.float32([1.0, 0.5]).reshape(2, 1, 1, 1)

    def branches(self, pictures: slice = slice(None), tokens: tuple[int, int] = (7, 7)) -> Any:
        made = []
        for seed, (role, length) in enumerate(zip(("positive", "negative"), tokens, strict=True)):
            inputs = {
                "context": noise(2, length, 32, seed=50 + seed)[pictures],
                "pooled": noise(2, 48, seed=60 + seed)[pictures],
            }
            made.append(_core.Branch(role, inputs))
        return made

    def start(self, cache: Any, pictures: slice = slice(None), **more: Any) -> _core.DenoiseRun:
        x = self.x[pictures]
        tokens = more.pop("tokens", (7, 7))
        return _core.DenoiseRun(
            self.network,
            sampler="euler",
            x=x,
            schedule=self.schedule,
            levels=self.levels,
            prediction=_core.Prediction("flow"),
            seeds=list(range(len(x))),
            phases=[(1000, self.branches(pictures, tokens))],
            guidance=GUIDED.native(0),
            cache=cache,
            **more,
        )

    def by_hand(self, threshold: float) -> tuple[Array, list[bool]]:
        """The first picture's run over the parts, and which steps took something over."""
        x, kept, accepted = self.x[:1].astype(np.float64), {}, []
        inputs = [
            {"context": noise(2, 7, 32, seed=50 + i)[:1], "pooled": noise(2, 48, seed=60 + i)[:1]}
            for i in range(2)
        ]
        sigmas, times = self.schedule.sigmas, self.schedule.timesteps
        for step in range(len(sigmas) - 1):
            given = {"latents": np.float32(x), "timesteps": np.float32([times[step]])}
            firsts = [self.network.run({**given, **one}, {"part": FIRST}) for one in inputs]
            changes = [first.pop("change") for first in firsts]
            reuse = bool(kept) and all(
                np.abs(new - old["change"]).sum() < threshold * np.abs(old["change"]).sum()
                for new, old in zip(changes, kept.values(), strict=True)
            )
            predictions = []
            for i, (one, first) in enumerate(zip(inputs, firsts, strict=True)):
                behind = {**given, **one, **first}
                if reuse:
                    made = self.network.run(
                        {**behind, "residual": kept[i]["residual"]}, {"part": LAST}
                    )
                else:
                    made = self.network.run(behind, {"part": REST})
                    kept[i] = {"change": changes[i], "residual": made["residual"]}
                predictions.append(made["prediction"].astype(np.float64))
            accepted.append(reuse)
            positive, negative = predictions
            x += (negative + SCALE * (positive - negative)) * (sigmas[step + 1] - sigmas[step])
        return x, accepted


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    return Transformer(tmp_path_factory.mktemp("cached"))


def test_a_threshold_of_zero_changes_nothing(dit: Transformer) -> None:
    run = dit.start((9, 0.0, []))
    np.testing.assert_array_equal(finish(run), finish(dit.start(None)))
    assert (run.evaluations, run.reused) == (16, 0)


def test_the_first_block_decides(dit: Transformer) -> None:
    seen = set()
    for threshold in (0.1, 0.25, 0.3, 0.4, 0.8):
        expected, accepted = dit.by_hand(threshold)
        run = dit.start((99, threshold, []), slice(0, 1))
        assert relative_error(finish(run), expected) <= LIMIT
        assert run.reused == 2 * sum(accepted)
        seen.add(sum(accepted))
    assert len(seen) >= 3  # these thresholds make a difference


def test_no_more_in_a_row_than_the_interval_says(dit: Transformer) -> None:
    run = dit.start((3, 1e9, []), slice(0, 1))
    counts = []
    while not run.done:
        run.step()
        counts.append(run.reused // 2)
    assert counts == [0, 1, 2, 2, 3, 4, 4, 5]


@pytest.mark.parametrize("tokens", [(7, 7), (7, 4)], ids=["one-batch", "unequal-texts"])
def test_pictures_decide_for_themselves(dit: Transformer, tokens: tuple[int, int]) -> None:
    """One changes faster than the other, and a batch is as each picture alone."""
    settings = {"cache": (9, 0.3, []), "tokens": tokens}
    both = dit.start(**settings)
    together = finish(both)
    counts = []
    for index in range(2):
        run = dit.start(**settings, pictures=slice(index, index + 1))
        assert relative_error(together[index : index + 1], finish(run)) <= LIMIT
        counts.append(run.reused)
    assert both.reused == sum(counts)
    assert 0 < counts[0] != counts[1] > 0


def test_a_transformer_saved_in_the_middle(dit: Transformer) -> None:
    expected = finish(dit.start((9, 0.3, [])))
    run = dit.start((9, 0.3, []))
    for _ in range(4):
        run.step()
    other = dit.start((9, 0.3, []))
    other.restore(run.save())
    for one in (run.fork(), other, run):
        np.testing.assert_array_equal(finish(one), expected)
        assert one.reused > 0


def test_one_by_one_is_as_in_a_batch(dit: Transformer) -> None:
    found = finish(dit.start((9, 0.3, []), together=1))
    assert relative_error(found, finish(dit.start((9, 0.3, [])))) <= LIMIT


# ------------------------------ refusals
def test_what_does_not_go_together(unet: Model, dit: Transformer, tmp_path: Path) -> None:
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: dit.start((0, 0.1, [])), "interval is 1 evaluation or more, not 0"),
        (lambda: dit.start((2, -0.1, [])), "threshold is 0 or more"),
        (lambda: dit.start((2, float("nan"), [])), "threshold is 0 or more"),
        (
            lambda: unet.start(pair(), cache=(2, 0.0, []), tiles=(8, 0, "uniform")),
            "step caching and tiled diffusion do not go together",
        ),
    ]
    single = native(
        tiny(SD3Transformer2DModel, SD35 | {"num_layers": 1, "dual_attention_layers": ()}),
        *("mmdit", SD3_TABLES, tmp_path),
    )
    assert single.reuse == ""
    alone = Transformer.__new__(Transformer)
    alone.__dict__.update({**vars(dit), "network": single})
    refused.append((lambda: alone.start((2, 0.1, [])), "no method for this 'mmdit' network"))
    for call, words in refused:
        with pytest.raises(ParameterError, match=words):
            call()
