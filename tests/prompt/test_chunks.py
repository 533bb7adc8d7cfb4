"""Chunks: where tokens go, how rows are filled, what does not fit."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sdengine.errors import ParameterError
from sdengine.prompt import Chunks, Segment, chunk, equalize, literal, parse
from sdengine.tokenizers import load_clip_tokenizer
from tests.tokenizers.vocabulary import hostile_prompts

from .words import BOS, COMMA, EOS, WordTokenizer, words

TOKENIZER = WordTokenizer()


def contents(chunks: Chunks) -> list[list[int]]:
    """The tokens between start and end of every row."""
    rows = []
    for row in chunks.ids.tolist():
        assert row[0] == BOS
        rows.append(row[1 : row.index(EOS)])
    return rows


def tokens(start: int, count: int) -> list[int]:
    return list(range(100 + start, 100 + start + count))


def test_empty_prompt_is_one_empty_chunk() -> None:
    chunks = chunk(TOKENIZER, parse(""))
    assert (chunks.ids.dtype, chunks.weights.dtype) == (np.int32, np.float32)
    assert chunks.ids.tolist() == [[BOS] + [EOS] * 76]
    assert chunks.weights.tolist() == [[1.0] * 77]
    assert chunks.empty.tolist() == chunks.ids[0].tolist()


def test_padding_id_follows_the_end() -> None:
    chunks = chunk(WordTokenizer(pad=0), parse("w1 w2"))
    assert chunks.ids.tolist() == [[BOS, 101, 102, EOS] + [0] * 73]
    assert chunks.empty.tolist() == [BOS, EOS] + [0] * 75


def test_weights_stand_at_their_tokens() -> None:
    chunks = chunk(TOKENIZER, parse("w1 (w2 w3:1.5) [w4]"))
    expected = [1, 1, 1.5, 1.5, 1 / 1.1, 1]
    assert chunks.weights[0, :6].tolist() == pytest.approx(expected)
    assert (chunks.weights[0, 6:] == 1).all()


@pytest.mark.parametrize(("count", "sizes"), [(75, [75]), (76, [75, 1]), (226, [75, 75, 75, 1])])
def test_long_prompts_fill_chunk_after_chunk(count: int, sizes: list[int]) -> None:
    rows = contents(chunk(TOKENIZER, parse(words(0, count))))
    assert [len(row) for row in rows] == sizes
    assert list(chain(*rows)) == tokens(0, count)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("w1 BREAK w2", [[101], [102]]),
        ("BREAK w1", [[], [101]]),
        ("w1 BREAK", [[101]]),
        ("w1 BREAK BREAK w2", [[101], [], [102]]),
        ("BREAK", [[]]),
        ("(w1 BREAK w2:1.3) w3", [[101], [102, 103]]),
    ],
)
def test_break_starts_a_chunk(prompt: str, expected: list[list[int]]) -> None:
    assert contents(chunk(TOKENIZER, parse(prompt))) == expected


def comma_case(before: int, after: int) -> str:
    return f"{words(0, before)}, {words(before, after)}"


@pytest.mark.parametrize(
    ("prompt", "sizes"),
    [
        (comma_case(70, 10), [71, 10]),  # 5 tokens after the comma move
        (comma_case(55, 30), [56, 30]),  # 19 behind it: the comma is the 20th token back
        (comma_case(54, 30), [75, 10]),  # one too far
        (comma_case(74, 10), [75, 10]),  # the comma is the last token of the chunk
        (comma_case(75, 10), [75, 11]),  # the comma itself does not fit
        (words(0, 90), [75, 15]),  # no comma at all
        (comma_case(70, 4), [75]),  # it fits
    ],
)
def test_comma_backtracking(prompt: str, sizes: list[int]) -> None:
    rows = contents(chunk(TOKENIZER, parse(prompt), comma_backtrack=20))
    assert [len(row) for row in rows] == sizes
    without = chunk(TOKENIZER, parse(prompt))
    assert list(chain(*rows)) == list(chain(*contents(without)))
    assert {len(row) for row in contents(without)[:-1]} <= {75}


def test_backtracking_moves_the_weights_too() -> None:
    prompt = f"{words(0, 70)}, {words(70, 2)} (w72 w73 w74 w75:1.5)"
    chunks = chunk(TOKENIZER, parse(prompt), comma_backtrack=20)
    assert contents(chunks)[1] == tokens(70, 6)
    assert chunks.weights[1, :8].tolist() == [1, 1, 1, 1.5, 1.5, 1.5, 1.5, 1]
    assert (chunks.weights[0] == 1).all()


def test_too_many_chunks_are_refused() -> None:
    with pytest.raises(ParameterError, match="more than 3 chunks of 75"):
        chunk(TOKENIZER, parse(words(0, 226)), max_chunks=3)
    with pytest.raises(ParameterError, match="more than 256 chunks"):
        chunk(TOKENIZER, parse("BREAK " * 300 + "w1"))
    assert len(chunk(TOKENIZER, parse("BREAK " * 255 + "w1"))) == 256


def test_truncation_counts_what_it_drops() -> None:
    chunks = chunk(TOKENIZER, parse(words(0, 180)), max_chunks=1, truncate=True)
    assert contents(chunks) == [tokens(0, 75)]
    assert chunks.dropped == 105
    assert chunk(TOKENIZER, parse(words(0, 75)), max_chunks=1, truncate=True).dropped == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"comma_backtrack": -1}, "comma_backtrack must be 0 to 75, not -1"),
        ({"comma_backtrack": 76}, "not 76"),
        ({"max_chunks": 0}, "1 or more, not 0"),
    ],
)
def test_bad_options(options: dict[str, int], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        chunk(TOKENIZER, [Segment("w1")], **options)


def test_equalize_pads_the_shorter_prompts() -> None:
    long, short = chunk(TOKENIZER, parse(words(0, 160))), chunk(TOKENIZER, parse("(w1:2)"))
    other = chunk(WordTokenizer(pad=0), parse("w2"))
    a, b, c = equalize(long, short, other)
    assert a is long
    assert contents(b) == [[101], [], []]
    assert b.weights[0, 1] == 2
    assert (b.weights[1:] == 1).all()
    assert c.ids[2].tolist() == [BOS, EOS] + [0] * 75
    with pytest.raises(ParameterError, match="3 chunks do not fit into 2"):
        long.padded(2)


def test_a_shorter_encoder() -> None:
    chunks = chunk(WordTokenizer(max_length=10), parse(words(0, 12)))
    assert chunks.ids.shape == (2, 10)
    assert contents(chunks) == [tokens(0, 8), tokens(8, 4)]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_literal_rows_equal_transformers(clip_folder: Path, pad: str) -> None:
    reference = CLIPTokenizer.from_pretrained(clip_folder, pad_token=pad)
    ours = load_clip_tokenizer(clip_folder, pad=reference.pad_token_id)
    for prompt in hostile_prompts(60):
        if "!" in prompt:
            continue  # transformers takes "!" in the text for padding, see test_clip
        expected = reference(prompt, padding="max_length", truncation=True, max_length=77)
        found = chunk(ours, literal(prompt), max_chunks=1, truncate=True)
        assert found.ids.tolist() == [expected.input_ids], prompt


@given(
    st.lists(st.one_of(st.sampled_from(["w1", "w2", ","]), st.just("BREAK")), max_size=400),
    st.integers(0, 75),
)
def test_no_token_is_lost_or_moved(parts: list[str], backtrack: int) -> None:
    chunks = chunk(TOKENIZER, parse(" ".join(parts)), comma_backtrack=backtrack, max_chunks=1000)
    expected = [{",": COMMA}.get(p) or 100 + int(p[1:]) for p in parts if p != "BREAK"]
    assert list(chain(*contents(chunks))) == expected
    assert chunks.ids.shape == chunks.weights.shape == (len(chunks), 77)


def test_a_short_segment_that_does_not_fit_moves_as_a_whole() -> None:
    segments = [Segment(words(0, 70)), Segment(words(70, 7), 1.2), Segment(words(77, 8), 0.9)]
    kept = chunk(WordTokenizer(), segments, keep_whole=8)
    assert len(kept) == 2
    assert kept.ids[0, 70:72].tolist() == [169, EOS]
    assert kept.ids[1, 1:16].tolist() == list(range(170, 185))
    np.testing.assert_allclose(kept.weights[1, 1:16], [1.2] * 7 + [0.9] * 8)
    # Eight tokens are cut where the chunk ends, and so is everything without the option.
    long = chunk(WordTokenizer(), [segments[0], Segment(words(70, 8))], keep_whole=8)
    assert long.ids[0, 71:77].tolist() == [170, 171, 172, 173, 174, EOS]
    assert chunk(WordTokenizer(), segments).ids[0, 71] == 170
    with pytest.raises(ParameterError, match="keep_whole"):
        chunk(WordTokenizer(), segments, keep_whole=76)
