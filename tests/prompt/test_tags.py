"""LoRA tags and AND."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdengine.errors import ParameterError
from sdengine.prompt import LoraTag, extract_loras, split_and


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a cat", "a cat", []),
        ("a <lora:ink:0.8> cat", "a  cat", [LoraTag("ink", 0.8, 0.8)]),
        ("<lora:ink>", "", [LoraTag("ink", 1.0, 1.0)]),
        ("<lora:ink style v1.2:-1.5>", "", [LoraTag("ink style v1.2", -1.5, -1.5)]),
        ("<lora:a:0.5:0.8>", "", [LoraTag("a", weight=0.8, text_encoder_weight=0.5)]),
        ("<lora:a:te=0.5:unet=0.8>", "", [LoraTag("a", weight=0.8, text_encoder_weight=0.5)]),
        ("<lora:a:0.5:unet=0>", "", [LoraTag("a", weight=0.0, text_encoder_weight=0.5)]),
        ("<lyco:a:1>x<lora: b : 2 >", "x", [LoraTag("a"), LoraTag("b", 2, 2)]),
        ("<lora:a:1> <lora:a:1>", " ", [LoraTag("a"), LoraTag("a")]),
        ("<hypernet:a:1> <3 a<b", "<hypernet:a:1> <3 a<b", []),
        ("<lora:a", "<lora:a", []),
        ("<lora:>", "<lora:>", []),
        ("<lora:x<lora:a:1>", "<lora:x", [LoraTag("a")]),
    ],
)
def test_lora_tags(prompt: str, text: str, tags: list[LoraTag]) -> None:
    assert extract_loras(prompt) == (text, tags)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("<lora:a:strong>", "weight 'strong'; expected a number"),
        ("<lora:a:>", "weight ''"),
        ("<lora:a:nan>", "weight 'nan'"),
        ("<lora:a:1e999>", "weight '1e999'"),
        ("<lora:a:" + "9" * 400 + ">", "expected a number"),
        ("<lora: :1>", "names no LoRA"),
        ("<lora:a:1:2:3>", "not understood"),
        ("<lora:a:dyn=4>", "not understood"),
    ],
)
def test_bad_lora_tags(prompt: str, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        extract_loras(prompt)


@pytest.mark.parametrize(
    ("prompt", "sides"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a cat AND a dog", [("a cat", 1.0), ("a dog", 1.0)]),
        (
            "a cat :1.2 AND a dog AND a bird : -.5",
            [("a cat", 1.2), ("a dog", 1.0), ("a bird", -0.5)],
        ),
        ("a AND (b:1.3)", [("a", 1.0), ("(b:1.3)", 1.0)]),
        ("a AND b:c", [("a", 1.0), ("b:c", 1.0)]),
        ("a AND", [("a", 1.0), ("", 1.0)]),
        ("a AND :2", [("a", 1.0), ("", 2.0)]),
        ("SAND and ANDROID", [("SAND and ANDROID", 1.0)]),
        ("at 12:30", [("at 12:30", 1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_split_and(prompt: str, sides: list[tuple[str, float]]) -> None:
    assert split_and(prompt) == sides


def test_absurd_weights_are_refused() -> None:
    with pytest.raises(ParameterError, match="from -1000 to 1000"):
        split_and("a AND b:1" + "0" * 400)
    with pytest.raises(ParameterError, match="from -1000 to 1000"):
        extract_loras("<lora:a:1001>")


@pytest.mark.parametrize("function", [extract_loras, split_and])
@pytest.mark.parametrize(
    "unit", ["<lora:", "<", " ", ":", "a AND ", "AND ", "<lora:a:1>", "<lora:a "]
)
def test_time_is_linear_and_length_limited(function: Callable[[str], object], unit: str) -> None:
    started = time.process_time()
    function((unit * 100_000)[: 100_000 // len(unit) * len(unit)])
    assert time.process_time() - started < 2
    with pytest.raises(ParameterError, match="at most 100000"):
        function(unit * 200_000)


@given(st.text(max_size=60))
def test_text_without_tags_is_untouched(text: str) -> None:
    if "<" not in text:
        assert extract_loras(text) == (text, [])
    if "AND" not in text:
        assert split_and(text) == [(text, 1.0)]
