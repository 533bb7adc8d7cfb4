r"""Prompts that change while the picture is made.

The notation is A1111's (wiki page "Features", sections "Prompt editing" and "Alternating words"):
``[from:to:when]`` switches after `when`, ``[to:when]`` adds, ``[from::when]`` removes; `when` is a
fraction of all steps if it has a decimal point, else a step. ``[a|b|c]`` takes the next entry at
each step. Both nest. Everything else, emphasis and escapes included, is passed on as it stands.

A bracket that fits neither form stays text, and so do the brackets that enclose it. A1111 gives up
on the whole prompt at a ``|`` outside square brackets; here it is text, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sdengine.errors import ParameterError
from sdengine.prompt.limits import check_prompt

_PIECES: Final = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|]|\\", re.DOTALL)
_WHEN: Final = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class _Switch:
    """``[before:after:when]``."""

    before: Sequence[_Node]
    after: Sequence[_Node]
    last_step: int

    def at(self, step: int) -> Sequence[_Node]:
        return self.before if step <= self.last_step else self.after


@dataclass(frozen=True, slots=True)
class _Alternation:
    """``[a|b]``."""

    entries: Sequence[Sequence[_Node]]

    def at(self, step: int) -> Sequence[_Node]:
        return self.entries[(step - 1) % len(self.entries)]


_Node = str | _Switch | _Alternation


@dataclass(slots=True)
class _Open:
    """A bracket whose end has not been seen: where it and its separators are in the output."""

    bracket: str
    start: int
    separators: list[int] = field(default_factory=list)

    def separators_are(self, output: list[_Node], *choices: str) -> bool:
        """True when the separators, in order, are one of `choices`."""
        found = [output[position] for position in self.separators]
        return any(found == list(choice) for choice in choices)


def schedule(prompt: str, steps: int) -> list[tuple[int, str]]:
    """The prompt of every step.

    Args:
        prompt: with ``[a:b:0.5]`` and ``[a|b]``.
        steps: number of sampling steps, 1 or more.

    Returns:
        ``(until_step, prompt)`` in order: the prompt holds up to and including that step, counted
        from 1. The last entry's step is `steps`; neighbours differ.

    Raises:
        ParameterError: the prompt is too long, or `steps` is less than 1.
    """
    check_prompt(prompt)
    if steps < 1:
        raise ParameterError(f"steps must be 1 or more, not {steps}")
    nodes, changes = _parse(prompt, steps)
    result: list[tuple[int, str]] = []
    for step in sorted({*changes, steps}):
        text = _render(nodes, step)
        if result and result[-1][1] == text:
            result.pop()
        result.append((step, text))
    return result


def _parse(prompt: str, steps: int) -> tuple[list[_Node], set[int]]:
    """The prompt as a tree, and the steps after which something may change.

    One flat list grows; closing a switch or alternation folds the list's end into one node. So
    there is no recursion, and the work is linear.
    """
    output: list[_Node] = []
    opened: list[_Open] = []
    changes: set[int] = set()
    for match in _PIECES.finditer(prompt):
        piece = match[0]
        if piece in "([":
            opened.append(_Open(piece, len(output)))
        elif piece in ":|" and opened:
            opened[-1].separators.append(len(output))
        elif piece in ")]":
            node = _close(piece, opened, output, steps)
            if isinstance(node, _Switch):
                changes.add(node.last_step)
            elif isinstance(node, _Alternation):
                changes.update(range(1, steps))
            if node is not None:
                output.append(node)
                continue
        output.append(piece)
    return output, {step for step in changes if 1 <= step <= steps}


def _close(piece: str, opened: list[_Open], output: list[_Node], steps: int) -> _Node | None:
    """End the innermost bracket.

    Returns the node that stands for it, and cuts the bracket off `output`; None when it stays text.
    """
    frame = opened.pop() if opened else None
    if frame is None or frame.bracket + piece not in ("()", "[]"):
        opened.clear()
        return None
    if not frame.separators or (frame.bracket == "(" and frame.separators_are(output, ":")):
        return None  # emphasis
    node = _node(frame, output, steps) if frame.bracket == "[" else None
    if node is None:
        opened.clear()
    else:
        del output[frame.start :]
    return node


def _node(frame: _Open, output: list[_Node], steps: int) -> _Node | None:
    """What a square bracket with separators means; None when it means nothing."""
    starts = [frame.start + 1, *(position + 1 for position in frame.separators)]
    ends = [*frame.separators, len(output)]
    parts = [output[start:end] for start, end in zip(starts, ends, strict=True)]
    if frame.separators_are(output, "|" * len(frame.separators)):
        return _Alternation(parts)
    if not frame.separators_are(output, ":", "::") or len(parts[-1]) != 1:
        return None
    number = parts[-1][0]
    when = _WHEN.fullmatch(number) if isinstance(number, str) else None
    if when is None:
        return None
    before = parts[0] if len(parts) == 3 else []
    return _Switch(before, parts[-2], _last_step(when[1], steps))


def _last_step(when: str, steps: int) -> int:
    """The step after which a switch happens, 0 (from the start) to `steps`."""
    value = float(when) * steps if "." in when else float(when)
    return int(min(max(value, 0.0), steps))


def _render(nodes: list[_Node], step: int) -> str:
    """The text of the tree at a step. Brackets may nest thousands deep, hence no recursion."""
    texts: list[str] = []
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            texts.append(node)
        else:
            waiting.extend(reversed(node.at(step)))
    return "".join(texts)
