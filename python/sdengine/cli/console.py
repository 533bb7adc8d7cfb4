"""What the commands print: progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Report:
    """``report(done, total, what)`` moves a progress bar."""

    move: Callable[[int, int, str], None] | None
    """None where nothing is shown."""

    @property
    def visible(self) -> bool:
        """True on a terminal."""
        return self.move is not None

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show how far it is."""
        if self.move is not None:
            self.move(done, total, what)


@contextmanager
def progress(title: str, above: RenderableType | None = None) -> Iterator[Report]:
    """A progress bar on stderr for the time of the block; nothing where stderr is no terminal.

    Args:
        title: stands before the bar.
        above: what is drawn above it, anew at every report.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Report(None)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
        console=console,
    )
    task = bar.add_task(title, total=None, what="")
    shown = Group(above, bar) if above is not None else bar
    with Live(shown, console=console, transient=True) as live:

        def move(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, what=what)
            live.refresh()

        yield Report(move)


def printable(text: str) -> str:
    """`text` from a file, safe for a terminal: control characters but line breaks are escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def readable_bytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
