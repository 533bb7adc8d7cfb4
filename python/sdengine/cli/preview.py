"""The picture as it emerges: drawn in the terminal, written as one file per step, or as an animation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sdengine.cli.console import progress
from sdengine.errors import OutputError, ParameterError

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console, ConsoleOptions, RenderResult

    from sdengine import StepEvent

Command = TypeVar("Command", bound=Callable[..., Any])

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


@dataclass(frozen=True)
class Looks:
    """What is shown of a run while it runs."""

    preview: bool = False
    """Draw it in the terminal."""
    preview_dir: Path | None = None
    """For a file per step."""
    preview_every: int = 1
    preview_method: str | None = None
    preview_noisy: bool = False
    animate: Path | None = None
    """An animation of the steps, and of the result."""


_OPTIONS = (
    click.option(
        "--preview", is_flag=True, help="Draw the picture in the terminal while it emerges."
    ),
    click.option(
        "--preview-dir",
        "--preview-path",
        type=click.Path(file_okay=False, path_type=Path),
        help="Write a picture per step there.",
    ),
    click.option(
        "--preview-every",
        "--preview-interval",
        type=click.IntRange(1, 1000),
        metavar="N",
        default=1,
        show_default=True,
        help="Look at each so many steps, and at the last.",
    ),
    click.option(
        "--preview-method",
        metavar="linear|tiny|full",
        help="One colour per latent, the autoencoder of --taesd, or the model's own [default: tiny with --taesd]",
    ),
    click.option("--preview-noisy", is_flag=True, help="The noisy state instead of the estimate."),
    click.option(
        "--animate",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write the previews as one moving picture: .gif, .webp, .png.",
    ),
)


def preview_options(command: Command) -> Command:
    """Add the options of :class:`Looks`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def taken_looks(options: dict[str, Any]) -> Looks:
    """Take the options of :class:`Looks` out of `options`.

    Raises:
        ParameterError: there is no such method, or no such kind of animation.
        OutputError: the animation cannot be written.
    """
    from sdengine.grids import check_animation
    from sdengine.previews import check_method

    looks = Looks(**{name: options.pop(name) for name in Looks.__dataclass_fields__})
    if looks.preview_method is not None:
        check_method(looks.preview_method)
    if looks.animate is not None:
        check_animation(looks.animate)
    return looks


class Previews:
    """What is done with the preview of each step; after one complaint there are none."""

    def __init__(self, looks: Looks, show: Callable[[Image.Image], None] | None) -> None:
        self._looks, self._show, self._steps = looks, show, 0
        self._wanted = bool(show or looks.preview_dir or looks.animate)
        self._frames: list[Image.Image] = []

    def __call__(self, event: StepEvent) -> None:
        """Draw and write the pictures of a step."""
        from sdengine.previews import is_due

        self._steps += 1  # a refiner counts its own from 1 again
        if not self._wanted or not is_due(event.step, event.steps, self._looks.preview_every):
            return
        try:
            pictures = event.preview(self._looks.preview_method, noisy=self._looks.preview_noisy)
        except ParameterError as error:
            click.echo(f"no preview: {error}", err=True)
            self._wanted = False
            return
        if self._show is not None:
            self._show(pictures[0])
        if self._looks.preview_dir is not None:
            self._write(self._looks.preview_dir, pictures)
        if self._looks.animate is not None:
            self._frames.append(_together(pictures))

    def _write(self, folder: Path, pictures: Sequence[Image.Image]) -> None:
        from sdengine.images import save

        first = folder / f"step-{self._steps:03}.png"
        for picture, path in zip(pictures, numbered(first, len(pictures)), strict=True):
            save(picture, path)

    def finish(self, images: Sequence[Image.Image]) -> None:
        """Write the animation, with the result as its last frame."""
        from sdengine.grids import animation

        if self._looks.animate is not None:
            animation([*self._frames, _together(images)], self._looks.animate)
            click.echo(str(self._looks.animate))


def _together(pictures: Sequence[Image.Image]) -> Image.Image:
    """A batch as one picture."""
    from sdengine.grids import grid

    return pictures[0] if len(pictures) == 1 else grid(pictures)


def numbered(path: Path, count: int) -> list[Path]:
    """Names for a batch: the path itself, then ``name-2.png``, ``name-3.png``, ..."""
    return [path, *(path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, count + 1))]


@contextmanager
def watching(looks: Looks) -> Iterator[tuple[Callable[[StepEvent], None], Previews]]:
    """A callback for the steps of a run, which moves a progress bar, and the previews that are asked for.

    Nothing is drawn where stderr is no terminal. The folder for pictures is made where it is missing.

    Raises:
        OutputError: the folder cannot be made.
    """
    if looks.preview_dir is not None:
        try:
            looks.preview_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{looks.preview_dir} could not be made: {error.strerror}") from error
    picture = HalfBlocks()

    def show(image: Image.Image) -> None:
        picture.image = image

    with progress("generating", picture if looks.preview else None) as report:
        previews = Previews(looks, show if looks.preview and report.visible else None)

        def callback(event: StepEvent) -> None:
            previews(event)
            report(event.step, event.steps, f"sigma {event.sigma:.3g}")

        yield callback, previews
