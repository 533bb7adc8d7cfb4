"""Language models' tokenizers inside the GGUF files that `sdengine convert` writes.

A model may have several text encoders, so each is stored under the name of its encoder, as the file
that it was published in::

    sdengine.tokenizer.text.text_encoder.sentencepiece   array of u8: a tokenizer.model
    sdengine.tokenizer.text.text_encoder.added           array of strings: tokens with the next ids
    sdengine.tokenizer.text.text_encoder_3.json          string: a tokenizer.json
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sdengine.errors import TokenizerError
from sdengine.tokenizers.sentencepiece import SentencePieceTokenizer
from sdengine.tokenizers.text import JsonTokenizer

PREFIX: Final = "sdengine.tokenizer.text."

_REMEDY = "Convert the model again from the original files with `sdengine convert`."


def to_text_fields(
    tokenizers: Mapping[str, JsonTokenizer | SentencePieceTokenizer],
) -> dict[str, Any]:
    """GGUF keys and values that hold the tokenizers.

    Args:
        tokenizers: by the name of their text encoder.

    Returns:
        Key to a string, a list of strings, or bytes (to be stored as an array of u8).
    """
    fields: dict[str, Any] = {}
    for name, tokenizer in tokenizers.items():
        if isinstance(tokenizer, JsonTokenizer):
            fields[f"{PREFIX}{name}.json"] = tokenizer.json
            continue
        fields[f"{PREFIX}{name}.sentencepiece"] = tokenizer.model
        if tokenizer.added:
            fields[f"{PREFIX}{name}.added"] = list(tokenizer.added)
    return fields


def from_text_fields(
    metadata: Mapping[str, Any],
) -> dict[str, JsonTokenizer | SentencePieceTokenizer]:
    """The tokenizers stored in a GGUF's key/values, by the name of their text encoder.

    Returns an empty dict for a file that carries none.

    Raises:
        TokenizerError: a stored tokenizer is damaged.
    """
    names = {key[len(PREFIX) :].split(".")[0] for key in metadata if key.startswith(PREFIX)}
    return {name: _read(metadata, f"{PREFIX}{name}.") for name in sorted(names)}


def _read(metadata: Mapping[str, Any], prefix: str) -> JsonTokenizer | SentencePieceTokenizer:
    text = metadata.get(f"{prefix}json")
    model = metadata.get(f"{prefix}sentencepiece")
    added = metadata.get(f"{prefix}added", [])
    try:
        if isinstance(text, str):
            return JsonTokenizer.parse(text)
        if isinstance(added, list) and all(isinstance(token, str) for token in added):
            return SentencePieceTokenizer(bytes(model or b""), added)
    except (TypeError, ValueError, TokenizerError) as error:
        raise TokenizerError(f"{prefix}: {error}. {_REMEDY}") from error
    found = f"a {type(added).__name__}"
    raise TokenizerError(f"{prefix}added: found {found}; expected an array of strings. {_REMEDY}")
