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

__all__ = [
    "BOS_TOKEN",
    "DEFAULT_MAX_LENGTH",
    "END_OF_WORD",
    "EOS_TOKEN",
    "ClipTokenizer",
    "SpecialToken",
    "default_clip_tokenizer",
    "find_in_hub_cache",
    "from_gguf_fields",
    "load_clip_tokenizer",
    "to_gguf_fields",
]
