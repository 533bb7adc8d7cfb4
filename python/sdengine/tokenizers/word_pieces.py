"""BERT's tokenizer (Devlin et al. 2018, arXiv 1810.04805) from a `vocab.txt`, as older models are published.

What it does is what transformers' BertTokenizer does: text is cleaned, every Chinese character is a word of its own,
words are parted at spaces and punctuation, and each is spelled in the longest pieces that the vocabulary has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from sdengine.errors import TokenizerError
from sdengine.tokenizers.text import JsonTokenizer

VOCABULARY_FILE: Final = "vocab.txt"
CONFIG_FILE: Final = "tokenizer_config.json"
SPECIAL_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONGEST_WORD = 100  # characters; longer ones are unknown


def word_pieces(text: str, config: Mapping[str, Any]) -> JsonTokenizer:
    """The tokenizer of a vocabulary.

    Args:
        text: the content of a `vocab.txt`: one piece per line, whose number is its id.
        config: what its `tokenizer_config.json` says; what that leaves open is BERT's usual.

    Raises:
        TokenizerError: it lacks a special token, or the config asks for something else.
    """
    pieces = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    ids = {piece: number for number, piece in enumerate(pieces)}
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise TokenizerError(
            f"{len(pieces)} lines without {', '.join(missing)}; expected the vocab.txt of a BERT tokenizer"
        )
    lower_case = _flag(config, "do_lower_case", True)
    accents = config.get("strip_accents")
    if accents not in (None, True, False):
        raise TokenizerError(f"strip_accents = {accents!r}; expected true, false or null")
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD))
    tokenizer.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=_flag(config, "tokenize_chinese_chars", True),
        strip_accents=accents,
        lowercase=lower_case,
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return JsonTokenizer(tokenizer)


def _flag(config: Mapping[str, Any], key: str, otherwise: bool) -> bool:
    value = config.get(key, otherwise)
    if not isinstance(value, bool):
        raise TokenizerError(f"{key} = {value!r}; expected true or false")
    return value
