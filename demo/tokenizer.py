"""The tokenizer: byte-pair encoding in CLIP's format, learnt from the grammar of captions.

CLIP spells a text as printable stand-ins for its bytes, marks the last one of each word with
``</w>``, and merges neighbours by a ranked list. The vocabulary holds all 256 bytes with and
without the mark, so that any text has a spelling; the merges make one token of every word of the
grammar. The two special tokens come last, as in CLIP, which makes the end token the largest id.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from demo import shapes

START = "<|startoftext|>"
END = "<|endoftext|>"
LENGTH = 77
"""Positions of a CLIP context; shorter texts are filled up with the end token."""

_WORD_END = "</w>"
_Word = tuple[str, ...]


def byte_symbols() -> list[str]:
    """Return the printable character that stands for each byte (the convention of GPT-2).

    Bytes that print in Latin-1 stand for themselves; the others take the code points from 256 up.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _corpus() -> Counter[str]:
    """Count the words of all captions; punctuation is a word of its own, as in CLIP's pattern."""
    counts: Counter[str] = Counter()
    for triple in shapes.training_triples():
        for size in shapes.RADII:
            for text in shapes.captions_of(triple, size):
                counts.update(re.findall(r"[a-z]+|[^\sa-z]+", text))
    return counts


def _merged(word: _Word, pair: tuple[str, str]) -> _Word:
    result: list[str] = []
    for symbol in word:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return tuple(result)


def learn_merges(counts: Counter[str]) -> list[tuple[str, str]]:
    """Return the ranked merges that turn every word of the corpus into one token."""
    words = {(*word[:-1], word[-1] + _WORD_END): count for word, count in counts.items()}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {_merged(word, best): count for word, count in words.items()}


def build(folder: Path) -> None:
    """Learn the tokenizer and write ``vocab.json``, ``merges.txt`` and its configuration."""
    symbols = byte_symbols()
    merges = learn_merges(_corpus())
    tokens = symbols + [symbol + _WORD_END for symbol in symbols]
    tokens += [left + right for left, right in merges]
    tokens = [*dict.fromkeys(tokens), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    text = json.dumps(vocabulary, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    configuration = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration), encoding="utf-8")


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer from the stage's folder."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return tokenizer


def encode(
    tokenizer: CLIPTokenizer, texts: list[str], length: int = LENGTH, filler: int | None = None
) -> list[list[int]]:
    """Return the ids of each text, cut and filled up to ``length``; with the end token by default."""
    if filler is None:
        filler = tokenizer.pad_token_id
    rows = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    return [row + [filler] * (length - len(row)) for row in rows]
