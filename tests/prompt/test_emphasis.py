"""Emphasis notation. Expected values are worked out from A1111's documentation."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdengine.errors import ParameterError
from sdengine.prompt import MAX_PROMPT_CHARACTERS, Segment, literal, parse

TABLE = {
    "": [("", 1)],
    "plain text": [("plain text", 1)],
    "an (important) word": [("an ", 1), ("important", 1.1), (" word", 1)],
    "a [faint] word": [("a ", 1), ("faint", 1 / 1.1), (" word", 1)],
    "(a)": [("a", 1.1)],
    "((a))": [("a", 1.21)],
    "(((a)))": [("a", 1.331)],
    "[[a]]": [("a", 1 / 1.21)],
    "(a:1.5)": [("a", 1.5)],
    "(a: .5 )": [("a", 0.5)],
    "(a:-1)": [("a", -1)],
    "(a:+2.)": [("a", 2)],
    "((a:1.5))": [("a", 1.65)],
    "(a (b:2) c:3)": [("a ", 3), ("b", 6), (" c", 3)],
    "([a])": [("a", 1)],
    "(a)(b)": [("ab", 1.1)],
    "(a) (b)": [("a", 1.1), (" ", 1), ("b", 1.1)],
    # brackets that do not fit
    "(a": [("a", 1.1)],
    "((a": [("a", 1.21)],
    "(a (b": [("a ", 1.1), ("b", 1.21)],
    "a [b": [("a ", 1), ("b", 1 / 1.1)],
    "a) b": [("a) b", 1)],
    "a] b": [("a] b", 1)],
    "a:1.5)": [("a:1.5)", 1)],
    "(a [b) c]": [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)],
    "()": [("", 1)],
    "(:2)": [("", 1)],
    # colons
    "a:1.5": [("a:1.5", 1)],
    "[a:1.5]": [("a:1.5", 1 / 1.1)],
    "(a:b)": [("a:b", 1.1)],
    "(a:1.2.3)": [("a:1.2.3", 1.1)],
    "(a:1e3)": [("a:1e3", 1.1)],
    "(12:30:1.2)": [("12:30", 1.2)],
    # escapes
    r"\(a\)": [("(a)", 1)],
    r"\[a\]": [("[a]", 1)],
    r"(a \(b\):1.3)": [("a (b)", 1.3)],
    r"a \\ b": [("a \\ b", 1)],
    r"\\(a)": [("\\", 1), ("a", 1.1)],
    r"a\b": [("ab", 1)],
    "a\\": [("a", 1)],
    # the example of the documentation
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],
}


@pytest.mark.parametrize("prompt", TABLE)
def test_table(prompt: str) -> None:
    segments = parse(prompt)
    assert [s.text for s in segments] == [text for text, _ in TABLE[prompt]]
    assert [s.weight for s in segments] == pytest.approx([w for _, w in TABLE[prompt]], abs=1e-12)
    assert not any(s.new_chunk for s in segments)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a BREAK b", [Segment("a"), Segment("b", new_chunk=True)]),
        ("a\n BREAK \tb", [Segment("a"), Segment("b", new_chunk=True)]),
        ("BREAK a", [Segment("a", new_chunk=True)]),
        ("a BREAK", [Segment("a"), Segment("", new_chunk=True)]),
        (
            "a BREAK BREAK b",
            [Segment("a"), Segment("", new_chunk=True), Segment("b", new_chunk=True)],
        ),
        ("(a BREAK b:2)", [Segment("a", 2.0), Segment("b", 2.0, new_chunk=True)]),
        ("aBREAK BREAKER break", [Segment("aBREAK BREAKER break")]),
    ],
)
def test_break(prompt: str, expected: list[Segment]) -> None:
    assert parse(prompt) == expected


def test_literal_takes_every_character_as_it_stands() -> None:
    assert literal(r"(a:1.5) BREAK \(") == [Segment(r"(a:1.5) BREAK \(")]


@pytest.mark.parametrize("prompt", ["(a:1001)", "(a:-1e)(b:9999999)", "(" * 100 + "a"])
def test_absurd_weights_are_refused(prompt: str) -> None:
    with pytest.raises(ParameterError, match="expected -1000 to 1000"):
        parse(prompt)


@pytest.mark.parametrize("function", [parse, literal])
def test_length_limit(function: object) -> None:
    assert callable(function)
    assert function("a" * MAX_PROMPT_CHARACTERS)
    with pytest.raises(ParameterError, match="1000000 characters; at most 100000"):
        function("a" * 1_000_000)
    with pytest.raises(ParameterError, match="must be text, not bytes"):
        function(b"a")


@pytest.mark.parametrize(
    "unit", ["(", "[", ")", "((a:1)", " ", "\\", ":", ": ", "BREAK ", "(a)", "[(a])", "(:1)"]
)
def test_time_is_linear(unit: str) -> None:
    prompt = (unit * MAX_PROMPT_CHARACTERS)[:MAX_PROMPT_CHARACTERS]
    started = time.process_time()
    try:
        parse(prompt)
    except ParameterError:
        assert "(" in unit  # thousands of nested brackets multiply to more than the limit
    assert time.process_time() - started < 3


NOTATION = st.lists(st.sampled_from([*"ab ()[]:\\.15", ":1.2)", " BREAK "]), max_size=60).map(
    "".join
)


@given(NOTATION)
def test_any_text_parses_to_distinct_neighbours(prompt: str) -> None:
    try:
        segments = parse(prompt)
    except ParameterError as error:
        assert "emphasis" in str(error)  # noqa: PT017 - raised for some inputs only
        return
    assert segments
    for left, right in pairwise(segments):
        assert right.new_chunk or left.weight != right.weight
    assert sum(s.new_chunk for s in segments) <= prompt.count("BREAK")


@given(st.text(max_size=80))
def test_escaped_text_comes_back_unchanged(text: str) -> None:
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in text)
    if "BREAK" not in text:
        assert parse(escaped) == [Segment(text)]


@given(st.text(alphabet="ab ,", min_size=1), st.integers(0, 20), st.integers(0, 20))
def test_nesting_multiplies(text: str, rounds: int, squares: int) -> None:
    prompt = "(" * rounds + "[" * squares + text + "]" * squares + ")" * rounds
    (segment,) = parse(prompt)
    assert segment.text == text
    assert segment.weight == pytest.approx(1.1 ** (rounds - squares))
