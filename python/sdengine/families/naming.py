"""What a model is called: words of its names, where tensors do not tell relatives apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

TITLES = ("general.name", "modelspec.title", "ss_output_name")
"""Where a file says what it is called (GGUF; Stability AI's modelspec; kohya's trainer)."""

_SUFFIX = re.compile(r"\.(safetensors|gguf|ckpt|pt|pth|bin|sft)$", re.IGNORECASE)


def words(name: str) -> str:
    """A name as lower-case words with single spaces.

    They are told apart by punctuation, spaces and a change to upper case: ``v40Lightning`` says Lightning.
    """
    text = _SUFFIX.sub("", name.strip())
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def says(spoken: str, patterns: Iterable[str]) -> bool:
    """Whether any of the regular expressions matches whole words of what :func:`words` returned."""
    return any(re.search(rf"\b(?:{pattern})\b", spoken) for pattern in patterns)


def titles(metadata: Mapping[str, Any]) -> list[str]:
    """What a file's metadata says that the model is called."""
    return [str(metadata[key]) for key in TITLES if isinstance(metadata.get(key), str)]
