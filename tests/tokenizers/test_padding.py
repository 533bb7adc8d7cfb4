"""How prompts are laid out for language models: special tokens, padding, masks, positions."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.errors import ParameterError, TokenizerError
from sdengine.families import FAMILIES
from sdengine.loading.tokenizer_source import LAYOUTS
from sdengine.tokenizers import PromptFormat, pad_prompts
from sdengine.tokenizers.padding import CHATGLM3, GEMMA, LLAMA3, QWEN2, T5


class Letters:
    """Every character is a token: its code point."""

    vocab_size = 1000

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def id_of(self, token: str) -> int | None:
        return {"<bos>": 2, "</s>": 1, "<pad>": 0, "<|endoftext|>": 9}.get(token)


def test_layouts() -> None:
    left = pad_prompts(Letters(), ["ab", "c"], PromptFormat("<pad>", 4, ("<bos>",), side="left"))
    assert left.ids.tolist() == [[0, 2, 97, 98], [0, 0, 2, 99]]
    assert left.mask.tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]
    assert left.positions.tolist() == [[0, 0, 1, 2], [0, 0, 0, 1]]
    assert left.ids.dtype == left.mask.dtype == left.positions.dtype == np.int32
    right = pad_prompts(Letters(), ["abcdef", ""], PromptFormat("<pad>", 4, suffix=("</s>",)))
    assert right.ids.tolist() == [[97, 98, 99, 1], [1, 0, 0, 0]]
    assert right.mask.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert right.positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    loose = PromptFormat("<|endoftext|>", 9, fixed=False, template="<{}>{}")
    framed = pad_prompts(Letters(), ["{}", ""], loose)
    assert framed.ids.tolist() == [[ord(c) for c in "<{}>{}"], [*map(ord, "<>{}"), 9, 9]]
    assert pad_prompts(Letters(), [""], PromptFormat("<pad>", 9, fixed=False)).ids.tolist() == [[0]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(side: str) -> None:
    layout = PromptFormat("<pad>", 6, ("<bos>",), side=side)
    found = pad_prompts(Letters(), ["ab"], layout).trimmed()
    assert found.ids.tolist() == [[2, 97, 98]]
    assert found.mask.tolist() == [[1, 1, 1]]
    assert found.positions.tolist() == [[0, 1, 2]]
    nothing = pad_prompts(Letters(), [""], PromptFormat("<pad>", 6, side=side)).trimmed()
    assert nothing.ids.tolist() == [[0]]


def test_published_layouts_name_their_special_tokens() -> None:
    assert (CHATGLM3.length, CHATGLM3.side, CHATGLM3.added[1]) == (256, "left", "[gMASK]")
    assert (T5.suffix, GEMMA.prefix, LLAMA3.prefix) == (
        ("</s>",),
        ("<bos>",),
        ("<|begin_of_text|>",),
    )
    assert not QWEN2.fixed


def test_layouts_that_do_not_fit() -> None:
    with pytest.raises(TokenizerError, match=r"\(1000 tokens\) lacks 'sop'"):
        pad_prompts(Letters(), ["a"], PromptFormat("<pad>", 4, ("sop",)))
    with pytest.raises(TokenizerError, match="lacks '<none>'"):
        pad_prompts(Letters(), ["a"], PromptFormat("<none>", 4))
    with pytest.raises(ParameterError, match="1 prompts of at most 0 tokens"):
        pad_prompts(Letters(), ["a"], PromptFormat("<pad>", 2, ("<bos>",), ("</s>",)))
    with pytest.raises(ParameterError, match="0 prompts"):
        pad_prompts(Letters(), [], PromptFormat("<pad>", 2))


def test_every_layout_knows_where_its_tokenizer_was_published() -> None:
    """Single files hold no tokenizer. Kolors has none: its text encoder is published in folders."""
    kinds = {kind for family in FAMILIES for kind in family.tokenizers.values()} - {"clip"}
    assert {kind for kind in kinds if not LAYOUTS[kind].published} == {"chatglm"}
