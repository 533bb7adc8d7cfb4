"""Several pictures in one, and pictures that move: for looking at what a run, a batch or an option does."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from .checks import check_path, check_whole
from .errors import ParameterError
from .images import ImageLike, on_white, open_image
from .options import DEFAULTS
from .output import check_place, write_whole
from .previews import Frames

if TYPE_CHECKING:
    from .pipeline import Pipeline

Axis: TypeAlias = "tuple[str, Sequence[Any]]"
"""The name of an option, and the values that it takes."""

PROMPTS: Final = ("prompt", "negative_prompt", "prompt_sr")
"""Axes besides the options of a generation; ``prompt_sr`` puts each value in the place of the first in the prompt
(A1111's "Prompt S/R")."""

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_FONT_SIZES = (10, 28)
_PART_OF_CELL = 14  # height of a cell over that of its label's letters
_MOST_CELLS, _WIDEST_GAP = 1000, 1000
_LONGEST, _MOST_LOOPS = (
    600_000,
    10_000,
)  # in all formats; GIF has 16 bits for hundredths of seconds, and for loops
_SIDE_OF_LABELS = 1.0  # width of the row labels at most, over the width of a cell


# ------------------------------ grids
def grid(
    images: Sequence[ImageLike],
    columns: int | None = None,
    *,
    labels: Sequence[str] | None = None,
    gap: int = 4,
) -> Image.Image:
    """Pictures side by side on white, row by row.

    Args:
        images: one or more; in cells of the largest width and height, smaller ones in the middle.
        columns: pictures per row; None makes the grid about as wide as high.
        labels: a text below each picture.
        gap: pixels between and around them.

    Raises:
        ParameterError: there is no picture, or an argument is out of range.
        FormatError: a file is no picture.
    """
    pictures = _opened(images)
    if columns is None:
        columns = math.ceil(math.sqrt(len(pictures)))
    check_whole("columns", columns, 1, _MOST_CELLS)
    if labels is not None and not isinstance(labels, list | tuple):
        raise ParameterError(f"labels must be a list of texts, not {labels!r:.80}")
    if labels is not None and len(labels) != len(pictures):
        raise ParameterError(f"{len(labels)} labels do not fit {len(pictures)} pictures")
    columns = min(columns, len(pictures))
    captions = None if labels is None else [str(label) for label in labels]
    return _laid_out(pictures, columns, gap, captions=captions)


def xy_grid(
    pipe: Pipeline,
    prompt: str,
    negative_prompt: str | None = None,
    *,
    x: Axis,
    y: Axis | None = None,
    gap: int = 4,
    **options: Any,
) -> Image.Image:
    """What one or two options do: a picture for each value of `x`, and a row of them for each value of `y`.

    ``sdengine.xy_grid(pipe, "a lighthouse", x=("steps", [10, 20, 30]), y=("sampler", ["euler", "dpm++2m"]))``

    Args:
        pipe: a loaded model.
        prompt: for all pictures, unless it is an axis.
        negative_prompt: the same.
        x: an option of :meth:`sdengine.Pipeline.generate`, ``"prompt"``, ``"negative_prompt"`` or ``"prompt_sr"`` (each
            value in the place of the first one in the prompt), and its values, from left to right.
        y: the same from top to bottom.
        gap: pixels between the pictures.
        options: for all pictures; without a seed all have the same random one.

    Raises:
        ParameterError: an axis is no option, has no values, or both are the same; or as for ``generate``.
    """
    if not hasattr(pipe, "generate"):
        raise ParameterError(f"pipe must be a loaded model, not {pipe!r:.80}")
    axes = [_checked_axis(axis) for axis in (x, y) if axis is not None]
    names = [name for name, _ in axes]
    if len(set(names)) != len(names):
        raise ParameterError(f"both axes are {names[0]!r}; give different ones")
    if options.get("batch_size") not in (None, 1):
        raise ParameterError("each cell of a grid shows one picture; leave batch_size out")
    if math.prod(len(values) for _, values in axes) > _MOST_CELLS:
        raise ParameterError(f"a grid of more than {_MOST_CELLS} pictures; give fewer values")
    shared = {"seed": secrets.randbits(32), **options}
    if shared["seed"] is None:
        shared["seed"] = secrets.randbits(32)
    pictures = []
    for below in axes[1][1] if len(axes) > 1 else (None,):
        for beside in axes[0][1]:
            chosen = dict(zip(names, (beside, below), strict=False))
            given = {"prompt": prompt, "negative_prompt": negative_prompt, **shared, **chosen}
            if "prompt_sr" in given:
                first = next(values[0] for name, values in axes if name == "prompt_sr")
                given["prompt"] = _replaced(given["prompt"], first, given.pop("prompt_sr"))
            pictures.append(pipe.generate(**given).image)
    texts = [[_label(name, value) for value in values] for name, values in axes]
    return _laid_out(pictures, len(texts[0]), gap, above=texts[0], beside=[*texts, None][1])


def _checked_axis(axis: Any) -> tuple[str, list[Any]]:
    if not (isinstance(axis, tuple | list) and len(axis) == 2 and isinstance(axis[0], str)):
        raise ParameterError(f"an axis is the name of an option and its values, not {axis!r}")
    name, values = axis
    if name not in DEFAULTS and name not in PROMPTS:
        raise ParameterError(f"there is no option {name!r} to compare")
    if name == "batch_size":
        raise ParameterError("each cell of a grid shows one picture; batch_size cannot be an axis")
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ParameterError(f"the axis {name!r} needs a list of values, not {values!r}")
    return name, list(values)


def _replaced(prompt: Any, old: Any, new: Any) -> str:
    if not isinstance(prompt, str) or str(old) not in prompt:
        raise ParameterError(f"prompt_sr looks for {old!r}, which is not in the prompt {prompt!r}")
    return prompt.replace(str(old), str(new))


def _label(name: str, value: Any) -> str:
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return shown if name in PROMPTS else f"{name.replace('_', ' ')}: {shown}"


# ------------------------------ animations
def animation(
    frames: Sequence[ImageLike] | Frames,
    path: str | os.PathLike[str],
    *,
    duration: int = 100,
    last: int = 1500,
    loop: int = 0,
) -> Path:
    """Write pictures as a moving one, whole or not at all.

    Args:
        frames: pictures in order, or what a :class:`sdengine.Frames` kept; all are shown in the size of the largest.
        path: ends in ``.gif``, ``.webp``, ``.png`` or ``.apng``; an existing file is replaced.
        duration: of each frame, in milliseconds.
        last: of the last frame.
        loop: how often it is shown; 0 for ever.

    Raises:
        ParameterError: there is no frame, the suffix is not supported, or a number is out of range.
        OutputError: the file cannot be written; what was there before stays.
    """
    path = check_path("path", path)
    encode = _animator(path)
    for name, value in (("duration", duration), ("last", last)):
        check_whole(name, value, 1, _LONGEST, "milliseconds")
    check_whole("loop", loop, 0, _MOST_LOOPS)
    pictures = _opened(frames.images if isinstance(frames, Frames) else frames)
    size = max(picture.width for picture in pictures), max(p.height for p in pictures)
    pictures = [
        p if p.size == size else p.resize(size, Image.Resampling.BILINEAR) for p in pictures
    ]
    times = [int(duration)] * (len(pictures) - 1) + [int(last)]
    write_whole(path, lambda file: encode(pictures, file, times, int(loop)))
    return path


def check_animation(path: str | os.PathLike[str]) -> None:
    """Find out before the work whether :func:`animation` can write there; errors are the same."""
    path = check_path("path", path)
    _animator(path)
    check_place(path)


def _written_as(name: str, **extra: Any) -> Callable[..., None]:
    def write(pictures: list[Image.Image], file: Any, times: list[int], loop: int) -> None:
        first, *rest = pictures
        first.save(
            file, name, save_all=True, append_images=rest, duration=times, loop=loop, **extra
        )

    return write


def _gif(pictures: list[Image.Image], file: Any, times: list[int], loop: int) -> None:
    # One palette per frame, without dithering, which would crawl from frame to frame. A GIF counts repetitions.
    limited = [
        p.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for p in pictures
    ]
    repeated: Mapping[str, int] = {} if loop == 1 else {"loop": max(0, loop - 1)}
    limited[0].save(
        file, "GIF", save_all=True, append_images=limited[1:], duration=times, **repeated
    )


_ANIMATORS: Final[dict[str, Callable[..., None]]] = {
    ".gif": _gif,
    ".webp": _written_as("WEBP", quality=90, minimize_size=True),
    ".png": _written_as("PNG"),
    ".apng": _written_as("PNG"),
}


def _animator(path: Path) -> Callable[..., None]:
    found = _ANIMATORS.get(path.suffix.lower())
    if found is None:
        raise ParameterError(
            f"{path}: found {path.suffix or 'no suffix'}; an animation's name must end in {', '.join(_ANIMATORS)}"
        )
    return found


# ------------------------------ layout
def _laid_out(
    pictures: Sequence[Image.Image],
    columns: int,
    gap: int,
    *,
    captions: Sequence[str] | None = None,
    above: Sequence[str] | None = None,
    beside: Sequence[str] | None = None,
) -> Image.Image:
    """Pictures in cells: a text below each, above each column, beside each row."""
    check_whole("gap", gap, 0, _WIDEST_GAP, "pixels")
    rows = math.ceil(len(pictures) / columns)
    width, height = (max(getattr(p, side) for p in pictures) for side in ("width", "height"))
    font = ImageFont.load_default(min(max(height // _PART_OF_CELL, _FONT_SIZES[0]), _FONT_SIZES[1]))
    below, over = (_Texts(texts or [], width, font) for texts in (captions, above))
    left = _Texts(beside or [], int(_SIDE_OF_LABELS * width), font)
    across, down = width + gap, height + below.height + gap
    x0, y0 = gap + (left.width and left.width + gap), gap + (over.height and over.height + gap)
    sheet = Image.new("RGB", (x0 + columns * across, y0 + rows * down), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x, y = x0 + index % columns * across, y0 + index // columns * down
        sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
        below.draw(draw, index, (x + width // 2, y + height + below.height // 2))
    for column in range(columns):
        over.draw(draw, column, (x0 + column * across + width // 2, gap + over.height // 2))
    for row in range(rows):
        left.draw(draw, row, (gap + left.width // 2, y0 + row * down + height // 2))
    return sheet


class _Texts:
    """Labels of one kind, broken into lines that fit."""

    def __init__(self, texts: Sequence[str], width: int, font: Any) -> None:
        self._font = font
        self._measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        self._texts = ["\n".join(self._lines(text, width)) for text in texts]
        sizes = [self._size(text) for text in self._texts]
        self.width = max((size[0] for size in sizes), default=0)
        margin = self._size("x")[1] // 2
        self.height = max((size[1] + margin for size in sizes), default=0)

    def _size(self, text: str) -> tuple[int, int]:
        box = self._measure.multiline_textbbox((0, 0), text, font=self._font)
        return math.ceil(box[2]), math.ceil(box[3])

    def _lines(self, text: str, width: int) -> list[str]:
        """Broken at spaces, and within a word that is too wide alone."""
        lines = [""]
        for word in text.split():
            joined = f"{lines[-1]} {word}".strip()
            if self._measure.textlength(joined, font=self._font) <= width:
                lines[-1] = joined
                continue
            if lines[-1]:
                lines.append("")
            for letter in word:
                if lines[-1] and self._measure.textlength(lines[-1] + letter, self._font) > width:
                    lines.append("")
                lines[-1] += letter
        return lines

    def draw(self, draw: ImageDraw.ImageDraw, index: int, middle: tuple[int, int]) -> None:
        """Write a text around a point, if there is one."""
        if index < len(self._texts):
            draw.multiline_text(
                middle, self._texts[index], _BLACK, self._font, anchor="mm", align="center"
            )


def _opened(images: Any) -> list[Image.Image]:
    if not isinstance(images, Sequence) or isinstance(images, str) or not images:
        raise ParameterError(f"expected a list of pictures, found {images!r:.80}")
    return [on_white(open_image(image)) for image in images]
