"""Reading a CLIP tokenizer from the files in which models publish it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from sdengine.errors import TokenizerError
from sdengine.tokenizers.clip import (
    BOS_TOKEN,
    DEFAULT_MAX_LENGTH,
    EOS_TOKEN,
    LONGEST,
    SHORTEST,
    ClipTokenizer,
    SpecialToken,
)

VOCAB_FILE: Final = "vocab.json"
MERGES_FILE: Final = "merges.txt"
JSON_FILE: Final = "tokenizer.json"

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_MAX_FILE_BYTES = 64 << 20  # CLIP's largest file has 2.2 MB


def load_clip_tokenizer(path: str | Path, pad: int | None = None) -> ClipTokenizer:
    """Read a tokenizer.

    Args:
        path: a folder with ``vocab.json`` and ``merges.txt``, or with ``tokenizer.json`` (such as
            ``tokenizer/`` of a diffusers folder), or the path of such a ``tokenizer.json``.
        pad: padding id; None takes the folder's ``pad_token``, or else the end token.

    Raises:
        TokenizerError: there is no CLIP tokenizer at `path`, or it is damaged.
    """
    path = Path(path)
    if os.path.isdir(path):
        return _load_folder(path, pad)
    if os.path.isfile(path):
        vocab, merges, special = _read_json(path)
        return _build(vocab, merges, special, _read_settings(path.parent), pad)
    raise TokenizerError(
        f"{path}: there is nothing; give a folder with {VOCAB_FILE} and {MERGES_FILE}, or a "
        f"{JSON_FILE}"
    )


def _load_folder(folder: Path, pad: int | None) -> ClipTokenizer:
    settings = _read_settings(folder)
    if (folder / JSON_FILE).is_file():
        vocab, merges, special = _read_json(folder / JSON_FILE)
    elif (folder / VOCAB_FILE).is_file() and (folder / MERGES_FILE).is_file():
        vocab = _read_object(folder / VOCAB_FILE)
        merges, special = _read_merges(folder / MERGES_FILE), []
    else:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise TokenizerError(
            f"{folder}: found {found}; expected {VOCAB_FILE} and {MERGES_FILE}, or {JSON_FILE}. "
            "Give the folder of a CLIP tokenizer"
        )
    return _build(vocab, merges, special, settings, pad)


def _build(
    vocab: dict[str, Any],
    merges: Iterable[Any],
    special: list[SpecialToken],
    settings: Mapping[str, Any],
    pad: int | None,
) -> ClipTokenizer:
    roles = [SpecialToken(*_role(settings[role])) for role in _ROLES if role in settings]
    # The role that is listed last decides how a spelling is compared, as in transformers.
    known = {token.text: token for token in (*special, *roles)}
    pad_text = _role(settings["pad_token"])[0] if "pad_token" in settings else EOS_TOKEN
    length = settings.get("model_max_length", DEFAULT_MAX_LENGTH)
    bounded = isinstance(length, int) and SHORTEST <= length <= LONGEST  # 1e30 is "no limit"
    for role, text in (("bos_token", BOS_TOKEN), ("eos_token", EOS_TOKEN)):
        if role in settings and _role(settings[role])[0] != text:
            raise TokenizerError(
                f"found {role} {_role(settings[role])[0]!r}; expected {text!r}. This is not a CLIP "
                "tokenizer: give the one of a CLIP text encoder"
            )
    return ClipTokenizer(
        vocab,
        merges,
        special=known.values(),
        pad=vocab.get(pad_text) if pad is None else pad,
        max_length=length if bounded else DEFAULT_MAX_LENGTH,
    )


def _role(value: object) -> tuple[str, bool]:
    """Spelling and `normalized` of ``"bos_token": ...``, which is a text or an object."""
    if isinstance(value, dict):
        return str(value.get("content", "")), value.get("normalized") is True
    return str(value), False


def _read_settings(folder: Path) -> dict[str, Any]:
    """Roles and limits declared beside the vocabulary; the first file that names one decides."""
    settings: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            declared = _read_object(folder / name)
            settings = {**{k: v for k, v in declared.items() if v is not None}, **settings}
    return settings


def _read_json(path: Path) -> tuple[dict[str, Any], list[Any], list[SpecialToken]]:
    """Vocabulary, merges and special tokens of a ``tokenizer.json``."""
    content = _read_object(path)
    model = content.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else type(model).__name__
    suffix = model.get("end_of_word_suffix") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE" or suffix != "</w>":
        raise TokenizerError(
            f"{path}: found a {kind} model with end-of-word mark {suffix!r}; expected BPE with "
            "'</w>'. This is not a CLIP tokenizer: give the one of a CLIP text encoder"
        )
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise TokenizerError(f"{path}: vocab or merges are missing; download the tokenizer again")
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(t, dict) for t in added):
        raise TokenizerError(f"{path}: added_tokens is damaged; download the tokenizer again")
    special = [SpecialToken(*_role(token)) for token in added]
    vocab.update((str(t.get("content")), t.get("id")) for t in added)
    return vocab, merges, special


def _read_merges(path: Path) -> list[str]:
    """Lines ``a b``; the first may be a version comment, and ``#`` is also a token."""
    lines = _read_text(path).split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    return [line.rstrip("\r") for line in lines if line.strip()]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: found a JSON {type(content).__name__}; expected an object")
    return content


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise TokenizerError(
                f"{path}: {path.stat().st_size} bytes; a CLIP tokenizer file has at most "
                f"{_MAX_FILE_BYTES}. Give the tokenizer of a CLIP text encoder"
            )
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 text ({error}); download it again") from error
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror})") from error
