"""Prompts: notation in, token ids and weights out.

The order in which a program uses these: :func:`write_script` (which calls :func:`extract_loras`,
:func:`split_and` and :func:`schedule`), :func:`parse`, :func:`chunk`, :func:`equalize`, the text
encoder, :func:`apply_weights`.
"""

from sdengine.prompt.chunks import MAX_CHUNKS, Chunks, chunk, equalize
from sdengine.prompt.dialects import SYNTAXES, parse
from sdengine.prompt.emphasis import Segment, literal
from sdengine.prompt.learned import LearnedWords
from sdengine.prompt.limits import MAX_PROMPT_CHARACTERS, MAX_WEIGHT
from sdengine.prompt.scheduling import schedule
from sdengine.prompt.script import Part, Phase, Script, Text, with_prefix, write_script
from sdengine.prompt.tags import LoraTag, Subprompt, extract_loras, split_and
from sdengine.prompt.weighting import (
    RULES,
    apply_weights,
    blend,
    downweighted,
    interpolate_from_empty,
    multiply_and_restore_mean,
)

__all__ = [
    "MAX_CHUNKS",
    "MAX_PROMPT_CHARACTERS",
    "MAX_WEIGHT",
    "RULES",
    "SYNTAXES",
    "Chunks",
    "LearnedWords",
    "LoraTag",
    "Part",
    "Phase",
    "Script",
    "Segment",
    "Subprompt",
    "Text",
    "apply_weights",
    "blend",
    "chunk",
    "downweighted",
    "equalize",
    "extract_loras",
    "interpolate_from_empty",
    "literal",
    "multiply_and_restore_mean",
    "parse",
    "schedule",
    "split_and",
    "with_prefix",
    "write_script",
]
