"""Learned words (textual inversion, Gal et al. 2022, arXiv 2208.01618) in a prompt.

A name stands for its vectors, in whichever spelling people know: bare (A1111), ``embedding:name``
(ComfyUI), and ``name name_1 name_2`` or one of these alone (diffusers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from sdengine.errors import ParameterError

MAX_NAME = 200
"""Characters of a name."""

_NO_NAME = re.compile(r"[\s()\[\]{}|:,\\]")
_SUFFIX = r"(?:\.(?:pt|bin|safetensors))?"


def check_name(name: str) -> None:
    """Raise ParameterError for a name that no prompt could contain."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or _NO_NAME.search(name):
        raise ParameterError(
            f"an embedding cannot be called {str(name)[:MAX_NAME]!r}: expected 1 to {MAX_NAME} characters without"
            " white space and without ( ) [ ] { } | : , and backslash. Give it another name:"
            " embeddings={'name': path}"
        )


class LearnedWords:
    """The names that one text encoder knows, each with the token ids of its vectors.

    Args:
        ids: by name; none for a name that has vectors for another encoder only, and is left out.
    """

    def __init__(self, ids: Mapping[str, Sequence[int]]) -> None:
        self._ids = {name.lower(): list(values) for name, values in ids.items()}
        # Longest first, so that "style-2" is not read as "style".
        names = sorted(self._ids, key=len, reverse=True)
        found = "|".join(_bounded(name) for name in names)
        self._pattern = re.compile(
            rf"(?P<prefix>(?<!\w)embedding:)?(?P<name>{found})"
            rf"(?:_(?P<number>[0-9]+))?(?(prefix){_SUFFIX})(?!\w)(?!-\w)",
            re.IGNORECASE,
        )

    def units(self, text: str, encode: Callable[[str], list[int]]) -> Iterator[list[int]]:
        """The tokens of `text` in order: plain ones each by itself, those of a learned word together."""
        done = 0
        for match in self._pattern.finditer(text):
            ids = self._vectors(match)
            if ids is None or match.start() < done:
                continue
            yield from ([token] for token in encode(text[done : match.start()]))
            done = match.end()
            if match["number"] is None:
                done = self._after_expansion(text, match["name"], done)
            if ids:
                yield ids
        yield from ([token] for token in encode(text[done:]))

    def _vectors(self, match: re.Match[str]) -> list[int] | None:
        """What a match stands for; None if it is a number that the word does not have."""
        ids = self._ids[match["name"].lower()]
        if match["number"] is None:
            return ids
        number = int(match["number"])
        return [ids[number]] if 0 < number < len(ids) else None

    def _after_expansion(self, text: str, name: str, position: int) -> int:
        """Where ``name_1 name_2 ...`` ends if all of it stands at `position`; else `position`."""
        count = len(self._ids[name.lower()])
        if count < 2:
            return position
        others = r"\s+".join(f"{re.escape(name)}_{i}" for i in range(1, count))
        match = re.compile(rf"\s+{others}(?!\w)", re.IGNORECASE).match(text, position)
        return match.end() if match else position


def _bounded(name: str) -> str:
    """A pattern for the name where it is no part of a longer word."""
    before = r"(?<!\w)(?<!\w-)" if re.match(r"\w", name) else ""
    return before + re.escape(name)
