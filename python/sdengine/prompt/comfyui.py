r"""ComfyUI's emphasis, as ``token_weights`` in its ``comfy/sd1_clip.py`` describes it.

``(x)`` weighs 1.1 times what is around it; ``(x:1.5)`` weighs 1.5, whatever is around it; groups nest. ``\(`` and
``\)`` are the characters. Square brackets, ``BREAK`` and other backslashes are text. A bracket without its partner is
text; one that closes too early makes text of the brackets that follow at its level.
"""

from __future__ import annotations

import re
from typing import Final

from sdengine.errors import ParameterError
from sdengine.prompt.emphasis import ROUND_FACTOR, Segment, check_weight
from sdengine.prompt.limits import MAX_NESTING, check_prompt

_OPEN: Final = "\0\2"
_CLOSE: Final = "\0\1"
_BRACKET: Final = re.compile(r"[()]")


def parse(prompt: str) -> list[Segment]:
    """Split a prompt into segments (at least one); each is tokenized by itself, so equal neighbours stay apart.

    Raises:
        ParameterError: the prompt is too long or nested too deep, or a weight is beyond ±1000.
    """
    check_prompt(prompt)
    escaped = prompt.replace("\\)", _CLOSE).replace("\\(", _OPEN)
    segments = []
    waiting: list[tuple[str, float, int | None]] = [
        (escaped, 1.0, 0)
    ]  # depth of a group's content, None for text
    while waiting:
        text, weight, depth = waiting.pop()
        if depth is None:
            segments.append(_segment(text, weight))
            continue
        if depth > MAX_NESTING:
            raise ParameterError(
                f"brackets are nested deeper than {MAX_NESTING}; use a number: (text:1.5)"
            )
        for part in reversed(_parts(text)):
            if len(part) >= 2 and part[0] == "(" and part[-1] == ")":
                waiting.append((*_group(part[1:-1], weight), depth + 1))
            else:
                waiting.append((part, weight, None))
    return [segment for segment in segments if segment.text] or [Segment("")]


def _parts(text: str) -> list[str]:
    """A text cut around its outermost groups."""
    parts = []
    start = level = 0
    for match in _BRACKET.finditer(text):
        if match[0] == "(":
            if level == 0:
                parts.append(text[start : match.start()])
                start = match.start()
            level += 1
        else:
            level -= 1
            if level == 0:
                parts.append(text[start : match.end()])
                start = match.end()
    return [part for part in [*parts, text[start:]] if part]


def _group(content: str, outer: float) -> tuple[str, float]:
    """What is inside a group, and its weight."""
    text, colon, number = content.rpartition(":")
    if colon and text:
        try:
            return text, float(number)
        except ValueError:
            pass
    return content, outer * ROUND_FACTOR


def _segment(text: str, weight: float) -> Segment:
    plain = text.replace(_CLOSE, ")").replace(_OPEN, "(")
    check_weight(plain, weight)
    return Segment(plain, weight)
