"""CLIP's byte-pair tokenizer.

The token ids equal those of ``transformers.CLIPTokenizer`` (version 5) over the same files: Unicode
NFC, every run of white space as one space, lower case, words split by CLIP's pattern (Radford et
al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"), GPT-2's byte
symbols, byte pairs with the end-of-word mark ``</w>``. OpenAI's first code also ran ``ftfy`` and
unescaped HTML entities; transformers 5 does neither, and neither does this class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from sdengine.errors import ParameterError, TokenizerError

BOS_TOKEN: Final = "<|startoftext|>"
EOS_TOKEN: Final = "<|endoftext|>"
END_OF_WORD: Final = "</w>"
DEFAULT_MAX_LENGTH: Final = 77
"""Positions of every published CLIP text encoder."""

_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SHORTEST: Final = 3
LONGEST: Final = 1 << 16
"""Limits of ``max_length``: start, one token and end; far above any text encoder."""


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that is recognised wherever it is spelled out in a text.

    Attributes:
        text: the spelling.
        normalized: compare after lower-casing and white-space cleaning, so that ``<|ENDOFTEXT|>``
            is found too; False compares the raw text.
    """

    text: str
    normalized: bool = False


class ClipTokenizer:
    """Text to CLIP token ids.

    Args:
        vocab: token to id, or the tokens in id order. Ids must be 0, 1, 2, ... without a hole.
        merges: the byte pairs, most frequent first: ``"a b"`` or ``("a", "b")``.
        special: tokens recognised in the text; start and end are always among them.
        pad: id that fills up a chunk. None takes the end token, as CLIP-L does; OpenCLIP's encoders
            (SD 2, the second one of SDXL) were trained with 0.
        max_length: positions of the text encoder, start and end included.

    Raises:
        TokenizerError: the vocabulary is not one of CLIP, or contradicts the merges.
        ParameterError: `pad` or `max_length` is out of range.
    """

    def __init__(
        self,
        vocab: Mapping[str, int] | Sequence[str],
        merges: Iterable[str | Sequence[str]],
        *,
        special: Iterable[SpecialToken] = (),
        pad: int | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
    ) -> None:
        self._ids = _checked_vocab(vocab)
        self._merges = [_pair(entry) for entry in merges]
        by_text = {text: SpecialToken(text) for text in (BOS_TOKEN, EOS_TOKEN)}
        by_text.update((token.text, token) for token in special)
        self._special = tuple(by_text.values())
        self._pad = self.eos if pad is None else pad
        if not 0 <= self._pad < len(self._ids):
            raise ParameterError(f"pad id must be 0 to {len(self._ids) - 1}, not {self._pad}")
        if not SHORTEST <= max_length <= LONGEST:
            raise ParameterError(f"max_length must be {SHORTEST} to {LONGEST}, not {max_length}")
        self._max_length = max_length
        self._tokenizer = _pipeline(self._ids, self._merges, self._special)

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, without start and end, of any length.

        Lone surrogates (half of a broken character) count as U+FFFD.
        """
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return list(self._tokenizer.encode(clean, add_special_tokens=False).ids)

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it (``"cat</w>"``); None when it has none."""
        return self._ids.get(token)

    def with_pad(self, pad: int) -> ClipTokenizer:
        """The same tokenizer with another padding id."""
        return ClipTokenizer(
            self._ids, self._merges, special=self._special, pad=pad, max_length=self._max_length
        )

    @property
    def bos(self) -> int:
        """Id of the start token (49406 in OpenAI's vocabulary)."""
        return self._ids[BOS_TOKEN]

    @property
    def eos(self) -> int:
        """Id of the end token (49407 in OpenAI's vocabulary)."""
        return self._ids[EOS_TOKEN]

    @property
    def pad(self) -> int:
        """Id that fills up a chunk."""
        return self._pad

    @property
    def max_length(self) -> int:
        """Positions of the text encoder, start and end included."""
        return self._max_length

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._ids)

    @property
    def tokens(self) -> list[str]:
        """The vocabulary in id order."""
        return list(self._ids)

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The byte pairs, most frequent first."""
        return list(self._merges)

    @property
    def special(self) -> tuple[SpecialToken, ...]:
        """Tokens recognised in the text."""
        return self._special


def _checked_vocab(vocab: Mapping[str, int] | Sequence[str]) -> dict[str, int]:
    """Token to id, sorted by id; raises TokenizerError when it cannot be a CLIP vocabulary."""
    if not isinstance(vocab, Mapping):
        vocab = {token: index for index, token in enumerate(vocab)}
    pairs = list(vocab.items())
    if not all(isinstance(t, str) and type(i) is int for t, i in pairs):
        raise TokenizerError(
            "the vocabulary must map token texts to whole numbers; give an unchanged vocab.json"
        )
    ids = dict(sorted(pairs, key=lambda pair: pair[1]))
    if list(ids.values()) != list(range(len(pairs))):
        raise TokenizerError(
            f"the vocabulary has {len(pairs)} tokens whose ids are not 0 to {len(pairs) - 1}, each "
            "once; the file is damaged: download the tokenizer again"
        )
    missing = [token for token in (BOS_TOKEN, EOS_TOKEN) if token not in ids]
    if missing:
        raise TokenizerError(
            f"the vocabulary ({len(ids)} tokens) lacks {' and '.join(missing)}, so it is not "
            "CLIP's; give the tokenizer of a CLIP text encoder"
        )
    return ids


def _pair(entry: str | Sequence[str]) -> tuple[str, str]:
    parts = entry.split(" ") if isinstance(entry, str) else list(entry)
    if len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise TokenizerError(
            f"found the merge {entry!r:.80}; expected two tokens. The merges are damaged: download "
            "the tokenizer again"
        )
    return parts[0], parts[1]


def _pipeline(
    ids: dict[str, int], merges: list[tuple[str, str]], special: Iterable[SpecialToken]
) -> Tokenizer:
    """The `tokenizers` object: normalise, split, byte symbols, byte pairs."""
    try:
        model = models.BPE(
            vocab=ids,
            merges=merges,
            end_of_word_suffix=END_OF_WORD,
            unk_token=EOS_TOKEN,
            fuse_unk=False,
        )
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(
            f"the merges do not fit the vocabulary ({error}); take both from the same tokenizer"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    added = []
    for token in special:
        if token.text not in ids:
            raise TokenizerError(
                f"the special token {token.text!r} is not in the vocabulary; take both from the "
                "same tokenizer"
            )
        added.append(AddedToken(token.text, normalized=token.normalized, special=True))
    tokenizer.add_special_tokens(added)
    return tokenizer
