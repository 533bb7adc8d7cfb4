"""CLIP tokenizers inside a GGUF file.

A model may need several (SDXL has two, with one vocabulary and two padding ids), so each is stored
under the name of its text encoder::

    sdengine.tokenizer.clip.text_encoder.tokens              array of strings, in id order
    sdengine.tokenizer.clip.text_encoder.merges              array of strings "a b", in order
    sdengine.tokenizer.clip.text_encoder.special_tokens      array of strings
    sdengine.tokenizer.clip.text_encoder.special_normalized  array of bools, one per special token
    sdengine.tokenizer.clip.text_encoder.bos_token_id        u32
    sdengine.tokenizer.clip.text_encoder.eos_token_id        u32
    sdengine.tokenizer.clip.text_encoder.padding_token_id    u32
    sdengine.tokenizer.clip.text_encoder.max_length          u32
    sdengine.tokenizer.clip.text_encoder_2.vocabulary_of     "text_encoder": tokens and merges there

GGML's own ``tokenizer.ggml.*`` keys hold one tokenizer per file and know no end-of-word mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sdengine.errors import ParameterError, TokenizerError
from sdengine.tokenizers.clip import ClipTokenizer, SpecialToken

PREFIX: Final = "sdengine.tokenizer.clip."

_REMEDY = "Convert the model again from the original files with `sdengine convert`."


def to_gguf_fields(tokenizers: Mapping[str, ClipTokenizer]) -> dict[str, Any]:
    """GGUF keys and values that hold the tokenizers.

    Args:
        tokenizers: by the name of their text encoder: ``text_encoder``, ``text_encoder_2``. A
            vocabulary that several share is stored once.

    Returns:
        Key to a list of strings, a list of bools, a string or an int (to be stored as u32).
    """
    fields: dict[str, Any] = {}
    stored: list[tuple[str, ClipTokenizer]] = []
    for name, tokenizer in tokenizers.items():
        prefix = f"{PREFIX}{name}."
        owner = next((n for n, other in stored if _same_vocabulary(other, tokenizer)), None)
        if owner is None:
            stored.append((name, tokenizer))
            fields[prefix + "tokens"] = tokenizer.tokens
            fields[prefix + "merges"] = [" ".join(pair) for pair in tokenizer.merges]
        else:
            fields[prefix + "vocabulary_of"] = owner
        fields[prefix + "special_tokens"] = [token.text for token in tokenizer.special]
        fields[prefix + "special_normalized"] = [token.normalized for token in tokenizer.special]
        fields[prefix + "bos_token_id"] = tokenizer.bos
        fields[prefix + "eos_token_id"] = tokenizer.eos
        fields[prefix + "padding_token_id"] = tokenizer.pad
        fields[prefix + "max_length"] = tokenizer.max_length
    return fields


def from_gguf_fields(metadata: Mapping[str, Any]) -> dict[str, ClipTokenizer]:
    """The tokenizers stored in a GGUF's key/values, by the name of their text encoder.

    Returns an empty dict for a file that carries none.

    Raises:
        TokenizerError: a stored tokenizer is incomplete or contradicts itself.
    """
    names = {key[len(PREFIX) :].split(".")[0] for key in metadata if key.startswith(PREFIX)}
    return {name: _read(metadata, name) for name in sorted(names)}


def _read(metadata: Mapping[str, Any], name: str) -> ClipTokenizer:
    owner = metadata.get(f"{PREFIX}{name}.vocabulary_of", name)
    texts = _array(metadata, f"{PREFIX}{name}.special_tokens", str)
    normalized = _array(metadata, f"{PREFIX}{name}.special_normalized", bool)
    if len(texts) != len(normalized):
        key = f"{PREFIX}{name}.special_normalized"
        raise _damaged(key, f"{len(normalized)} values", f"one per special token ({len(texts)})")
    tokens = _array(metadata, f"{PREFIX}{owner}.tokens", str)
    merges = _array(metadata, f"{PREFIX}{owner}.merges", str)
    pad = _number(metadata, f"{PREFIX}{name}.padding_token_id")
    max_length = _number(metadata, f"{PREFIX}{name}.max_length")
    special = [SpecialToken(t, n) for t, n in zip(texts, normalized, strict=True)]
    try:
        tokenizer = ClipTokenizer(tokens, merges, special=special, pad=pad, max_length=max_length)
    except ParameterError as error:  # the file's mistake, not the caller's
        raise TokenizerError(f"{PREFIX}{name}: {error}. {_REMEDY}") from error
    for key, derived in (("bos_token_id", tokenizer.bos), ("eos_token_id", tokenizer.eos)):
        stored = _number(metadata, f"{PREFIX}{name}.{key}")
        if stored != derived:
            raise _damaged(f"{PREFIX}{name}.{key}", str(stored), f"{derived}, as in its tokens")
    return tokenizer


def _same_vocabulary(a: ClipTokenizer, b: ClipTokenizer) -> bool:
    return a.tokens == b.tokens and a.merges == b.merges


def _array(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    value: Any = metadata.get(key)
    is_array = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_array or not all(isinstance(item, kind) for item in value):
        raise _damaged(key, _found(value), f"an array of {kind.__name__}")
    return list(value)


def _number(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _damaged(key, _found(value), "a whole number")
    return value


def _found(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _damaged(key: str, found: str, expected: str) -> TokenizerError:
    return TokenizerError(f"{key}: found {found}; expected {expected}. {_REMEDY}")
