"""Where a file keeps a component, and what its tensors are called there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from sdengine.errors import ParameterError, WeightsError
from sdengine.families import Component
from sdengine.formats import TensorEntry, TensorIndex
from sdengine.keys import KeyTable, MappedName, NameMap

_KERNEL_OVER_TIME, _TIME = 5, 2  # axes: out, in, frames, height, width


@dataclass(frozen=True)
class Source:
    """The tensor of a file that holds a parameter, and how the parameter is taken from it."""

    name: str
    """In the file, prefix stripped."""
    entry: TensorEntry
    part: tuple[int, int | None] | None
    transpose: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape as far as the file tells; axes of size 1 may be more or fewer.

        For one of several unequal blocks of rows it is the shape of all of them together.
        """
        shape = self.entry.shape
        if self.part is not None and self.part[1] is not None and shape:
            shape = (shape[0] // self.part[1], *shape[1:])
        return shape[::-1] if self.transpose else shape


@dataclass(frozen=True)
class Located:
    """A component found in a file."""

    component: Component
    index: TensorIndex
    prefix: str
    table: KeyTable

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The tensors below the prefix by their name without it, ignored ones left out."""
        names = (n for n in self.index.tensors if n.startswith(self.prefix))
        stripped = {n[len(self.prefix) :]: self.index.tensors[n] for n in names}
        return {n: entry for n, entry in stripped.items() if not self._ignores(n)}

    def _ignores(self, name: str) -> bool:
        return self.table.ignores(name) or any(fnmatchcase(name, p) for p in self.component.ignored)

    @cached_property
    def names(self) -> NameMap:
        """The translation between the file's names and canonical ones."""
        return NameMap.of_file(self.table, self.entries.keys())

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        """Canonical name -> where the file has it. Raises WeightsError if it has it twice."""
        found: dict[str, Source] = {}
        for name, mapped in self._translated():
            if mapped.name in found:
                raise WeightsError(
                    f"{self.index.path}: {found[mapped.name].name!r} and {name!r} are both"
                    f" {mapped.name!r}; expected one of them. The file was merged wrongly"
                )
            entry = self.entries[name] if mapped.frame is None else self._frame(name, mapped.frame)
            found[mapped.name] = Source(name, entry, mapped.part, mapped.transpose)
        return found

    def _frame(self, name: str, frame: int) -> TensorEntry:
        """A slice over time of a kernel that has them."""
        entry = self.entries[name]
        if len(entry.shape) != _KERNEL_OVER_TIME:
            return entry
        try:
            return entry.slice(_TIME, frame)
        except ParameterError as error:
            raise WeightsError(f"{self.index.path}: {error}") from None

    def _translated(self) -> Iterator[tuple[str, MappedName]]:
        for name in self.entries:
            for mapped in self.names.to_canonical(name):
                yield name, mapped


def locate(index: TensorIndex, component: Component) -> Located | None:
    """Where `index` keeps the component, or an alternative to it; None if it has none of them."""
    for choice in (component, *component.alternatives):
        for prefix in choice.prefixes:
            for table in choice.tables:
                if all(prefix + marker in index.tensors for marker in table.markers):
                    return Located(choice, index, prefix, table)
    return None
