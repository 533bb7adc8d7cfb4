r"""Compel's emphasis (damian0815/compel, ``prompt_parser.py`` and its reference document).

``word++`` weighs 1.1 * 1.1, ``word--`` 0.9 * 0.9; ``(several words)+``, ``(several words)0.7`` and the same with double
quotes; groups nest and multiply. A group begins at the start of a word: ``f(x)`` is text. ``\(``, ``\)`` and ``\"`` are
the characters. White space is one space. Its operators ``.and()``, ``.blend()`` and ``.swap()`` are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sdengine.errors import ParameterError
from sdengine.prompt.emphasis import Segment, check_weight
from sdengine.prompt.limits import MAX_NESTING, check_prompt

PLUS_FACTOR: Final = 1.1
MINUS_FACTOR: Final = 0.9

# A word without syntax: escapes, signs that do not end it, and other characters.
_PLAIN: Final = r'(?:\\[()",.+\-=]|[+-](?![\s()",.+\-=]|$)|[^\s()",.+\-=])+'
_SPACE: Final = re.compile(r"\s*")
_WORD: Final = re.compile(_PLAIN)
_SIGNS: Final = re.compile(r"\++|-+")
_INSIDE: Final = re.compile(rf"{_PLAIN}|[,.]")
_FREE: Final = re.compile(r"\S+")
_SUFFIX: Final = re.compile(r"\++|-+|\d+\.\d*|\.\d+|\d+")
_OPERATOR: Final = re.compile(r"[)\"]\s*\.(?:and|add|blend|swap)\s*\(")

_Piece = tuple[str, float]


@dataclass
class _Open:
    """A group whose end has not been seen."""

    ends_with: str
    pieces: list[_Piece]


def parse(prompt: str) -> list[Segment]:
    """Split a prompt into segments of equal weight (at least one).

    Raises:
        ParameterError: the prompt is too long, uses an operator, or a weight is beyond ±1000.
    """
    check_prompt(prompt)
    if found := _OPERATOR.search(prompt):
        raise ParameterError(
            f"compel's {found[0][1:]}...) is not supported; use `a AND b` for .and(), [a:b:0.5] for .swap()"
        )
    pieces: list[_Piece] = []
    position = _SPACE.match(prompt).end()  # type: ignore[union-attr]
    while position < len(prompt):
        if group := _group(prompt, position):
            inside, position = group
            pieces += inside
        elif emphasised := _emphasised(prompt, position):
            piece, position = emphasised
            pieces.append(piece)
        else:
            free = _FREE.match(prompt, position)
            assert free is not None
            pieces.append((free[0], 1.0))
            position = free.end()
        position = _SPACE.match(prompt, position).end()  # type: ignore[union-attr]
    return _joined(pieces)


def _group(prompt: str, start: int) -> tuple[list[_Piece], int] | None:
    """The group that begins at `start` and where it ends; None when none does, or it is not well-formed."""
    if prompt[start] not in '("':
        return None
    stack: list[_Open] = []
    position = start
    while position < len(prompt) and len(stack) <= MAX_NESTING:
        character = prompt[position]
        if stack and character == stack[-1].ends_with:
            suffix = _SUFFIX.match(prompt, position + 1)
            position = suffix.end() if suffix else position + 1
            factor = _factor(suffix[0]) if suffix else 1.0
            inside = [(text, weight * factor) for text, weight in stack.pop().pieces]
            if not stack:
                return inside, position
            stack[-1].pieces += inside
        elif character in '("':
            stack.append(_Open(")" if character == "(" else '"', []))
            position += 1
        elif emphasised := _emphasised(prompt, position):
            piece, position = emphasised
            stack[-1].pieces.append(piece)
        elif word := _INSIDE.match(prompt, position):
            stack[-1].pieces.append((word[0], 1.0))
            position = word.end()
        else:
            return None
        position = _SPACE.match(prompt, position).end() if stack else position  # type: ignore[union-attr]
    return None


def _emphasised(prompt: str, start: int) -> tuple[_Piece, int] | None:
    """The word with signs behind it that begins at `start`, and where it ends."""
    # In two steps: one expression would go back and find `red-` in `red-haired`.
    word = _WORD.match(prompt, start)
    signs = _SIGNS.match(prompt, word.end()) if word else None
    return ((word[0], _factor(signs[0])), signs.end()) if word and signs else None


def _factor(suffix: str) -> float:
    if suffix[0] == "+":
        return float(PLUS_FACTOR ** min(len(suffix), 1000))
    if suffix[0] == "-":
        return float(MINUS_FACTOR ** len(suffix))
    return float(suffix)


def _joined(pieces: list[_Piece]) -> list[Segment]:
    """Neighbours of equal weight joined by spaces, escapes resolved."""
    runs: list[tuple[list[str], float]] = []
    for text, weight in pieces:
        plain = re.sub(r'\\([()"])', r"\1", text)
        check_weight(plain, weight)
        if runs and runs[-1][1] == weight:
            runs[-1][0].append(plain)
        else:
            runs.append(([plain], weight))
    return [Segment(" ".join(texts), weight) for texts, weight in runs] or [Segment("")]
