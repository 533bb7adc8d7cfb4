"""What the prompts of a batch say at every step: schedules, ``AND`` and LoRA tags taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sdengine.errors import ParameterError
from sdengine.prompt.limits import MAX_SIDES
from sdengine.prompt.scheduling import schedule
from sdengine.prompt.tags import LoraTag, extract_loras, split_and

Text = tuple[str, ...]
"""One text per text encoder. An empty tuple is no text at all (zeros)."""


def with_prefix(text: Text, prefix: str) -> Text:
    """What every encoder reads, behind a prefix."""
    return tuple(prefix + entry for entry in text) if prefix else text


NOTATED = ("a1111",)
"""Weighting rules whose notation has schedules and ``AND``; for the others these are plain words."""


@dataclass(frozen=True)
class Part:
    """One side of an ``AND`` for every picture of the batch."""

    texts: tuple[Text, ...]
    weight: float = 1.0

    def prefixed(self, prefix: str) -> Part:
        """The same with a text before every prompt."""
        return replace(self, texts=tuple(with_prefix(text, prefix) for text in self.texts))


@dataclass(frozen=True)
class Phase:
    """Steps with the same texts."""

    until_step: int
    """The last of them, counted from 1."""
    parts: tuple[Part, ...]
    negatives: tuple[Text, ...]
    """One per picture."""


@dataclass(frozen=True)
class Script:
    """The prompts of a whole run."""

    phases: tuple[Phase, ...]
    loras: tuple[LoraTag, ...]

    @property
    def composes(self) -> bool:
        """True if prompts are weighed against the negative one, whatever the scale of guidance."""
        weights = [[part.weight for part in phase.parts] for phase in self.phases]
        return any(found != [1.0] for found in weights)

    def prefixed(self, prefix: str) -> Script:
        """The same with a text before every prompt; the negative ones stay as they are."""
        phases = tuple(
            replace(phase, parts=tuple(part.prefixed(prefix) for part in phase.parts))
            for phase in self.phases
        )
        return replace(self, phases=phases)

    def texts(self, negatives: bool = True) -> list[Text]:
        """Every text that has to be encoded, once; with or without the negative ones."""
        found = {
            text: None
            for phase in self.phases
            for texts in (phase.negatives if negatives else (), *(p.texts for p in phase.parts))
            for text in texts
        }
        return [text for text in found if text]


def write_script(
    prompts: Sequence[Text], negatives: Sequence[Text], steps: int, weighting: str
) -> Script:
    """Take the notation of prompts apart.

    Args:
        prompts: one per picture, each with a text for every text encoder.
        negatives: as many; an empty tuple for a picture without one.
        steps: sampling steps of the run.
        weighting: a rule of :data:`sdengine.prompt.RULES`; with ``"diffusers"`` nothing is notation.

    Raises:
        ParameterError: the notation is wrong, or the pictures' ``AND`` do not match each other.
    """
    if weighting not in NOTATED:
        loras: list[LoraTag] = []
        if weighting != "diffusers":
            loras = _loras(prompts)
            prompts = [tuple(extract_loras(text)[0] for text in prompt) for prompt in prompts]
        phase = Phase(steps, (Part(tuple(prompts)),), tuple(negatives))
        return Script((phase,), tuple(loras))
    plain = [tuple(extract_loras(text)[0] for text in prompt) for prompt in prompts]
    sides = _sides(plain)
    timed_sides = [[_timed(text, steps) for text in texts] for texts, _ in sides]
    timed_negatives = [_timed(text, steps) for text in negatives]
    every = [timed for texts in (*timed_sides, timed_negatives) for timed in texts]
    phases = []
    for step in sorted({until for timed in every for until, _ in timed}):
        parts = (
            Part(tuple(_at(timed, step) for timed in texts), weight)
            for texts, (_, weight) in zip(timed_sides, sides, strict=True)
        )
        phases.append(Phase(step, tuple(parts), tuple(_at(t, step) for t in timed_negatives)))
    return Script(tuple(phases), tuple(_loras(prompts)))


Timed = list[tuple[int, Text]]
"""``(last step, text)`` in order."""


def _loras(prompts: Sequence[Text]) -> list[LoraTag]:
    """The tags of all prompts, each once; what stands in several prompts is one adapter."""
    tags = (tag for prompt in prompts for text in prompt for tag in extract_loras(text)[1])
    return list(dict.fromkeys(tags))


def _sides(prompts: Sequence[Text]) -> list[tuple[list[Text], float]]:
    """The sides of the prompts' ``AND``: for each the pictures' texts, and the weight."""
    split = [[split_and(text) for text in prompt] for prompt in prompts]
    count = max(len(sides) for prompt in split for sides in prompt)
    if count > MAX_SIDES:
        raise ParameterError(f"a prompt has {count} sides of AND; at most {MAX_SIDES} are allowed")
    result = []
    for i in range(count):
        texts, weights = [], set()
        for prompt in split:
            chosen = [sides[min(i, len(sides) - 1)] for sides in prompt]
            if any(len(sides) not in (1, count) for sides in prompt) or len(prompt[0]) != count:
                raise ParameterError(
                    "the prompts of one batch must have the same number of sides of AND; found"
                    f" {sorted({len(sides) for p in split for sides in p})}. Make the pictures one by one"
                )
            texts.append(tuple(side.text for side in chosen))
            weights.add(chosen[0].weight)
        if len(weights) != 1:
            raise ParameterError(
                f"the sides of AND have different weights in the prompts of one batch: {sorted(weights)}."
                " Make the pictures one by one"
            )
        result.append((texts, weights.pop()))
    return result


def _timed(text: Text, steps: int) -> Timed:
    columns = [schedule(entry, steps) for entry in text]
    if not columns:
        return [(steps, ())]
    ends = sorted({until for column in columns for until, _ in column})
    return [(end, tuple(_entry(column, end) for column in columns)) for end in ends]


def _entry(column: list[tuple[int, str]], step: int) -> str:
    return next(text for until, text in column if step <= until)


def _at(timed: Timed, step: int) -> Text:
    return next(text for until, text in timed if step <= until)
