"""The notations of ComfyUI and compel. Expected values are those of their documentation, or worked out by hand."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdengine.errors import ParameterError
from sdengine.prompt import SYNTAXES, parse


def pairs(prompt: str, syntax: str) -> list[tuple[str, float]]:
    return [(segment.text, pytest.approx(segment.weight)) for segment in parse(prompt, syntax)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("(foo)", [("foo", 1.1)]),
        ("(foo)(bar)", [("foo", 1.1), ("bar", 1.1)]),
        ("(foo:2.0)", [("foo", 2.0)]),
        ("((foo))", [("foo", 1.21)]),
        ("((foo):1.1)", [("foo", 1.21)]),
        ("((foo:1.1))", [("foo", 1.1)]),  # a number holds whatever is around it; A1111 multiplies
        ("(foo:0.0)", [("foo", 0.0)]),
        ("((foo:1.0):0.0)", [("foo", 1.0)]),
        (
            "foo ((((lol (cat:666) attack:100)))) baz",
            [("foo ", 1.0), ("lol ", 100.0), ("cat", 666.0), (" attack", 100.0), (" baz", 1.0)],
        ),
        (
            "foo ((((lol (cat:666) attack):100))) baz",
            [("foo ", 1.0), ("lol ", 110.0), ("cat", 666.0), (" attack", 110.0), (" baz", 1.0)],
        ),
        # Square brackets and BREAK are text.
        ("[foo] BREAK x", [("[foo] BREAK x", 1.0)]),
        (r"\(foo\) (\(bar\):1.3) a\b", [("(foo) ", 1.0), ("(bar)", 1.3), (" a\\b", 1.0)]),
        ("a (b c", [("a ", 1.0), ("(b c", 1.0)]),
        ("a) (b)", [("a) (b)", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a: 1e-1 )", [("a", 0.1)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("()", [("", 1.0)]),
        ("", [("", 1.0)]),
        # Equal neighbours stay apart: each is tokenized by itself.
        ("re(d:1)", [("re", 1.0), ("d", 1.0)]),
    ],
)
def test_comfyui(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(prompt, "comfyui") == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a tall++ man", [("a", 1.0), ("tall", 1.21), ("man", 1.0)]),
        ("a tall-- man", [("a", 1.0), ("tall", 0.81), ("man", 1.0)]),
        ("(picking apricots)+", [("picking apricots", 1.1)]),
        ("a (man picking apricots)1.3", [("a", 1.0), ("man picking apricots", 1.3)]),
        ("(man (picking)0.5 apricots)2", [("man", 2.0), ("picking", 1.0), ("apricots", 2.0)]),
        ("(picking (apricots)1.3)1.1", [("picking", 1.1), ("apricots", 1.43)]),
        ('"two words"--, then', [("two words", 0.81), (", then", 1.0)]),
        ("(plain group) text", [("plain group text", 1.0)]),
        ("a  b\n c", [("a b c", 1.0)]),
        ("red-haired girl+", [("red-haired", 1.0), ("girl", 1.1)]),
        ("cat+, dog", [("cat", 1.1), (", dog", 1.0)]),
        (r"a \(b\) c", [("a (b) c", 1.0)]),
        ("f(x)+ y", [("f(x)+ y", 1.0)]),
        ("(a = b)+", [("(a = b)+", 1.0)]),  # what is not well-formed is text
        ("(never closed", [("(never closed", 1.0)]),
        ("1 + 1", [("1 + 1", 1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_compel(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(prompt, "compel") == expected


def test_a1111_is_the_default() -> None:
    assert parse("((foo:1.1)) [x]") == parse("((foo:1.1)) [x]", "a1111")
    assert parse("((foo:1.1))")[0].weight == pytest.approx(1.21)


@pytest.mark.parametrize(
    "operator", ['("a", "b").blend(1, 2)', '("a", "b").and()', "(cat).swap(dog)"]
)
def test_compels_operators_are_refused(operator: str) -> None:
    with pytest.raises(ParameterError, match="not supported"):
        parse(operator, "compel")


def test_bad_input() -> None:
    with pytest.raises(ParameterError, match="a1111, comfyui, compel, not 'midjourney'"):
        parse("x", "midjourney")
    for prompt, syntax in [
        *(
            ("(x:1e9)", "comfyui"),
            ("(x:nan)", "comfyui"),
            ("(x:inf)", "comfyui"),
            ("x" + "+" * 100, "compel"),
        ),
        *(("(x)5000", "compel"), ("x" + "+" * 99_000, "compel")),
    ]:
        with pytest.raises(ParameterError, match="emphasis"):
            parse(prompt, syntax)
    with pytest.raises(ParameterError, match="nested deeper"):
        parse("(" * 200 + "x:1" + ")" * 200, "comfyui")


@given(
    prompt=st.text(alphabet='ab ()[]:"\\+-.,=1 ', max_size=40),
    syntax=st.sampled_from(sorted(SYNTAXES)),
)
def test_any_text_parses(prompt: str, syntax: str) -> None:
    try:
        segments = parse(prompt, syntax)
    except ParameterError:
        return
    assert segments
    assert all(isinstance(segment.text, str) for segment in segments)


@pytest.mark.parametrize(
    "piece", ["(", ")", "( ", '"', "(a ", "a)", "() ", "(( ))+", "\\(", "a+", "-", "[", '" ( ']
)
@pytest.mark.parametrize("syntax", ["comfyui", "compel"])
def test_long_prompts_take_little_time(piece: str, syntax: str) -> None:
    began = time.process_time()
    with contextlib.suppress(ParameterError):
        parse(piece * (20_000 // len(piece)), syntax)
    assert time.process_time() - began < 5
