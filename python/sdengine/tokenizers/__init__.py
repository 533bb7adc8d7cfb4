"""Text to token ids."""

from sdengine.tokenizers.clip import (
    BOS_TOKEN,
    DEFAULT_MAX_LENGTH,
    END_OF_WORD,
    EOS_TOKEN,
    ClipTokenizer,
    SpecialToken,
)
from sdengine.tokenizers.clip_files import load_clip_tokenizer
from sdengine.tokenizers.clip_gguf import from_gguf_fields, to_gguf_fields
from sdengine.tokenizers.hub_cache import default_clip_tokenizer, find_in_hub_cache
from sdengine.tokenizers.padding import PaddedTokens, PromptFormat, pad_prompts
from sdengine.tokenizers.sentencepiece import SentencePieceTokenizer
from sdengine.tokenizers.text import JsonTokenizer, TextTokenizer
from sdengine.tokenizers.text_fields import from_text_fields, to_text_fields
from sdengine.tokenizers.text_files import find_text_tokenizer, load_text_tokenizer
from sdengine.tokenizers.text_gguf import text_tokenizer_from_gguf

__all__ = [
    "BOS_TOKEN",
    "DEFAULT_MAX_LENGTH",
    "END_OF_WORD",
    "EOS_TOKEN",
    "ClipTokenizer",
    "JsonTokenizer",
    "PaddedTokens",
    "PromptFormat",
    "SentencePieceTokenizer",
    "SpecialToken",
    "TextTokenizer",
    "default_clip_tokenizer",
    "find_in_hub_cache",
    "find_text_tokenizer",
    "from_gguf_fields",
    "from_text_fields",
    "load_clip_tokenizer",
    "load_text_tokenizer",
    "pad_prompts",
    "text_tokenizer_from_gguf",
    "to_gguf_fields",
    "to_text_fields",
]
