"""What stands in a prompt beside the text itself: LoRA tags and ``AND``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from sdengine.errors import ParameterError
from sdengine.prompt.limits import MAX_WEIGHT, check_prompt

_LORA: Final = re.compile(r"<(?:lora|lyco):([^<>]+)>")
_AND: Final = re.compile(r"\bAND\b")
_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")


@dataclass(frozen=True, slots=True)
class LoraTag:
    """``<lora:name:weight>`` in a prompt.

    Attributes:
        name: file name without folder and suffix.
        weight: strength in the denoiser.
        text_encoder_weight: strength in the text encoders.
    """

    name: str
    weight: float = 1.0
    text_encoder_weight: float = 1.0


class Subprompt(NamedTuple):
    """One side of an ``AND``, and how strongly it pulls."""

    text: str
    weight: float


def extract_loras(prompt: str) -> tuple[str, list[LoraTag]]:
    """Take the LoRA tags out of a prompt.

    ``<lora:name>``, ``<lora:name:0.8>``, ``<lora:name:0.5:0.8>`` (text encoder, denoiser),
    ``<lora:name:te=0.5:unet=0.8>``; ``lyco`` may stand for ``lora``, as in A1111.

    Returns:
        The prompt without the tags, and the tags in order.

    Raises:
        ParameterError: a tag has no name, or a weight that is no number or beyond ±1000.
    """
    check_prompt(prompt)
    tags = [_lora(match[0], match[1]) for match in _LORA.finditer(prompt)]
    return _LORA.sub("", prompt), tags


def split_and(prompt: str) -> list[Subprompt]:
    """Split a composed prompt: ``a cat AND a dog :1.2``.

    From Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion Models". A
    number behind the last colon of a side is its weight (1.0 without). A prompt without ``AND`` is
    returned whole, so that ``at 12:30`` stays text.

    Raises:
        ParameterError: a weight is beyond ±1000.
    """
    check_prompt(prompt)
    sides = _AND.split(prompt)
    if len(sides) == 1:
        return [Subprompt(prompt, 1.0)]
    return [_subprompt(side.strip()) for side in sides]


def _subprompt(side: str) -> Subprompt:
    text, colon, number = side.rpartition(":")
    if colon and _NUMBER.fullmatch(number.strip()):
        return Subprompt(text.rstrip(), _weight(side, number))
    return Subprompt(side, 1.0)


def _lora(tag: str, content: str) -> LoraTag:
    name, *parts = (part.strip() for part in content.split(":"))
    if not name:
        raise ParameterError(f"{tag!r} names no LoRA; write <lora:name:weight>")
    named = {key.strip(): value for key, _, value in (p.partition("=") for p in parts if "=" in p)}
    weights = [_weight(tag, part) for part in parts if "=" not in part]
    if len(weights) > 2 or not named.keys() <= {"te", "unet"}:
        raise ParameterError(
            f"{tag!r} is not understood; write <lora:name:weight> or <lora:name:te=0.5:unet=0.8>"
        )
    text_encoder = weights[0] if weights else 1.0
    if "te" in named:
        text_encoder = _weight(tag, named["te"])
    denoiser = weights[1] if len(weights) == 2 else text_encoder
    if "unet" in named:
        denoiser = _weight(tag, named["unet"])
    return LoraTag(name, denoiser, text_encoder)


def _weight(where: str, text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
    if not abs(value) <= MAX_WEIGHT:
        raise ParameterError(
            f"{where[:60]!r}: found the weight {text[:20]!r}; expected a number like 0.8, from "
            f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
        )
    return value
