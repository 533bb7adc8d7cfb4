"""How networks are run that may run out of memory: the interface between them and :mod:`sdengine.memory.keeping`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

Made = TypeVar("Made")


class Kept(Protocol):
    """Runs the networks of `components`, and runs them again in less memory where it ran out."""

    def __call__(self, work: Callable[[], Made], *components: str) -> Made:
        """What `work` makes."""


def plainly(work: Callable[[], Made], *components: str) -> Made:
    """Runs them once."""
    return work()
