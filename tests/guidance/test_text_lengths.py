"""Texts of unequal length in one batch: every picture as if it were alone.

Bit for bit, where all lengths differ; a batch of equal lengths rounds otherwise than single pictures do.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import sdengine
from sdengine import Conditioning, ParameterError, _core
from sdengine.conditioning import stack_texts
from sdengine.guidance import Guidance, NormalizedAttention, SkipLayers
from sdengine.text_encoders import EncodedText

from .conftest import WIDTH, Array, Model, finish, noise, relative_error

LENGTHS, AWAY = (7, 3, 5), (4, 6, 2)
SEEDS = [5, 6, 7]
GUIDANCE = Guidance(scale=4.0, rescale=0.3)


def filled(lengths: tuple[int, ...], seed: int, rest: float) -> Array:
    """Contexts filled up with `rest`, which nobody must read."""
    context = noise(len(lengths), max(lengths), WIDTH, seed=seed)
    for row, length in zip(context, lengths, strict=True):
        row[length:] = rest
    return context


def branches(
    picture: int | None = None,
    rest: float = 99.0,
    of: tuple[tuple[int, ...], ...] = (LENGTHS, AWAY),
) -> list[_core.Branch]:
    """A positive and a negative one for all pictures, or for one of them as it stands alone."""
    made = []
    for role, lengths, seed in zip(("positive", "negative"), of, (1, 2), strict=True):
        context = filled(lengths, seed, rest)
        if picture is None:
            made.append(_core.Branch(role, {"context": context}, lengths=lengths))
        else:
            own = context[picture : picture + 1, : lengths[picture]]
            made.append(_core.Branch(role, {"context": own}))
    return made


def three(model: Model) -> Model:
    return Model(model.folder, model.network, noise(3, 4, 8, 8, seed=9))


def alone(
    model: Model, picture: int, guidance: Guidance, of: object = (LENGTHS, AWAY), **more: object
) -> Array:
    single = Model(model.folder, model.network, three(model).latents[picture : picture + 1])
    run = single.start(branches(picture, of=of), guidance, seeds=[SEEDS[picture]], **more)
    return finish(run)


@pytest.mark.parametrize("sampler", ["euler", "euler_a"])
@pytest.mark.parametrize("together", [0, 1, 2])
def test_a_batch_is_every_picture_alone(model: Model, sampler: str, together: int) -> None:
    settings = {"sampler": sampler, "together": together}
    run = three(model).start(branches(), GUIDANCE, seeds=SEEDS, **settings)
    found = finish(run)
    assert run.evaluations == 8  # two branches, four steps
    for i in range(3):
        assert np.array_equal(found[i : i + 1], alone(model, i, GUIDANCE, **settings))


def test_equal_lengths_are_one_batch(model: Model) -> None:
    of = (7, 3, 7), (3, 7, 2)
    before = model.network.graphs_built
    found = finish(three(model).start(branches(of=of), GUIDANCE, seeds=SEEDS))
    assert model.network.graphs_built - before <= 3  # three of length 7, two of 3, one of 2
    for i in range(3):
        assert relative_error(found[i : i + 1], alone(model, i, GUIDANCE, of)) <= 1e-5


def test_what_fills_contexts_up_is_not_read(model: Model) -> None:
    first, second = (
        finish(three(model).start(branches(rest=rest), GUIDANCE, seeds=SEEDS))
        for rest in (0.0, -3.0)
    )
    assert np.array_equal(first, second)


def test_guidance_that_reads_both_texts(model: Model) -> None:
    """Normalised attention takes the negative text along; skipped layers ask three times."""
    for guidance in (
        Guidance(scale=1.0, normalized_attention=NormalizedAttention(4.0)),
        Guidance(scale=3.0, skip_layers=SkipLayers(("down_blocks.0",), 2.0, (0.0, 1.0))),
    ):
        found = finish(three(model).start(branches(), guidance, seeds=SEEDS))
        for i in range(3):
            assert np.array_equal(found[i : i + 1], alone(model, i, guidance))


def test_controls_follow_their_pictures(model: Model) -> None:
    def control(rows: slice) -> _core.Control:
        residual = noise(3, 64, 4, 4, seed=11)
        return _core.Control(None, {"control_mid": residual[rows]}, [0.5] * 4)

    found = three(model).start(branches(), GUIDANCE, seeds=SEEDS, controls=[control(slice(3))])
    result = finish(found)
    for i in range(3):
        own = [control(slice(i, i + 1))]
        assert np.array_equal(result[i : i + 1], alone(model, i, GUIDANCE, controls=own))


def test_a_fork_and_a_restored_run_keep_them(model: Model) -> None:
    def start() -> _core.DenoiseRun:
        return three(model).start(branches(), GUIDANCE, seeds=SEEDS)

    run = start()
    run.step()
    copy, fork = start(), run.fork()
    copy.restore(run.save())
    expected = finish(run)
    assert np.array_equal(finish(copy), expected)
    assert np.array_equal(finish(fork), expected)


@pytest.mark.parametrize(
    "lengths", [[7, 3], [7, 3, 8], [7, 0, 3], [], [7, 3, -1], [7, 3, 7, 7]], ids=str
)
def test_lengths_that_do_not_fit(model: Model, lengths: list[int]) -> None:
    with pytest.raises(ParameterError, match="length"):
        odd = _core.Branch("positive", {"context": filled(LENGTHS, 1, 0.0)}, lengths=lengths)
        three(model).start([odd, branches()[1]], GUIDANCE, seeds=SEEDS)


def test_lengths_belong_to_a_context() -> None:
    with pytest.raises(ParameterError, match="context"):
        _core.Branch("positive", {"pooled": noise(2, 4)}, lengths=[1, 1])


# ------------------------------------------------------------------------------ conditioning
def test_texts_are_stacked_with_zeros_behind() -> None:
    texts = [EncodedText(noise(n, 3, seed=n), noise(5, seed=n)) for n in (2, 4, 1)]
    context, pooled, lengths, _ = stack_texts(texts)
    assert lengths == (2, 4, 1)
    assert (context.shape, pooled.shape) == ((3, 4, 3), (3, 5))
    for row, text, length in zip(context, texts, lengths, strict=True):
        assert np.array_equal(row[:length], text.context)
        assert not row[length:].any()
    assert stack_texts([texts[0]] * 3).lengths is None


def test_a_conditioning_repeats_its_lengths() -> None:
    cond = Conditioning(
        noise(1, 4, 3), noise(1, 6, 3), lengths=[3], negative_lengths=(np.int64(5),)
    )
    repeated = cond.repeat(3)
    assert (repeated.lengths, repeated.negative_lengths) == ((3, 3, 3), (5, 5, 5))
    assert pickle.loads(pickle.dumps(repeated)).lengths == (3, 3, 3)
    assert Conditioning(noise(1, 4, 3)).repeat(2).lengths is None


@pytest.mark.parametrize("lengths", [[3], [3, 5], [0, 1], [1.0, 2.0], "ab", 3, []], ids=str)
def test_a_conditioning_refuses_odd_lengths(lengths: object) -> None:
    for name in ("lengths", "negative_lengths"):
        with pytest.raises(ParameterError, match=f"{name} must be 2 whole numbers from 1 to 4"):
            Conditioning(noise(2, 4, 3), noise(2, 4, 3), **{name: lengths})
    with pytest.raises(ParameterError, match="negative_lengths"):
        Conditioning(noise(2, 4, 3), negative_lengths=[1, 1])


@pytest.fixture(scope="module")
def pipe(model: Model) -> sdengine.Pipeline:
    return sdengine.load(model.folder)


@pytest.fixture(scope="module")
def cond() -> Conditioning:
    return Conditioning(
        filled(LENGTHS, 1, 50.0), filled(AWAY, 2, 50.0), lengths=LENGTHS, negative_lengths=AWAY
    )


def single(cond: Conditioning, i: int) -> Conditioning:
    """One picture's texts as they stand alone."""
    return Conditioning(
        cond.context[i : i + 1, : LENGTHS[i]], cond.negative_context[i : i + 1, : AWAY[i]]
    )


def test_predict(pipe: sdengine.Pipeline, cond: Conditioning) -> None:
    latents, times = noise(3, 4, 8, 8), [900.0, 500.0, 20.0]
    found = pipe.predict(latents, times, cond)
    for i in range(3):
        expected = pipe.predict(latents[i : i + 1], times[i], single(cond, i))
        assert np.array_equal(found[i : i + 1], expected)


def test_a_run_over_a_conditioning(pipe: sdengine.Pipeline, cond: Conditioning) -> None:
    options = {"steps": 3, "width": 64, "height": 64, "guidance_scale": 4.0}
    run = pipe.start(conditioning=cond, seed=SEEDS[0], **options)
    run.step()
    fork, copy = run.fork(), pickle.loads(pickle.dumps(run))
    for each in (run, fork, copy):
        while not each.done:
            each.step()
    assert np.array_equal(fork.latents, run.latents)
    assert np.array_equal(copy.latents, run.latents)
    for i in range(3):
        lone = pipe.start(conditioning=single(cond, i), seed=SEEDS[i], **options)
        while not lone.done:
            lone.step()
        assert np.array_equal(run.latents[i : i + 1], lone.latents)
