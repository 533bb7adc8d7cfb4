"""Token ids and weights in the fixed rows that a CLIP text encoder reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ParameterError
from sdengine.prompt.emphasis import Segment
from sdengine.prompt.learned import LearnedWords

MAX_CHUNKS: Final = 256
"""19,200 tokens with CLIP's 75 a chunk. Attention reads every chunk at every step."""

COMMA_TOKEN: Final = ",</w>"


class Tokenizer(Protocol):
    """What :func:`chunk` needs: :class:`sdengine.tokenizers.ClipTokenizer` has it."""

    def encode(self, text: str) -> list[int]:
        """Token ids without start and end."""

    def id_of(self, token: str) -> int | None:
        """Id of a token of the vocabulary."""

    @property
    def bos(self) -> int:
        """Id of the start token."""

    @property
    def eos(self) -> int:
        """Id of the end token."""

    @property
    def pad(self) -> int:
        """Id that fills up a chunk."""

    @property
    def max_length(self) -> int:
        """Tokens a chunk, start and end included."""


@dataclass(frozen=True)
class Chunks:
    """A prompt as rows of tokens: start, up to 75 tokens, end, padding.

    Attributes:
        ids: int32 ``[n, 77]``.
        weights: float32 ``[n, 77]``; 1.0 for start, end and padding.
        empty: int32 ``[77]``, the row of an empty prompt.
        dropped: tokens that did not fit (0 unless truncation was asked for).
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    empty: NDArray[np.int32]
    dropped: int = 0

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def padded(self, count: int) -> Chunks:
        """The same with empty chunks behind, `count` in all.

        Raises:
            ParameterError: there are more chunks than `count`.
        """
        missing = count - len(self)
        if missing < 0:
            raise ParameterError(f"{len(self)} chunks do not fit into {count}; pad to more")
        if missing == 0:
            return self
        length = self.ids.shape[1]
        return replace(
            self,
            ids=np.concatenate([self.ids, np.tile(self.empty, (missing, 1))]),
            weights=np.concatenate([self.weights, np.ones((missing, length), np.float32)]),
        )


def chunk(
    tokenizer: Tokenizer,
    segments: Iterable[Segment],
    *,
    comma_backtrack: int = 0,
    keep_whole: int = 0,
    max_chunks: int = MAX_CHUNKS,
    truncate: bool = False,
    learned: LearnedWords | None = None,
) -> Chunks:
    """Tokenize segments and lay the tokens into chunks. There is always at least one chunk.

    Args:
        tokenizer: its ``max_length`` is the length of a row.
        segments: from :func:`sdengine.prompt.parse` or :func:`sdengine.prompt.literal`.
        comma_backtrack: when a chunk is full, and its last comma is at most so many tokens back,
            what follows the comma moves to the next chunk. 0 cuts anywhere; A1111 ships with 20.
        keep_whole: a segment of fewer tokens than this is not cut but moves to the next chunk. ComfyUI has 8.
        max_chunks: upper limit.
        truncate: drop what is beyond `max_chunks` instead of raising. With 1 chunk this is what
            diffusers does.
        learned: words that stand for vectors of their own. One that does not fit into what is left of a chunk
            moves to the next whole, as in A1111.

    Raises:
        ParameterError: the prompt needs more than `max_chunks`, or an argument is out of range.
    """
    capacity = tokenizer.max_length - 2
    if not 0 <= comma_backtrack <= capacity:
        raise ParameterError(f"comma_backtrack must be 0 to {capacity}, not {comma_backtrack}")
    if not 0 <= keep_whole <= capacity:
        raise ParameterError(f"keep_whole must be 0 to {capacity}, not {keep_whole}")
    if max_chunks < 1:
        raise ParameterError(f"max_chunks must be 1 or more, not {max_chunks}")
    layout = _Layout(capacity, tokenizer.id_of(COMMA_TOKEN), comma_backtrack)
    for segment in segments:
        if segment.new_chunk:
            layout.close()
        units = _units(tokenizer, segment.text, learned)
        count = sum(map(len, units))
        if count < keep_whole and not layout.fits(count):
            layout.close()
        for unit in units:
            layout.add_whole(unit, segment.weight)
        if len(layout.closed) > max_chunks and not truncate:
            break
    rows = layout.finish()
    if len(rows) > max_chunks and not truncate:
        raise ParameterError(
            f"the prompt needs more than {max_chunks} chunks of {capacity} tokens; shorten it"
        )
    dropped = sum(len(row.tokens) for row in rows[max_chunks:])
    return _assemble(tokenizer, rows[:max_chunks], dropped)


def _units(tokenizer: Tokenizer, text: str, learned: LearnedWords | None) -> list[list[int]]:
    """The tokens of a text, those that stay together in one list."""
    if learned is None:
        return [[token] for token in tokenizer.encode(text)]
    return list(learned.units(text, tokenizer.encode))


def equalize(*prompts: Chunks) -> tuple[Chunks, ...]:
    """The prompts with equal chunk counts: the shorter ones get empty chunks behind.

    Positive and negative prompt must agree, and so must the two encoders of SDXL.
    """
    count = max(len(chunks) for chunks in prompts)
    return tuple(chunks.padded(count) for chunks in prompts)


@dataclass
class _Row:
    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def cut(self, position: int) -> _Row:
        """Take off and return everything from `position`."""
        tail = _Row(self.tokens[position:], self.weights[position:])
        del self.tokens[position:], self.weights[position:]
        return tail


@dataclass
class _Layout:
    """Rows being filled, token by token."""

    capacity: int
    comma: int | None
    comma_backtrack: int
    closed: list[_Row] = field(default_factory=list)
    row: _Row = field(default_factory=_Row)
    last_comma: int | None = None

    def add(self, token: int, weight: float) -> None:
        if len(self.row.tokens) == self.capacity:
            tail = _Row() if token == self.comma else self._tail_after_comma()
            self.close()
            self.row = tail
        elif token == self.comma:
            self.last_comma = len(self.row.tokens)
        self.row.tokens.append(token)
        self.row.weights.append(weight)

    def add_whole(self, tokens: list[int], weight: float) -> None:
        """Tokens that are not cut in two; at most as many as a row holds."""
        if len(tokens) > 1 and not self.fits(len(tokens)):
            self.close()
        for token in tokens:
            self.add(token, weight)

    def fits(self, count: int) -> bool:
        """True if so many tokens more go into the row."""
        return len(self.row.tokens) + count <= self.capacity

    def close(self) -> None:
        self.closed.append(self.row)
        self.row = _Row()
        self.last_comma = None

    def finish(self) -> list[_Row]:
        if self.row.tokens or not self.closed:
            self.close()
        return self.closed

    def _tail_after_comma(self) -> _Row:
        """What follows a near comma in the full row: it moves to the next."""
        if self.last_comma is None or self.capacity - self.last_comma > self.comma_backtrack:
            return _Row()
        return self.row.cut(self.last_comma + 1)


def _assemble(tokenizer: Tokenizer, rows: list[_Row], dropped: int) -> Chunks:
    length = tokenizer.max_length
    ids = np.full((len(rows), length), tokenizer.pad, np.int32)
    weights = np.ones((len(rows), length), np.float32)
    ids[:, 0] = tokenizer.bos
    for index, row in enumerate(rows):
        end = len(row.tokens) + 1
        ids[index, 1:end] = row.tokens
        weights[index, 1:end] = row.weights
        ids[index, end] = tokenizer.eos
    empty = np.full(length, tokenizer.pad, np.int32)
    empty[0], empty[1] = tokenizer.bos, tokenizer.eos
    return Chunks(ids, weights, empty, dropped)
