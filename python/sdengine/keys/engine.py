"""Key tables, and the one engine that reads them in both directions.

A :class:`KeyTable` says how the parameters of one network are named in one dialect: rows of
:class:`Rule` (canonical template, file template), and patterns of names to ignore. :class:`NameMap`
fills in a table's variables for one file or one network and then translates names either way. Order
does not matter: the longest match wins.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from sdengine.keys.templates import Variables, assignments, expand, variable_names


@dataclass(frozen=True)
class Rule:
    """One row: how a canonical name, or every name below a prefix, is spelled in a file.

    Templates that end in a dot (or are empty) are prefixes, and what follows is kept; others are
    whole names. In a fused tensor a canonical parameter is one of several blocks of rows.
    """

    canonical: str
    file: str
    part: tuple[int, int | None] | None = None
    """(index, count): this parameter is row block `index` of the `count` that the file's tensor
    holds. Where the blocks are of unequal height `count` is None, and `index` counts in blocks of
    the parameter's own height, from the end if it is negative.
    """
    transpose: bool = False
    """The file holds the transpose of the matrix."""
    kernel: bool = False
    """The file holds the matrix as a 1x1 kernel. Matters when writing; reading takes both."""

    frame: int | None = None
    """A kernel of the file may reach over time; the parameter is this slice of it, counted from the
    end if negative. In a causal network the last one is what is left of it for a single picture."""

    @property
    def is_prefix(self) -> bool:
        """True if the rule renames a prefix and keeps what follows."""
        return self.canonical.endswith(".") or not self.canonical


def rules_below(canonical: str, file: str, names: Iterable[tuple[str, str]]) -> tuple[Rule, ...]:
    """Rules for (canonical, file) names below a pair of prefixes."""
    return tuple(Rule(canonical + ours, file + theirs) for ours, theirs in names)


@dataclass(frozen=True)
class KeyTable:
    """The names of one network's parameters in one dialect."""

    name: str
    rules: tuple[Rule, ...]
    markers: tuple[str, ...]
    """Names that every file in this dialect holds, and no other dialect has all of."""
    variables: Callable[[Collection[str]], Variables] = field(default=lambda names: {})
    """From the names in a file (prefix stripped) to the values of the templates' variables."""
    variables_of: Callable[[Mapping[str, Any]], Variables] = field(default=lambda config: {})
    """From a network's hyper-parameters to the values of the templates' variables."""
    implies: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters that follow from the dialect: how its converter stores what no shape tells."""
    ignored: tuple[str, ...] = ()
    """Patterns (``fnmatch``) of names without a meaning for inference."""

    def ignores(self, name: str) -> bool:
        """True if `name` is there but not needed."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignored)


@dataclass(frozen=True, slots=True)
class MappedName:
    """The other side of a name, and how the tensor is taken from (or put into) the file's."""

    name: str
    part: tuple[int, int | None] | None = None
    transpose: bool = False
    kernel: bool = False
    frame: int | None = None


class NameMap:
    """A key table with its variables filled in: names translated in both directions."""

    def __init__(self, table: KeyTable, variables: Variables) -> None:
        self.table = table
        self._to_file: dict[str, list[tuple[str, Rule]]] = {}
        self._to_canonical: dict[str, list[tuple[str, Rule]]] = {}
        for rule in table.rules:
            names = variable_names(rule.canonical) | variable_names(rule.file)
            for values in assignments(names, variables):
                ours, theirs = expand(rule.canonical, values), expand(rule.file, values)
                self._to_file.setdefault(ours, []).append((theirs, rule))
                self._to_canonical.setdefault(theirs, []).append((ours, rule))

    @classmethod
    def of_file(cls, table: KeyTable, names: Collection[str]) -> NameMap:
        """The map for a file that holds `names` (prefix stripped)."""
        return cls(table, table.variables(names))

    @classmethod
    def of_network(cls, table: KeyTable, config: Mapping[str, Any]) -> NameMap:
        """The map for a network of these hyper-parameters."""
        return cls(table, table.variables_of(config))

    def to_file(self, canonical: str) -> list[MappedName]:
        """The spellings of a canonical name in this dialect; empty if there is none."""
        return _translate(canonical, self._to_file)

    def to_canonical(self, name: str) -> list[MappedName]:
        """The canonical parameters in a file's tensor: one, several if fused, or none."""
        return _translate(name, self._to_canonical)


def _translate(name: str, rules: dict[str, list[tuple[str, Rule]]]) -> list[MappedName]:
    for key, rest in _splits(name):
        found = [
            MappedName(other + rest, rule.part, rule.transpose, rule.kernel, rule.frame)
            for other, rule in rules.get(key, ())
            if rule.is_prefix or not rest
        ]
        if found:
            return found
    return []


def _splits(name: str) -> Iterable[tuple[str, str]]:
    """(key, rest) from the whole name down to the empty prefix; a shorter key ends in a dot."""
    yield name, ""
    end = len(name)
    while (end := name.rfind(".", 0, end)) >= 0:
        yield name[: end + 1], name[end + 1 :]
    yield "", name


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """The candidates most like `name`, best first: what a missing parameter may be called here."""
    return difflib.get_close_matches(name, list(candidates), n=count, cutoff=0.6)


def numbers_at(names: Iterable[str], prefix: str) -> list[int]:
    """The whole numbers that follow `prefix` in any of the names, ascending."""
    heads = (n[len(prefix) :].split(".", 1)[0] for n in names if n.startswith(prefix))
    return sorted({int(head) for head in heads if head.isascii() and head.isdecimal()})


def count_at(names: Iterable[str], prefix: str) -> int:
    """How many of 0, 1, 2, ... follow `prefix` in the names before one is missing."""
    numbers = numbers_at(names, prefix)
    return next((i for i, number in enumerate(numbers) if i != number), len(numbers))
