r"""Emphasis: which words of a prompt weigh more or less.

The notation is that of the AUTOMATIC1111 web UI (wiki page "Features", "Attention/emphasis"):
``(x)`` weighs 1.1 times as much, ``[x]`` 1.1 times less, ``(x:1.5)`` 1.5 times; groups nest and
multiply; ``\(``, ``\)``, ``\[``, ``\]`` and ``\\`` are the characters themselves, any other
backslash vanishes; the word ``BREAK`` starts a new chunk. A bracket that is never closed reaches to
the end, one that was never opened is a plain character.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sdengine.errors import ParameterError
from sdengine.prompt.limits import MAX_WEIGHT, check_prompt

ROUND_FACTOR: Final = 1.1
SQUARE_FACTOR: Final = 1 / 1.1

_PIECES: Final = re.compile(
    r"""
    \\[()\[\]\\]                                            # an escaped character
    | \\                                                    # a backslash that escapes nothing
    | [(\[]                                                 # a group begins
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)         # a group ends with a weight
    | [)\]]                                                 # a group ends
    | [^\\()\[\]:]+                                         # text
    | :
    """,
    re.VERBOSE,
)
_BREAK: Final = re.compile(r"\bBREAK\b")


@dataclass(frozen=True, slots=True)
class Segment:
    """Text of one weight.

    Attributes:
        text: what the tokenizer gets, escapes resolved.
        weight: factor of its tokens; 1.0 is no emphasis.
        new_chunk: a ``BREAK`` stood before this text, so it starts a new chunk.
    """

    text: str
    weight: float = 1.0
    new_chunk: bool = False


@dataclass(frozen=True, slots=True)
class _Group:
    """A bracketed range of pieces, ``start <= index < end``."""

    start: int
    end: int
    factor: float


def parse(prompt: str) -> list[Segment]:
    """Split a prompt into segments of equal weight (at least one).

    Raises:
        ParameterError: the prompt is too long, or a weight is beyond ±1000.
    """
    check_prompt(prompt)
    pieces, round_groups, square_groups = _scan(prompt)
    weights = [
        a * b
        for a, b in zip(
            _factors(round_groups, len(pieces)), _factors(square_groups, len(pieces)), strict=True
        )
    ]
    for (text, _), weight in zip(pieces, weights, strict=True):
        check_weight(text, weight)
    return _merged(pieces, weights)


def check_weight(text: str, weight: float) -> None:
    """Raise ParameterError for a weight beyond the limit, or none."""
    if not abs(weight) <= MAX_WEIGHT:
        raise ParameterError(
            f"the emphasis of {text[:40]!r} is {weight:.3g}; expected -{MAX_WEIGHT:g} to "
            f"{MAX_WEIGHT:g}. Use fewer brackets or a smaller number"
        )


def literal(prompt: str) -> list[Segment]:
    """The prompt as one segment, every character taken as it stands."""
    check_prompt(prompt)
    return [Segment(prompt)]


def _scan(prompt: str) -> tuple[list[tuple[str, bool]], list[_Group], list[_Group]]:
    """Pieces ``(text, new_chunk)``, and the groups of round and of square brackets over them.

    The two kinds are matched independently of each other, as A1111 does: ``(a [b) c]`` is valid.
    """
    pieces: list[tuple[str, bool]] = []
    round_groups: list[_Group] = []
    square_groups: list[_Group] = []
    open_round: list[int] = []
    open_square: list[int] = []
    for match in _PIECES.finditer(prompt):
        text, weight = match[0], match["weight"]
        if text.startswith("\\"):
            pieces.append((text[1:], False))
        elif text == "(":
            open_round.append(len(pieces))
        elif text == "[":
            open_square.append(len(pieces))
        elif text.endswith(")") and open_round:
            factor = ROUND_FACTOR if weight is None else float(weight)
            round_groups.append(_Group(open_round.pop(), len(pieces), factor))
        elif text == "]" and open_square:
            square_groups.append(_Group(open_square.pop(), len(pieces), SQUARE_FACTOR))
        else:
            pieces.extend(_split_at_breaks(text))
    end = len(pieces)
    round_groups += [_Group(start, end, ROUND_FACTOR) for start in open_round]
    square_groups += [_Group(start, end, SQUARE_FACTOR) for start in open_square]
    return pieces, round_groups, square_groups


def _split_at_breaks(text: str) -> list[tuple[str, bool]]:
    """Cut at the word BREAK; white space around it goes with it."""
    first, *rest = _BREAK.split(text)
    if not rest:
        return [(first, False)]
    middle = [(part.strip(), True) for part in rest[:-1]]
    return [(first.rstrip(), False), *middle, (rest[-1].lstrip(), True)]


def _factors(groups: list[_Group], count: int) -> list[float]:
    """The product of the properly nested groups around each of `count` pieces."""
    waiting = sorted(
        (group for group in groups if group.start < group.end),
        key=lambda group: (-group.start, group.end),
    )
    around: list[tuple[int, float]] = []  # (end, product from the outermost group to this one)
    factors = []
    for index in range(count):
        while around and around[-1][0] <= index:
            around.pop()
        while waiting and waiting[-1].start == index:
            group = waiting.pop()
            outer = around[-1][1] if around else 1.0
            around.append((group.end, outer * group.factor))
        factors.append(around[-1][1] if around else 1.0)
    return factors


def _merged(pieces: list[tuple[str, bool]], weights: list[float]) -> list[Segment]:
    """Join neighbours of equal weight, drop what is empty."""
    runs: list[tuple[list[str], float, bool]] = []
    for (text, new_chunk), weight in zip(pieces, weights, strict=True):
        if runs and not new_chunk and runs[-1][1] == weight:
            runs[-1][0].append(text)
        else:
            runs.append(([text], weight, new_chunk))
    segments = [Segment("".join(texts), weight, new_chunk) for texts, weight, new_chunk in runs]
    return [s for s in segments if s.text or s.new_chunk] or [Segment("")]
