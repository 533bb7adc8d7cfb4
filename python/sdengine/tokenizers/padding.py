"""How families lay out a prompt for a language model: template, special tokens, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    picture: str = ""
    """What stands in front of the prompt for each picture, in place of the braces its number."""
    dropped: int = 0
    """Tokens in front, of the template, whose states are left out."""
    added: tuple[str, ...] = ()
    """Tokens of the model whose ids follow those of its SentencePiece model."""
    published: tuple[tuple[str, str], ...] = ()
    """Repositories of the hub that hold the tokenizer, and the folder in each, the best first."""


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
T5 = PromptFormat(
    pad="<pad>",
    length=256,
    suffix=("</s>",),
    published=(
        ("google/t5-v1_1-xxl", ""),
        ("black-forest-labs/FLUX.1-schnell", "tokenizer_2"),
        ("black-forest-labs/FLUX.1-dev", "tokenizer_2"),
        ("stabilityai/stable-diffusion-3.5-medium", "tokenizer_3"),
        ("stabilityai/stable-diffusion-3.5-large", "tokenizer_3"),
        ("stabilityai/stable-diffusion-3-medium-diffusers", "tokenizer_3"),
    ),
)
_HUNYUAN = tuple(
    f"Tencent-Hunyuan/HunyuanDiT{version}-Diffusers" for version in ("-v1.2", "-v1.1", "")
)
# The same layout, other words.
MT5 = replace(
    T5, published=(("google/mt5-xl", ""), *((repository, "tokenizer_2") for repository in _HUNYUAN))
)
# hfl/chinese-roberta-wwm-ext-large, with the length of diffusers' HunyuanDiTPipeline.
BERT = PromptFormat(
    pad="[PAD]",
    length=77,
    prefix=("[CLS]",),
    suffix=("[SEP]",),
    published=tuple((repository, "tokenizer") for repository in _HUNYUAN),
)
# google/gemma-2-2b; diffusers' Lumina pipelines.
GEMMA = PromptFormat(
    pad="<pad>",
    length=256,
    prefix=("<bos>",),
    published=(("Alpha-VLLM/Lumina-Image-2.0", "tokenizer"), ("google/gemma-2-2b", "")),
)
# Qwen/Qwen2.5-VL-7B-Instruct; the template is the family's.
QWEN2 = PromptFormat(
    pad="<|endoftext|>",
    length=1024,
    fixed=False,
    published=(
        ("Qwen/Qwen2.5-VL-7B-Instruct", ""),
        ("Qwen/Qwen-Image", "tokenizer"),
        ("Qwen/Qwen-Image-Edit", "tokenizer"),
        ("Qwen/Qwen-Image-Edit-2509", "tokenizer"),
    ),
)
# diffusers' QwenImagePipeline: the words of the system, which are part of how the model was trained, and 512 tokens
# of the prompt.
QWEN_IMAGE = replace(
    QWEN2,
    length=34 + 512,
    template="<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text,"
    " spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n",
    dropped=34,
)
# QwenImageEditPipeline and QwenImageEditPlusPipeline, which cut nothing.
QWEN_IMAGE_EDIT = replace(
    QWEN2,
    length=4096,
    template="<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture,"
    " objects, background), then explain how the user's text instruction should alter or modify the image."
    " Generate a new image that meets the user's requirements while maintaining consistency with the original input"
    " where appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    picture="<|vision_start|><|image_pad|><|vision_end|>",
    dropped=64,
)
QWEN_IMAGE_EDIT_PLUS = replace(
    QWEN_IMAGE_EDIT, picture="Picture {}: <|vision_start|><|image_pad|><|vision_end|>"
)
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

    def trimmed(self) -> PaddedTokens:
        """The same without padding, of one text; of no text one token of it is left."""
        kept = self.mask[0] == 1
        kept[0] |= not kept.any()
        return PaddedTokens(self.ids[:, kept], self.mask[:, kept], self.positions[:, kept])


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
