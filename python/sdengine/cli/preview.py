"""The picture as it emerges: drawn in the terminal, or written as one file per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdengine.cli.console import progress
from sdengine.errors import OutputError, ParameterError

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console, ConsoleOptions, RenderResult

    from sdengine import StepEvent

COLUMNS = 64
"""At most, of the drawn picture."""


class HalfBlocks:
    """A picture in characters: each is two pixels, one above the other."""

    def __init__(self) -> None:
        self.image: Image.Image | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw what fits."""
        from rich.color import Color
        from rich.segment import Segment
        from rich.style import Style

        if self.image is None:
            return
        image = self._fitted(min(COLUMNS, options.max_width), max(4, 2 * (console.height - 3)))
        pixels: Any = image.load()
        for y in range(0, image.height - 1, 2):
            for x in range(image.width):
                above, below = (Color.from_rgb(*pixels[x, row]) for row in (y, y + 1))
                yield Segment("\N{UPPER HALF BLOCK}", Style(color=above, bgcolor=below))
            yield Segment.line()

    def _fitted(self, columns: int, rows: int) -> Image.Image:
        assert self.image is not None
        scale = min(columns / self.image.width, rows / self.image.height)
        width = max(1, int(self.image.width * scale))
        height = max(2, int(self.image.height * scale) // 2 * 2)
        return self.image.convert("RGB").resize((width, height))


class Previews:
    """What is done with the preview of each step; after one complaint there are none."""

    def __init__(self, show: Callable[[Image.Image], None] | None, folder: Path | None) -> None:
        self._show, self._folder, self._steps = show, folder, 0

    def __call__(self, event: StepEvent) -> None:
        """Draw and write the pictures of a step."""
        from sdengine.images import save

        if self._show is None and self._folder is None:
            return
        try:
            pictures = event.preview()
        except ParameterError as error:
            click.echo(f"no preview: {error}", err=True)
            self._show = self._folder = None
            return
        if self._show is not None:
            self._show(pictures[0])
        if self._folder is not None:
            self._steps += 1  # a refiner counts its own from 1 again
            first = self._folder / f"step-{self._steps:03}.png"
            for picture, path in zip(pictures, numbered(first, len(pictures)), strict=True):
                save(picture, path)


def numbered(path: Path, count: int) -> list[Path]:
    """Names for a batch: the path itself, then ``name-2.png``, ``name-3.png``, ..."""
    return [path, *(path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, count + 1))]


@contextmanager
def watching(draw: bool, folder: Path | None) -> Iterator[Callable[[StepEvent], None]]:
    """A callback for the steps of a run: progress bar, and previews where they are asked for.

    Args:
        draw: in the terminal; nothing is drawn where stderr is none.
        folder: for one file per step and picture; made where it is missing.

    Raises:
        OutputError: the folder cannot be made.
    """
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} could not be made: {error.strerror}") from error
    picture = HalfBlocks()

    def show(image: Image.Image) -> None:
        picture.image = image

    with progress("generating", picture if draw else None) as report:
        previews = Previews(show if draw and report.visible else None, folder)

        def callback(event: StepEvent) -> None:
            previews(event)
            report(event.step, event.steps, f"sigma {event.sigma:.3g}")

        yield callback
