"""Outpainting: a larger canvas around a picture, and the mask of what is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import images
from .checks import check_choice, check_whole
from .errors import ParameterError
from .images import ImageLike
from .masks import listed, surroundings
from .resolutions import parse_ratio

CANVAS_FILLS: Final = ("blur", "reflect", "edge")
"""What a canvas shows at first where it is new: the picture's colours, smooth; the picture mirrored; its border."""
BAND: Final = 16
"""Pixels along the picture's border that smooth colours are taken from."""
MAX_SIDE: Final = 8192
MAX_FEATHER: Final = 1024
Sides = tuple[int, int, int, int]
"""Pixels to add: left, right, top, bottom."""


def outpaint(
    image: ImageLike,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    *,
    aspect_ratio: str | float | None = None,
    feather: int = 16,
    fill: str = "blur",
) -> tuple[Image.Image, Image.Image]:
    """A canvas that extends a picture, and the mask of what is to be painted.

    ``canvas, mask = sdengine.outpaint("photo.png", left=128, right=128)``
    ``pipe.generate("a wide landscape", image=canvas, mask=mask)``

    Args:
        image: the picture; it keeps its size and pixels on the canvas.
        left: pixels to add there, 0 to 8192.
        right: the same.
        top: the same.
        bottom: the same.
        aspect_ratio: width over height of the canvas (``"16:9"``, 1.5) instead: the shorter direction grows, alike
            on both sides.
        feather: pixels inside the picture over which the mask falls from white to black, 0 to 1024. Deeper inside,
            generated pictures have the picture's own pixels.
        fill: what the new part shows: ``"blur"`` (colours of the picture's border, smooth), ``"reflect"`` or
            ``"edge"``. It matters for a strength below 1.

    Returns:
        The canvas, mode RGB, or RGBA for a picture with transparency; and the mask, mode L, white where the canvas is
        new.

    Raises:
        ParameterError: a number is out of range, or nothing is to be added.
        FormatError: the file is no picture.
    """
    picture = images.open_image(image)
    sides = (left, right, top, bottom)
    if aspect_ratio is not None:
        if any(sides):
            raise ParameterError("give aspect_ratio, or pixels to add, and not both")
        sides = sides_for(picture.size, parse_ratio(aspect_ratio))
    for name, pixels in zip(("left", "right", "top", "bottom"), sides, strict=True):
        check_whole(name, pixels, 0, MAX_SIDE, "pixels")
    check_whole("feather", feather, 0, MAX_FEATHER, "pixels")
    check_choice("fill", fill, CANVAS_FILLS)
    left, right, top, bottom = sides
    size = (picture.width + left + right, picture.height + top + bottom)
    if not any(sides):
        raise ParameterError(
            f"there is nothing to add to a picture of {size[0]}x{size[1]}: give left, right, top or bottom,"
            " or another aspect_ratio"
        )
    if max(size) > MAX_SIDE:
        raise ParameterError(f"a canvas has sides of at most {MAX_SIDE}, not {size[0]}x{size[1]}")
    return _canvas(picture, sides, fill), _mask(picture.size, sides, feather)


def sides_for(size: tuple[int, int], ratio: float) -> Sides:
    """What to add to a picture of that width and height, so that width over height is `ratio`."""
    width, height = size
    wide, high = round(height * ratio) - width, round(width / ratio) - height
    if wide > 0:
        return wide // 2, wide - wide // 2, 0, 0
    high = max(high, 0)
    return 0, 0, high // 2, high - high // 2


def parse_sides(value: Any) -> Sides | float:
    """The option ``outpaint``: four numbers of pixels (``"64,0,64,0"``, ``(64, 0, 64, 0)``), or an aspect ratio.

    Raises:
        ParameterError: it is neither.
    """
    numbers = value.split(",") if isinstance(value, str) and "," in value else value
    if not isinstance(numbers, Sequence) or isinstance(numbers, str):
        return parse_ratio(value)
    try:
        left, right, top, bottom = (int(number) for number in numbers)
        if [left, right, top, bottom] != [float(number) for number in numbers]:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ParameterError(
            "outpaint must be the pixels to add on the left, right, top and bottom, such as '64,0,64,0', or an"
            f" aspect ratio such as '16:9'; not {value!r}"
        ) from None
    return left, right, top, bottom


def extended(image: Any, sides: Sides | float) -> tuple[list[Image.Image], list[Image.Image]]:
    """Canvases and masks of one picture or several; arguments as :func:`parse_sides` returns them."""
    made = [
        outpaint(picture, *sides)
        if isinstance(sides, tuple)
        else outpaint(picture, aspect_ratio=sides)
        for picture in listed(image)
    ]
    return [canvas for canvas, _ in made], [mask for _, mask in made]


def _canvas(picture: Image.Image, sides: Sides, fill: str) -> Image.Image:
    left, right, top, bottom = sides
    borders = [(top, bottom), (left, right), (0, 0)]
    plain = images.on_white(picture)
    if fill == "blur":
        missing = np.ones((1, 1, picture.height, picture.width), np.float32)
        for edge in (np.s_[:BAND], np.s_[-BAND:]):
            missing[:, :, edge] = missing[:, :, :, edge] = 0.0
        around = [(0, 0), (0, 0), *borders[:2]]
        values = np.pad(images.to_array(plain), around)
        filled = surroundings(values, np.pad(missing, around, constant_values=1.0))
        canvas = images.to_pil(filled)[0]
    else:
        pixels: NDArray[Any] = np.asarray(plain)
        mode: Any = {"reflect": "symmetric", "edge": "edge"}[fill]
        canvas = Image.fromarray(np.pad(pixels, borders, mode))
    canvas = canvas.convert(picture.mode)
    canvas.paste(picture, (left, top))
    return canvas


def _mask(size: tuple[int, int], sides: Sides, feather: int) -> Image.Image:
    """White outside the picture; inside it falls linearly with the distance from the new parts."""
    width, height = size
    left, right, top, bottom = sides
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    far = np.inf
    across = np.minimum(x if left else far, width - x if right else far)
    down = np.minimum(y if top else far, height - y if bottom else far)
    across, down = np.broadcast_to(across, width), np.broadcast_to(down, height)
    distance = np.minimum(across[None, :], down[:, None])
    inside = np.clip(1.0 - distance / max(feather, 0.5), 0.0, 1.0)
    whole = np.pad(inside, [(top, bottom), (left, right)], constant_values=1.0)
    return Image.fromarray(np.rint(whole * 255).astype(np.uint8))
