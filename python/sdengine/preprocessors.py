"""From a picture to what control networks follow: edges, lines, colours, depth (docs/control.md).

Every function takes a picture as :func:`sdengine.images.open_image` does and returns one of mode RGB and of the same
size. They need numpy and Pillow only; :func:`preprocess` also reaches annotators that are networks, where their package
is installed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import images
from .checks import check_number
from .errors import ParameterError
from .images import ImageLike

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Preprocessor = Callable[..., Image.Image]
Colour = tuple[int, int, int]

_TRUNCATE = 4.0  # a Gaussian is cut off at so many standard deviations


# ------------------------------------------------------------------------------------------ edges
def canny(image: ImageLike, low: float = 100.0, high: float = 200.0) -> Image.Image:
    """White edges on black, one pixel wide (Canny 1986, "A Computational Approach to Edge Detection").

    Gradients are Sobel's, 3 x 3, their magnitude is |x| + |y|; no smoothing. Each pixel's is that of the colour in
    which it is largest, as in OpenCV, so that red and blue of one brightness have an edge between them.

    Args:
        image: the picture.
        low: edges this strong are kept where they touch stronger ones, 0 to 2000.
        high: edges this strong are kept, `low` to 2000.

    Raises:
        ParameterError: a threshold is out of range.
    """
    check_number("high", high, 0.0, 2000.0)
    check_number("low", low, 0.0, high)
    colours = _colours(image)
    of_each = np.array([_sobel(colours[..., c]) for c in range(3)])  # [3, (x, y), H, W]
    strongest = np.abs(of_each).sum(axis=1).argmax(axis=0)
    x, y = np.take_along_axis(of_each, strongest[None, None], 0)[0]
    magnitude = np.abs(x) + np.abs(y)
    edges = _thinned(magnitude, x, y)
    return _picture(_connected(edges & (magnitude > low), edges & (magnitude > high)) * 255.0)


def _thinned(magnitude: Array, x: Array, y: Array) -> Mask:
    """Where the magnitude is largest across the edge, among the two neighbours in the gradient's direction."""
    padded = np.pad(magnitude, 1)
    height, width = magnitude.shape

    def neighbour(down: int, right: int) -> Array:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    steep = math.tan(math.pi / 8)  # directions are rounded to multiples of 45 degrees
    flat = np.abs(y) <= np.abs(x) * steep
    upright = np.abs(x) <= np.abs(y) * steep
    falling = x * y >= 0
    kept = np.zeros(magnitude.shape, bool)
    for where, (down, right) in (
        (flat, (0, 1)),
        (upright & ~flat, (1, 0)),
        (~flat & ~upright & falling, (1, 1)),
        (~flat & ~upright & ~falling, (1, -1)),
    ):
        # Of two equal neighbours one stays.
        largest = (magnitude > neighbour(-down, -right)) & (magnitude >= neighbour(down, right))
        kept |= where & largest
    return kept


def _connected(weak: Mask, strong: Mask) -> Mask:
    """The weak pixels that hang together with strong ones, over edges and corners."""
    height, width = weak.shape
    found, left = np.pad(strong, 1), np.pad(weak & ~strong, 1)
    front = np.flatnonzero(found)
    row = width + 2
    around = np.array([-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1])
    flat_found, flat_left = found.ravel(), left.ravel()
    while front.size:
        reached = np.unique((front[:, None] + around).ravel())
        front = reached[flat_left[reached]]
        flat_found[front], flat_left[front] = True, False
    return found[1 : height + 1, 1 : width + 1]


# ------------------------------------------------------------------------------------------ lines
def scribble(
    image: ImageLike, threshold: float = 32.0, narrow: float = 0.5, wide: float = 5.0
) -> Image.Image:
    """Thick white strokes on black: a difference of Gaussians, cut at a threshold.

    The hard limit of XDoG (Winnemoeller et al. 2012, "XDoG: An eXtended difference-of-Gaussians compendium"), with
    the figures of sd-webui-controlnet. A stroke is what is darker than around it in every colour.

    Args:
        image: the picture.
        threshold: contrast that makes a stroke, 0 to 255; less gives more strokes.
        narrow: standard deviation of the inner Gaussian in pixels, above 0.
        wide: of the outer one, above `narrow`, to 100.

    Raises:
        ParameterError: a number is out of range.
    """
    check_number("threshold", threshold, 0.0, 255.0)
    check_number("wide", wide, 0.01, 100.0)
    check_number("narrow", narrow, 0.01, wide)
    colours = _colours(image)
    darker = (_gaussian(colours, wide) - _gaussian(colours, narrow)).min(axis=2)
    return _picture((2.0 * darker > threshold) * 255.0)


def lineart(image: ImageLike, sigma: float = 6.0, threshold: float = 8.0) -> Image.Image:
    """Fine white lines on black, from what is darker than its surroundings (the figures are sd-webui-controlnet's).

    Args:
        image: the picture.
        sigma: standard deviation of the surroundings in pixels, above 0, to 100.
        threshold: contrast from which on a line counts for the brightness of all, 0 to 255.

    Raises:
        ParameterError: a number is out of range.
    """
    check_number("sigma", sigma, 0.01, 100.0)
    check_number("threshold", threshold, 0.0, 255.0)
    colours = _colours(image)
    darker = (_gaussian(colours, sigma) - colours).min(axis=2).clip(0.0, 255.0)
    lines = darker[darker > threshold]
    faintest = 16.0  # nothing is brightened more than so far
    usual = max(faintest, float(np.median(lines))) if lines.size else faintest
    return _picture(darker / usual * 127.0)


def threshold(image: ImageLike, level: float = 127.0) -> Image.Image:
    """White where the picture is brighter than `level` (0 to 255), black elsewhere.

    Raises:
        ParameterError: `level` is out of range.
    """
    check_number("level", level, 0.0, 255.0)
    return _picture((_grey(image) > level) * 255.0)


# ---------------------------------------------------------------------------------------- colours
ADE20K: Mapping[str, Colour] = MappingProxyType(
    {
        "wall": (120, 120, 120),
        "building": (180, 120, 120),
        "sky": (6, 230, 230),
        "floor": (80, 50, 50),
        "tree": (4, 200, 3),
        "ceiling": (120, 120, 80),
        "road": (140, 140, 140),
        "bed": (204, 5, 255),
        "window": (230, 230, 230),
        "grass": (4, 250, 7),
        "cabinet": (224, 5, 255),
        "sidewalk": (235, 255, 7),
        "person": (150, 5, 61),
        "earth": (120, 120, 70),
        "door": (8, 255, 51),
        "table": (255, 6, 82),
        "mountain": (143, 255, 140),
        "plant": (204, 255, 4),
        "curtain": (255, 51, 7),
        "chair": (204, 70, 3),
        "car": (0, 102, 200),
        "water": (61, 230, 250),
    }
)
"""Colours of the most frequent classes of ADE20K, by which segmentation ControlNets were trained."""


def segmentation(
    image: ImageLike, palette: Mapping[str, Colour] | Sequence[Colour] = ADE20K
) -> Image.Image:
    """A painted map of areas in clean colours: each pixel takes the nearest colour of the palette.

    Args:
        image: the map, painted by hand or blurred by compression.
        palette: 1 to 256 colours, red, green and blue from 0 to 255.

    Raises:
        ParameterError: the palette is no list of colours.
    """
    listed = list(palette.values()) if isinstance(palette, Mapping) else list(palette)
    try:
        wanted = np.asarray(listed, np.float32)
    except (TypeError, ValueError):
        wanted = np.empty(0, np.float32)
    if wanted.ndim != 2 or wanted.shape[1] != 3 or not 1 <= len(wanted) <= 256:
        raise ParameterError("palette must be 1 to 256 colours (red, green, blue)")
    if not ((wanted >= 0) & (wanted <= 255)).all():
        raise ParameterError("the palette's colours are numbers from 0 to 255")
    colours = _colours(image)
    nearest = np.zeros(colours.shape[:2], np.intp)
    best = np.full(colours.shape[:2], np.inf, np.float32)
    for i, colour in enumerate(
        wanted
    ):  # one by one: a distance to all at once would take much memory
        distance = ((colours - colour) ** 2).sum(axis=2)
        closer = distance < best
        nearest[closer], best[closer] = i, distance[closer]
    return _picture(wanted[nearest])


def tile(image: ImageLike, factor: float = 8.0) -> Image.Image:
    """The picture without detail: made smaller by `factor` (1 to 64) and brought back, as tile ControlNets are shown.

    Raises:
        ParameterError: `factor` is out of range.
    """
    check_number("factor", factor, 1.0, 64.0)
    picture = images.on_white(images.open_image(image))
    small = (
        max(1, round(picture.width / factor)),
        max(1, round(picture.height / factor)),
    )
    return picture.resize(small, Image.Resampling.BOX).resize(
        picture.size, Image.Resampling.BICUBIC
    )


def blur(image: ImageLike, sigma: float = 9.0) -> Image.Image:
    """The picture through a Gaussian of standard deviation `sigma` (above 0, to 100) in pixels.

    Raises:
        ParameterError: `sigma` is out of range.
    """
    check_number("sigma", sigma, 0.01, 100.0)
    return _picture(_gaussian(_colours(image), sigma))


# ------------------------------------------------------------------------------------------ depth
def depth(values: ImageLike | NDArray[Any], near_is_bright: bool = True) -> Image.Image:
    """A given depth map, spread over black (far) to white (near).

    Args:
        values: a picture, or an array ``[H, W]`` of any scale.
        near_is_bright: False where large values are far away: they are turned around.

    Raises:
        ParameterError: an array of another shape, or with NaN or infinity.
    """
    spread = _depth(values)
    return _picture((spread if near_is_bright else 1.0 - spread) * 255.0)


def normal(
    values: ImageLike | NDArray[Any], strength: float = 4.0, background: float = 0.4
) -> Image.Image:
    """Surface directions from a depth map: right in red, down in green, to the viewer in blue.

    Args:
        values: as for :func:`depth`, near is large.
        strength: how steep depth is, above 0, to 1000; in picture widths from the farthest to the nearest point.
        background: what is farther than this part of the range faces the viewer, 0 to 1 (the annotator that the
            ControlNets were trained with does so at 0.4).

    Raises:
        ParameterError: a number is out of range, or no depth map.
    """
    check_number("strength", strength, 1e-6, 1000.0)
    check_number("background", background, 0.0, 1.0)
    near = _depth(values)
    sobel_sum = 8.0  # of the filter's weights: its answer to a slope of one per pixel
    x, y = (slope / sobel_sum * near.shape[1] * strength for slope in _sobel(near))
    far = near < background
    x[far] = y[far] = 0.0
    directions = np.stack([x, y, np.ones_like(x)], axis=2)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    return _picture(directions * 127.5 + 127.5)


def _depth(values: ImageLike | NDArray[Any]) -> Array:
    """Depths over 0 to 1, near is large."""
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "fiu":
        found = np.asarray(values, np.float32)
        if not found.size or not np.isfinite(found).all():
            raise ParameterError("a depth map must hold numbers, none of them NaN or infinity")
    else:
        found = _grey(values)
    low, high = float(found.min()), float(found.max())
    return np.asarray((found - low) / (high - low if high > low else 1.0), np.float32)


# --------------------------------------------------------------------------------------- by name
_BUILT_IN: dict[str, Preprocessor] = {
    "canny": canny,
    "scribble": scribble,
    "lineart": lineart,
    "threshold": threshold,
    "segmentation": segmentation,
    "tile": tile,
    "blur": blur,
    "depth": depth,
    "normal": normal,
}
_registered: dict[str, Preprocessor] = {}

_PACKAGE = "controlnet_aux"
_WEIGHTS = "lllyasviel/Annotators"
_EXTERNAL = {
    "midas": "MidasDetector",
    "hed": "HEDdetector",
    "openpose": "OpenposeDetector",
    "mlsd": "MLSDdetector",
    "pidinet": "PidiNetDetector",
    "zoe": "ZoeDetector",
    "lineart_model": "LineartDetector",
    "normal_bae": "NormalBaeDetector",
}


def names() -> list[str]:
    """The names that :func:`preprocess` knows."""
    return sorted({*_BUILT_IN, *_EXTERNAL, *_registered})


def register(name: str, function: Preprocessor) -> None:
    """Make an annotator of your own known to :func:`preprocess`: a function of a picture that returns a picture.

    Raises:
        ParameterError: `function` cannot be called, or the name is one of this module's.
    """
    if not callable(function):
        raise ParameterError(f"a preprocessor must be a function, not {function!r}")
    if name in _BUILT_IN:
        raise ParameterError(f"{name!r} is a preprocessor of sdengine; choose another name")
    _registered[name] = function


def preprocess(name: str, image: ImageLike, **options: Any) -> Image.Image:
    """Apply a preprocessor by its name.

    Args:
        name: one of :func:`names`. Poses, HED, M-LSD, estimated depth and other annotators that are networks run in
            the optional package controlnet_aux.
        image: the picture.
        options: the preprocessor's arguments.

    Raises:
        ParameterError: the name or an option is unknown, or the package is not installed; the message names it.
    """
    function = _registered.get(name) or _BUILT_IN.get(name)
    if function is None and name in _EXTERNAL:
        function = _external(name)
    if function is None:
        raise ParameterError(
            f"there is no preprocessor {name!r}; choose one of {', '.join(names())}"
        )
    try:
        return function(image, **options)
    except TypeError as error:
        raise ParameterError(f"preprocessor {name!r}: {error}") from None


def _external(name: str) -> Preprocessor:
    try:
        package = importlib.import_module(_PACKAGE)
    except ImportError:
        raise ParameterError(
            f"the preprocessor {name!r} is a network that runs in the optional package"
            f" controlnet_aux: install it (pip install controlnet-aux), or give a map made elsewhere"
            " as the control picture itself, or register() a function of your own"
        ) from None
    detector = getattr(package, _EXTERNAL[name]).from_pretrained(_WEIGHTS)

    def run(image: ImageLike, **options: Any) -> Image.Image:
        picture = images.on_white(images.open_image(image))
        found: Image.Image = detector(picture, **options)
        return found.convert("RGB").resize(picture.size, Image.Resampling.LANCZOS)

    return run


# ------------------------------------------------------------------------------------------ parts
def _colours(image: ImageLike) -> Array:
    """``[H, W, 3]``, 0 to 255."""
    return np.asarray(images.on_white(images.open_image(image)), np.float32)


def _grey(image: ImageLike) -> Array:
    """``[H, W]``, 0 to 255."""
    return np.asarray(images.on_white(images.open_image(image)).convert("L"), np.float32)


def _picture(values: NDArray[Any]) -> Image.Image:
    """Mode RGB from ``[H, W]`` or ``[H, W, 3]``; values are rounded and clipped to 0 to 255."""
    levels = np.rint(np.clip(values, 0.0, 255.0)).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB")


def _sobel(values: Array) -> tuple[Array, Array]:
    """Sobel's gradients along x and y, 3 x 3, borders repeated."""
    padded = np.pad(values, 1, "edge")
    smooth_y = padded[:-2] + 2.0 * padded[1:-1] + padded[2:]
    smooth_x = padded[:, :-2] + 2.0 * padded[:, 1:-1] + padded[:, 2:]
    return smooth_y[:, 2:] - smooth_y[:, :-2], smooth_x[2:] - smooth_x[:-2]


def _gaussian(values: Array, sigma: float) -> Array:
    """Smoothed along the first two axes, borders mirrored."""
    reach = max(1, int(_TRUNCATE * sigma + 0.5))
    offsets = np.arange(-reach, reach + 1)
    taps = np.exp(-0.5 * (offsets / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        widths = [(0, 0)] * values.ndim
        widths[axis] = (reach, reach)
        padded = np.pad(values, widths, "symmetric")
        size = values.shape[axis]
        values = np.zeros_like(values)
        for i, tap in enumerate(taps):
            values += np.float32(tap) * padded.take(range(i, i + size), axis)
    return values
