"""The tokenizer that llama.cpp's converter stores in a language model's GGUF.

tokenizer.ggml.model        "llama": SentencePiece, byte pairs with scores (Llama 1 and 2, Gemma);
                            "t5": SentencePiece, unigram; "gpt2": byte pairs with merges
tokenizer.ggml.tokens       array of strings, in id order
tokenizer.ggml.scores       array of floats ("llama", "t5")
tokenizer.ggml.token_type   array of ints: SentencePiece's Type
tokenizer.ggml.merges       array of strings "a b" ("gpt2")
tokenizer.ggml.pre          which pattern splits words ("gpt2")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from sdengine.errors import TokenizerError
from sdengine.tokenizers.sentencepiece import Pieces, SentencePieceTokenizer, write_model
from sdengine.tokenizers.text import JsonTokenizer

PREFIX: Final = "tokenizer.ggml."

_CONTROL, _USER_DEFINED = 3, 4
# How words are split before byte pairs: the published tokenizer.json of Qwen2.5 and of Llama 3.1.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_WORDS = {"qwen2": _QWEN2, "llama-bpe": _LLAMA3, "llama3": _LLAMA3}
_COMPOSED = ("qwen2",)  # those that bring characters into Unicode's form NFC first


def text_tokenizer_from_gguf(
    metadata: Mapping[str, Any],
) -> JsonTokenizer | SentencePieceTokenizer | None:
    """The tokenizer in a GGUF's key/values; None for a file that carries none.

    Raises:
        TokenizerError: it is incomplete, contradicts itself, or is of a kind that is not known.
    """
    kind = metadata.get(f"{PREFIX}model")
    if kind is None:
        return None
    if kind in ("llama", "t5"):
        return _sentencepiece(metadata, unigram=kind == "t5")
    if kind == "gpt2":
        return JsonTokenizer(_byte_pairs(metadata))
    raise TokenizerError(
        f"{PREFIX}model is {kind!r}; known are 'llama', 't5' and 'gpt2'. Give the model's own"
        " tokenizer with tokenizer="
    )


def _sentencepiece(metadata: Mapping[str, Any], unigram: bool) -> SentencePieceTokenizer:
    texts = _array(metadata, "tokens", str)
    table = metadata.get(f"{PREFIX}precompiled_charsmap", ())
    # Llama's and Gemma's models keep every space; T5's joins them.
    single = metadata.get(f"{PREFIX}remove_extra_whitespaces", unigram)
    pieces = Pieces(
        texts=texts,
        scores=_array(metadata, "scores", (int, float), len(texts)),
        kinds=_array(metadata, "token_type", int, len(texts)),
        method="unigram" if unigram else "bpe",
        normalisation=_bytes(table),
        space_before=bool(metadata.get(f"{PREFIX}add_space_prefix", True)),
        single_spaces=bool(single),
    )
    return SentencePieceTokenizer(write_model(pieces))


def _byte_pairs(metadata: Mapping[str, Any]) -> Tokenizer:
    texts = _array(metadata, "tokens", str)
    kinds = _array(metadata, "token_type", int, len(texts))
    merges = _array(metadata, "merges", str)
    pre = metadata.get(f"{PREFIX}pre")
    words = _WORDS.get(pre) if isinstance(pre, str) else None
    if words is None:
        raise TokenizerError(
            f"{PREFIX}pre is {pre!r}; known are {', '.join(sorted(_WORDS))}. Give the model's own"
            " tokenizer.json with tokenizer="
        )
    vocab = {text: i for i, text in enumerate(texts)}
    if len(vocab) != len(texts):
        raise TokenizerError(
            f"{PREFIX}tokens holds {len(texts) - len(vocab)} tokens twice. The file is damaged:"
            " download it again"
        )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    try:
        # Llama 3 takes a whole word that is a token before it looks at the merges.
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=words is _LLAMA3)
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(
            f"{PREFIX}merges do not fit the tokens ({error}). Download the file again"
        ) from error
    tokenizer = Tokenizer(model)
    if pre in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.add_special_tokens(_added(texts, kinds, _CONTROL, special=True))
    tokenizer.add_tokens(_added(texts, kinds, _USER_DEFINED, special=False))
    return tokenizer


def _added(
    texts: Sequence[str], kinds: Sequence[int], kind: int, special: bool
) -> list[AddedToken]:
    rows = zip(texts, kinds, strict=True)
    return [AddedToken(t, special=special, normalized=False) for t, k in rows if k == kind and t]


def _array(
    metadata: Mapping[str, Any], name: str, kind: type | tuple[type, ...], length: int | None = None
) -> list[Any]:
    value = metadata.get(PREFIX + name)
    is_array = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not is_array or not all(isinstance(item, kind) for item in value or ()):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise TokenizerError(
            f"{PREFIX}{name}: found {found}; expected an array. Give the model's own tokenizer"
            " with tokenizer="
        )
    if length is not None and len(value or ()) != length:
        raise TokenizerError(
            f"{PREFIX}{name} has {len(value or ())} entries, there are {length} tokens. The file is"
            " damaged: download it again"
        )
    return list(value or ())


def _bytes(table: Any) -> bytes:
    try:
        return bytes(table if isinstance(table, bytes) else [int(b) & 0xFF for b in table])
    except (TypeError, ValueError) as error:
        raise TokenizerError(
            f"{PREFIX}precompiled_charsmap: found a {type(table).__name__}; expected bytes."
            " Download the file again"
        ) from error
