"""How families lay out a prompt for a language model: template, special tokens, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ParameterError, TokenizerError
from sdengine.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class PromptFormat:
    """From a prompt to the tokens that a text encoder takes.

    Tokens are given as the vocabulary spells them.
    """

    pad: str
    length: int
    """Longest text in tokens, special ones included; longer prompts lose their end."""
    prefix: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()
    side: Literal["left", "right"] = "right"
    """Where padding is put."""
    fixed: bool = True
    """Every text is as long as `length`; else as the longest one that is encoded with it."""
    template: str = "{}"
    """What the prompt is put in, in place of the braces."""
    added: tuple[str, ...] = ()
    """Tokens of the model whose ids follow those of its SentencePiece model."""


# THUDM/chatglm3-6b-base; diffusers' Kolors pipeline.
CHATGLM3 = PromptFormat(
    pad="<unk>",
    length=256,
    prefix=("[gMASK]", "sop"),
    side="left",
    added=(
        "[MASK]",
        "[gMASK]",
        "[sMASK]",
        "sop",
        "eop",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
    ),
)
# google/t5-v1_1-xxl and google/mt5-xl; the length is the family's (256 in SD3, 512 in FLUX.1-dev).
T5 = PromptFormat(pad="<pad>", length=256, suffix=("</s>",))
# google/gemma-2-2b; diffusers' Lumina pipelines.
GEMMA = PromptFormat(pad="<pad>", length=256, prefix=("<bos>",))
# Qwen/Qwen2.5-VL-7B-Instruct; the template is the family's.
QWEN2 = PromptFormat(pad="<|endoftext|>", length=1024, fixed=False)
# meta-llama/Llama-3.1-8B-Instruct; diffusers' HiDream pipeline pads with the end of the text.
LLAMA3 = PromptFormat(pad="<|eot_id|>", length=128, prefix=("<|begin_of_text|>",))


@dataclass(frozen=True)
class PaddedTokens:
    """Texts of one length, as `decoder_text` and `t5_text` take them: int32 ``[N, length]`` each."""

    ids: NDArray[np.int32]
    mask: NDArray[np.int32]
    """1 for a token, 0 for padding."""
    positions: NDArray[np.int32]
    """Counted from the first token that is not padding; 0 on padding before it."""


def pad_prompts(
    tokenizer: TextTokenizer, prompts: Sequence[str], layout: PromptFormat
) -> PaddedTokens:
    """The tokens of one or more prompts.

    Raises:
        TokenizerError: the vocabulary lacks one of the layout's special tokens.
        ParameterError: there is no prompt, or the layout's length leaves no room for one.
    """
    prefix = [_special(tokenizer, token) for token in layout.prefix]
    suffix = [_special(tokenizer, token) for token in layout.suffix]
    room = layout.length - len(prefix) - len(suffix)
    if room < 1 or not prompts:
        raise ParameterError(
            f"{len(prompts)} prompts of at most {room} tokens; expected one of each at least."
            " Give a prompt, and a length that leaves room for it"
        )
    texts = (layout.template.replace("{}", prompt, 1) for prompt in prompts)
    rows = [[*prefix, *tokenizer.encode(text)[:room], *suffix] for text in texts]
    length = layout.length if layout.fixed else max(1, *map(len, rows))
    return _padded(rows, length, _special(tokenizer, layout.pad), layout.side)


def _padded(rows: Sequence[list[int]], length: int, pad: int, side: str) -> PaddedTokens:
    ids = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros_like(ids)
    positions = np.zeros_like(ids)
    for i, row in enumerate(rows):
        start = length - len(row) if side == "left" else 0
        ids[i, start : start + len(row)] = row
        mask[i, start : start + len(row)] = 1
        positions[i, start:] = np.arange(length - start)
    return PaddedTokens(ids, mask, positions)


def _special(tokenizer: TextTokenizer, token: str) -> int:
    found = tokenizer.id_of(token)
    if found is None:
        raise TokenizerError(
            f"the tokenizer ({tokenizer.vocab_size} tokens) lacks {token!r}. It is another model's:"
            " give the tokenizer that the text encoder was published with"
        )
    return found
