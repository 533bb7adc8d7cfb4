"""What a prompt may hold. Everything in this package takes time linear in a prompt's length."""

from __future__ import annotations

from typing import Final

from sdengine.errors import ParameterError

MAX_PROMPT_CHARACTERS: Final = 100_000
"""Far above what a text encoder makes use of (75 tokens, about 350 characters, a chunk)."""

MAX_WEIGHT: Final = 1000.0
"""Larger weights (72 nested brackets) drown every other word and end in infinities."""

MAX_SIDES: Final = 100
"""Sides of one ``AND``: each is an evaluation of the denoiser at every step, and holds a context of its own."""

MAX_NESTING: Final = 100
"""Deepest nesting of the notations that are read again for every level."""


def check_prompt(prompt: str) -> None:
    """Raise ParameterError for a prompt that is no text or longer than the limit."""
    if not isinstance(prompt, str):
        raise ParameterError(f"a prompt must be text, not {type(prompt).__name__}")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ParameterError(
            f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed"
        )
