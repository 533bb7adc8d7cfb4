"""SentencePiece tokenizers (Kudo and Richardson 2018, arXiv 1808.06226): ChatGLM3, T5, Gemma.

The ids are those of the `sentencepiece` package over the same model file, so that normalisation,
byte fallback and white space are as trained.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sentencepiece import SentencePieceProcessor

from sdengine.errors import TokenizerError
from sdengine.tokenizers.text import without_surrogates


class SentencePieceTokenizer:
    """Text to token ids by a SentencePiece model.

    Args:
        model: the content of a ``tokenizer.model`` or ``spiece.model``.
        added: tokens whose ids follow the model's own, in order. A text cannot spell them.

    Raises:
        TokenizerError: `model` is not a SentencePiece model.
    """

    def __init__(self, model: bytes, added: Sequence[str] = ()) -> None:
        try:
            self._model = SentencePieceProcessor(model_proto=model)
            self._pieces = int(self._model.get_piece_size())
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise TokenizerError(_not_a_model(model, str(error))) from error
        if not self._pieces:
            raise TokenizerError(_not_a_model(model, "it has no pieces"))
        self._added = {token: self._pieces + i for i, token in enumerate(added)}
        self._content = model

    @property
    def model(self) -> bytes:
        """The content of the model's file."""
        return self._content

    @property
    def added(self) -> tuple[str, ...]:
        """Tokens whose ids follow the model's own."""
        return tuple(self._added)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._pieces + len(self._added)

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, of any length. Lone surrogates count as U+FFFD."""
        ids: list[int] = self._model.encode(without_surrogates(text), out_type=int)
        return ids

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None when it has none."""
        if token in self._added:
            return self._added[token]
        found = int(self._model.piece_to_id(token))  # an unknown one has the id of <unk>
        return found if self._model.id_to_piece(found) == token else None


def _not_a_model(model: bytes, reason: str) -> str:
    return (
        f"{len(model)} bytes that are no SentencePiece model ({reason}). Give the tokenizer.model"
        " or spiece.model that the text encoder was published with"
    )


# ------------------------------ writing a model
@dataclass(frozen=True)
class Pieces:
    """What a SentencePiece model is made of."""

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    """SentencePiece's Type: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte."""
    method: Literal["unigram", "bpe"]
    normalisation: bytes = b""
    """The compiled table of characters; empty changes none."""
    space_before: bool = True
    """A text is read as if a space stood before it."""
    single_spaces: bool = True
    """Runs of spaces are one, and none stands at either end."""


_UNKNOWN, _BYTE = 2, 6
# Numbers of the fields in sentencepiece_model.proto (google/sentencepiece).
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_METHODS = {"unigram": 1, "bpe": 2}


def write_model(pieces: Pieces) -> bytes:
    """The model file with these pieces, for files that carry only them (GGUF).

    Raises:
        TokenizerError: there is not exactly one piece of the kind "unknown".
    """
    unknown = [i for i, kind in enumerate(pieces.kinds) if kind == _UNKNOWN]
    if len(unknown) != 1:
        raise TokenizerError(
            f"the vocabulary has {len(unknown)} unknown tokens; expected one. It is damaged:"
            " download the file again"
        )
    rows = zip(pieces.texts, pieces.scores, pieces.kinds, strict=True)
    body = b"".join(
        _field(_PIECES, _text(1, text) + _float(2, score) + _number(3, kind))
        for text, score, kind in rows
    )
    trainer = _number(3, _METHODS[pieces.method])
    trainer += _number(35, _BYTE in pieces.kinds)  # byte_fallback
    trainer += _number(40, unknown[0])
    trainer += _text(45, pieces.texts[unknown[0]])
    normalizer = _field(2, pieces.normalisation)
    normalizer += _number(3, pieces.space_before)
    normalizer += _number(4, pieces.single_spaces)
    return body + _field(_TRAINER, trainer) + _field(_NORMALIZER, normalizer)


def _varint(value: int) -> bytes:
    """Protocol Buffers' number: seven bits per byte, lowest first; negative ones as 64 bits."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode("utf-8", "replace"))


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
