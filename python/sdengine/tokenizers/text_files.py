"""Reading a language model's tokenizer from the files in which models publish it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sdengine.errors import TokenizerError
from sdengine.tokenizers.sentencepiece import SentencePieceTokenizer
from sdengine.tokenizers.text import JsonTokenizer
from sdengine.tokenizers.word_pieces import CONFIG_FILE, VOCABULARY_FILE, word_pieces

SENTENCEPIECE_FILES: Final = ("tokenizer.model", "spiece.model")
JSON_FILE: Final = "tokenizer.json"

_MAX_FILE_BYTES = 128 << 20  # Gemma's tokenizer.json has 34 MB


def find_text_tokenizer(folder: Path) -> Path | None:
    """The tokenizer's file in a folder such as ``tokenizer/`` of a diffusers folder, if any.

    A tokenizer.json comes first, for it is what transformers reads.
    """
    names = (JSON_FILE, *SENTENCEPIECE_FILES, VOCABULARY_FILE)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def load_text_tokenizer(
    path: str | Path, added: Sequence[str] = ()
) -> JsonTokenizer | SentencePieceTokenizer:
    """Read a tokenizer.

    Args:
        path: a ``tokenizer.json``, a SentencePiece model, BERT's ``vocab.txt``, or a folder with one of them.
        added: tokens whose ids follow those of a SentencePiece model (:class:`PromptFormat`).

    Raises:
        TokenizerError: there is no such tokenizer at `path`, or it is damaged.
    """
    path = Path(path)
    file = find_text_tokenizer(path) if path.is_dir() else path
    if file is None:
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise TokenizerError(
            f"{path}: found {found}; expected {JSON_FILE} or"
            f" {' or '.join((*SENTENCEPIECE_FILES, VOCABULARY_FILE))}."
            " Give the folder of the text encoder's tokenizer"
        )
    content = _read(file)
    try:
        if file.name == VOCABULARY_FILE:
            return word_pieces(content.decode("utf-8-sig"), _config(file.parent / CONFIG_FILE))
        if content.lstrip()[:1] != b"{":
            return SentencePieceTokenizer(content, added)
        return JsonTokenizer.parse(content.decode("utf-8-sig"), added)
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file}: not UTF-8 text ({error}); download it again") from error
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from error


def _config(file: Path) -> dict[str, Any]:
    """What a tokenizer_config.json says; nothing where there is none."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file}: no JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{file}: not a JSON object; download it again")
    return found


def _read(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise TokenizerError(
                f"{file}: {size} bytes; a tokenizer has at most {_MAX_FILE_BYTES}. Give the"
                " tokenizer of the text encoder"
            )
        return file.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{file}: cannot be read ({error.strerror})") from error
