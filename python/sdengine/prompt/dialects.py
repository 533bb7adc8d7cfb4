"""One function for the notations of several programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sdengine.errors import ParameterError
from sdengine.prompt import comfyui, compel, emphasis
from sdengine.prompt.emphasis import Segment

SYNTAXES: Final[dict[str, Callable[[str], list[Segment]]]] = {
    "a1111": emphasis.parse,
    "comfyui": comfyui.parse,
    "compel": compel.parse,
}


def parse(prompt: str, syntax: str = "a1111") -> list[Segment]:
    """Split a prompt into segments of equal weight (at least one).

    Args:
        prompt: as the user wrote it.
        syntax: whose notation it is in: ``"a1111"``, ``"comfyui"`` or ``"compel"``. See docs/prompts.md.

    Raises:
        ParameterError: the syntax is unknown, the prompt is too long or nested too deep, or a weight is beyond ±1000.
    """
    if not isinstance(syntax, str) or syntax not in SYNTAXES:
        raise ParameterError(f"prompt syntax must be {', '.join(SYNTAXES)}, not {syntax!r}")
    return SYNTAXES[syntax](prompt)
