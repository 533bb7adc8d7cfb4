"""Prompts of a batch, step by step."""

from __future__ import annotations

import pytest

from sdengine.errors import ParameterError
from sdengine.prompt import LoraTag, Part, Phase, Script, write_script


def one(prompt: str, negative: str = "", steps: int = 4, weighting: str = "a1111") -> Script:
    return write_script([(prompt,)], [(negative,)], steps, weighting)


def test_a_plain_prompt_is_one_phase() -> None:
    script = one("a cat", "blurry")
    assert script.phases == (Phase(4, (Part((("a cat",),)),), (("blurry",),)),)
    assert script.loras == ()
    assert script.texts() == [("blurry",), ("a cat",)]
    assert script.texts(negatives=False) == [("a cat",)]
    assert not script.composes


def test_schedules_of_prompt_and_negative_prompt_are_merged() -> None:
    script = one("a [cat:dog:0.5]", "[u|v]")
    found = [(p.until_step, p.parts[0].texts[0][0], p.negatives[0][0]) for p in script.phases]
    assert found == [(1, "a cat", "u"), (2, "a cat", "v"), (3, "a dog", "u"), (4, "a dog", "v")]


def test_the_sides_of_and_keep_their_weights_and_schedules() -> None:
    script = one("[a:b:2] AND c :0.5")
    assert [[(part.texts[0][0], part.weight) for part in p.parts] for p in script.phases] == [
        [("a", 1.0), ("c", 0.5)],
        [("b", 1.0), ("c", 0.5)],
    ]
    assert script.composes
    assert [p.until_step for p in script.phases] == [2, 4]


def test_lora_tags_are_taken_out_once() -> None:
    script = write_script([("a <lora:x:0.3>", "b <lora:x:0.3>"), ("c", "d")], [(), ()], 2, "a1111")
    assert script.loras == (LoraTag("x", 0.3, 0.3),)
    assert script.phases[0].parts[0].texts == (("a ", "b "), ("c", "d"))
    assert script.texts() == [("a ", "b "), ("c", "d")]  # the empty tuple is no text


def test_every_text_encoder_has_its_own_schedule() -> None:
    script = write_script([("[a:b:1]", "[c:d:2]")], [("", "")], 3, "a1111")
    assert [(p.until_step, p.parts[0].texts[0]) for p in script.phases] == [
        (1, ("a", "c")),
        (2, ("b", "c")),
        (3, ("b", "d")),
    ]


def test_other_rules_have_no_schedules() -> None:
    assert one("[a:b:0.5] AND c <lora:x:1>", weighting="diffusers").texts()[1] == (
        "[a:b:0.5] AND c <lora:x:1>",
    )
    comfy = one("[a:b:0.5] AND c <lora:x:1>", weighting="comfyui")
    assert comfy.texts()[1] == ("[a:b:0.5] AND c ",)
    assert comfy.loras == (LoraTag("x"),)


@pytest.mark.parametrize("prompts", [["a AND b", "c"], ["a AND b :2", "a AND b :3"]])
def test_the_pictures_of_a_batch_must_match(prompts: list[str]) -> None:
    with pytest.raises(ParameterError, match="one by one"):
        write_script([(p,) for p in prompts], [("",)] * 2, 4, "a1111")


def test_the_sides_of_and_are_limited() -> None:
    assert len(one(" AND ".join("a" * 100)).phases[0].parts) == 100
    with pytest.raises(ParameterError, match="101 sides of AND; at most 100"):
        one(" AND ".join("a" * 101))
