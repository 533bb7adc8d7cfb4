"""Prompt editing and alternation. Expected values are worked out from A1111's documentation."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdengine.errors import ParameterError
from sdengine.prompt import MAX_PROMPT_CHARACTERS, schedule

# prompt -> [(until_step, text), ...] at 10 steps
TABLE = {
    "": [(10, "")],
    "plain (text:1.2) [faint]": [(10, "plain (text:1.2) [faint]")],
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b: 3 ] c": [(3, "a  c"), (10, "a b c")],
    "a [b::3]": [(3, "a b"), (10, "a ")],
    "a [b:c:3]": [(3, "a b"), (10, "a c")],
    "a [ b : c :0.3]": [(3, "a  b "), (10, "a  c ")],
    "[a:b:.25]": [(2, "a"), (10, "b")],
    "[a:b:1.0]": [(10, "a")],  # a decimal point: a fraction of all steps
    "[a:b:1]": [(1, "a"), (10, "b")],  # none: a step
    "[a:b:0]": [(10, "b")],
    "[a:b:0.05]": [(10, "b")],
    "[a:b:-1]": [(10, "b")],
    "[a:b:10]": [(10, "a")],
    "[a:b:99]": [(10, "a")],
    "[a:b:1e1]": [(10, "a")],
    "[a:b:" + "9" * 400 + "]": [(10, "a")],
    # nested
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "[[a:b:2]:c:4]": [(2, "a"), (4, "b"), (10, "c")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "[(a:1.2) (b):c:3]": [(3, "(a:1.2) (b)"), (10, "c")],
    # alternation
    "[a|b]": [(n, "ab"[(n - 1) % 2]) for n in range(1, 11)],
    "[a|b|c] d": [(n, "abc"[(n - 1) % 3] + " d") for n in range(1, 11)],
    "[fe|]male": [(n, "female" if n % 2 else "male") for n in range(1, 11)],
    "[fe|||]male": [(1, "female"), (4, "male"), (5, "female"), (8, "male"), (9, "female"),
                    (10, "male")],
    "[a|[b:c:2]]": [(1, "a"), (2, "b"), *((n, "ac"[(n - 1) % 2]) for n in range(3, 11))],
    "[[a|b]:c:2]": [(1, "a"), (2, "b"), (10, "c")],
    "[a|a]": [(10, "a")],
    # not a schedule
    "a [b": [(10, "a [b")],
    "a b]": [(10, "a b]")],
    "[a:b]": [(10, "[a:b]")],
    "[a:b:c]": [(10, "[a:b:c]")],
    "[a:b:c:3]": [(10, "[a:b:c:3]")],
    "[a|b:3]": [(10, "[a|b:3]")],
    "[[x:y]:z:3]": [(10, "[[x:y]:z:3]")],
    "(a:b:3)": [(10, "(a:b:3)")],
    "[(a:b:3]": [(10, "[(a:b:3]")],
    "[a:b:[3]]": [(10, "[a:b:[3]]")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "a | b [c:3]": [(3, "a | b "), (10, "a | b c")],
    r"\[a:b:3\]": [(10, r"\[a:b:3\]")],
    r"[a\]:b\::3]": [(3, r"a\]"), (10, r"b\:")],
    "a [b:3]\\": [(3, "a \\"), (10, "a b\\")],
}  # fmt: skip


@pytest.mark.parametrize("prompt", TABLE)
def test_table(prompt: str) -> None:
    assert schedule(prompt, 10) == TABLE[prompt]


def test_the_example_of_the_documentation() -> None:
    prompt = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][: in background:0.25] [shoddy:masterful:0.5]"
    )
    start = "fantasy landscape with a "
    assert schedule(prompt, 100) == [
        (25, start + "mountain and an oak in foreground shoddy"),
        (50, start + "lake and an oak in foreground in background shoddy"),
        (60, start + "lake and an oak in foreground in background masterful"),
        (75, start + "lake and an oak in background masterful"),
        (100, start + "lake and a christmas tree in background masterful"),
    ]


@pytest.mark.parametrize("steps", [0, -3])
def test_bad_steps(steps: int) -> None:
    with pytest.raises(ParameterError, match=f"1 or more, not {steps}"):
        schedule("a", steps)


def test_too_long() -> None:
    with pytest.raises(ParameterError, match="at most 100000"):
        schedule("a" * 1_000_000, 10)


@pytest.mark.parametrize(
    "unit", ["[", "]", "[a:", "[a|", ":", "|", "[a:b:3]", "[a|b]", "[:", "(", "\\", "[[a:1]:2]"]
)
def test_time_is_linear(unit: str) -> None:
    started = time.process_time()
    schedule((unit * MAX_PROMPT_CHARACTERS)[:MAX_PROMPT_CHARACTERS], 20)
    assert time.process_time() - started < 3


def test_deep_nesting() -> None:
    depth = 24_000
    assert schedule("[" * depth + "a" + ":1]" * depth, 5)[-1] == (5, "a")
    assert schedule("[" * depth + "a" + "|]" * depth, 2)[0] == (1, "a")


NOTATION = st.lists(
    st.sampled_from([*"ab []()|:\\", ":3]", ":.5]", "[a:b:", "|"]), max_size=40
).map("".join)


@given(NOTATION, st.integers(1, 30))
def test_any_text_gives_a_whole_schedule(prompt: str, steps: int) -> None:
    entries = schedule(prompt, steps)
    ends = [end for end, _ in entries]
    assert ends == sorted(set(ends))
    assert ends[0] >= 1
    assert ends[-1] == steps
    texts = [text for _, text in entries]
    assert all(a != b for a, b in pairwise(texts))
    assert set("".join(texts)) <= set(prompt)


@given(st.text(alphabet=st.characters(exclude_characters="[]|"), max_size=60))
def test_text_without_square_brackets_is_passed_on(prompt: str) -> None:
    assert schedule(prompt, 5) == [(5, prompt)]


@given(st.lists(st.text(alphabet="abc ", max_size=3), min_size=2, max_size=5), st.integers(1, 12))
def test_alternation_takes_the_entries_in_turn(entries: list[str], steps: int) -> None:
    found = schedule("[" + "|".join(entries) + "]", steps)
    by_step = [next(text for end, text in found if step <= end) for step in range(1, steps + 1)]
    assert by_step == [entries[(step - 1) % len(entries)] for step in range(1, steps + 1)]
