"""Name templates with whole-number expressions, such as ``input_blocks.{stride*i+j+1}.0.``.

Inside braces stands a sum or difference of products of numbers and variables; nothing else is
understood, so a table is data and cannot run code.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

_BRACES = re.compile(r"\{([^{}]+)\}")
_TERM = re.compile(r"([+-]?)([^+-]+)")

Variables = Mapping[str, Sequence[int]]
"""The values that each variable of a template takes; a constant has one value."""


def variable_names(template: str) -> set[str]:
    """The variables that a template mentions."""
    factors = (f for body in _BRACES.findall(template) for f in re.split(r"[-+*]", body))
    return {factor for factor in factors if not factor.isdecimal()}


def expand(template: str, values: Mapping[str, int]) -> str:
    """The template with every expression replaced by its value."""
    return _BRACES.sub(lambda match: str(_evaluate(match[1], values)), template)


def assignments(names: set[str], variables: Variables) -> Iterator[dict[str, int]]:
    """Every combination of values of the named variables."""
    ordered = sorted(names)
    for values in itertools.product(*(variables[name] for name in ordered)):
        yield dict(zip(ordered, values, strict=True))


def _evaluate(expression: str, values: Mapping[str, int]) -> int:
    total = 0
    for sign, term in _TERM.findall(expression):
        product = 1
        for factor in term.split("*"):
            product *= int(factor) if factor.isdecimal() else values[factor]
        total += -product if sign == "-" else product
    return total
