"""Decide from pixels whether a picture shows the colour, background and shape it should.

No model is involved: the background is what the border looks like, the figure is the largest
blob that differs from it, its colour is the nearest of the palette, and its shape is the outline
with the best overlap (intersection over union, IoU). Floors on the overlap and on how much of
the figure and the ground really has the stated colour keep the verdict from flattering: a blob
that is like no shape is no shape, and a patchy ground is no ground.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from demo.shapes import COLOURS, FRAME, SHAPES, SIZE, Triple, draw_mask, outline, polygon_area

MIN_IOU = 0.80
"""Below this overlap a blob is no shape. True renders reach 0.93 and more."""

MIN_PURE = 0.80
"""At least this part of the figure, and of the ground, must have its colour as the nearest."""

MIN_AREA = 0.02
"""A figure covers at least this part of the picture (a small moon covers 0.07)."""

MAX_STRAY = 0.15
"""Other blobs may cover at most this part of the figure's area."""

_BORDER = 5
"""Width in pixels of the frame that is taken for background."""

_SOFT = 4
"""Width in pixels of a frame's inner edge, which belongs to neither side."""

_Value = TypeVar("_Value", bound=np.generic)
_NAMES = tuple(COLOURS)
_PALETTE = np.array([COLOURS[name] for name in _NAMES], np.float32)


@dataclass(frozen=True)
class Verdict:
    """What the checker sees; a name is None where nothing passes the floors."""

    shape: str | None
    colour: str | None
    background: str | None
    iou: float
    figure: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)
    """[SIZE, SIZE], where the figure is; None if there is not exactly one."""

    @property
    def triple(self) -> tuple[str | None, str | None, str | None]:
        """Shape, colour and background as seen."""
        return (self.shape, self.colour, self.background)

    def matches(self, triple: Triple) -> bool:
        """Whether shape, colour and background are all as asked for."""
        return self.triple == triple

    def covers(self, mask: NDArray[np.bool_]) -> float:
        """Return the overlap (IoU) of the figure with a mask [SIZE, SIZE]; 0 without a figure."""
        return 0.0 if self.figure is None else _overlap(self.figure, mask)


def check(picture: Image.Image) -> Verdict:
    """Look at a picture (any size; reduced or enlarged to the data set's) and judge it."""
    resized = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    pixels = np.asarray(resized, np.float32)
    nearest = _nearest_colour(pixels)
    ground_rgb = np.median(_frame(pixels), axis=0)
    background = _NAMES[int(_nearest_colour(ground_rgb))]
    if np.mean(_frame(nearest) == _NAMES.index(background)) < MIN_PURE:
        return Verdict(None, None, None, 0.0)
    figure = _figure_mask(pixels, ground_rgb)
    if figure is None:
        return Verdict(None, None, background, 0.0)
    core = ndimage.binary_erosion(figure, iterations=2)
    colour_index = int(_nearest_colour(np.median(pixels[core if core.any() else figure], axis=0)))
    pure = np.mean(nearest[core] == colour_index) if core.any() else 0.0
    # The shadow reaches some 12 px below the figure, so the ground is judged away from it.
    far = ~ndimage.binary_dilation(figure, iterations=12)
    clean = np.mean(nearest[far] == _NAMES.index(background)) if far.any() else 1.0
    shape, iou = _nearest_shape(figure)
    return Verdict(
        shape if iou >= MIN_IOU else None,
        _NAMES[colour_index] if pure >= MIN_PURE else None,
        background if clean >= MIN_PURE else None,
        iou,
        figure,
    )


def check_framed(picture: Image.Image) -> tuple[Verdict, bool]:
    """Judge what a frame of :data:`FRAME` pixels holds, and whether its sides have the figure's colour."""
    resized = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    start, end = FRAME + _SOFT, SIZE - FRAME - _SOFT
    verdict = check(resized.crop((start, start, end, end)))
    pixels = np.asarray(resized, np.float32)
    sides = (pixels[:FRAME], pixels[-FRAME:], pixels[:, :FRAME], pixels[:, -FRAME:])
    colours = {_NAMES[int(_nearest_colour(np.median(side, axis=(0, 1))))] for side in sides}
    return verdict, colours == {verdict.colour}


def _frame(values: NDArray[_Value]) -> NDArray[_Value]:
    """Return the values of the border pixels, [count, ...]."""
    inside = np.zeros((SIZE, SIZE), bool)
    inside[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    return values[~inside]


def _nearest_colour(rgb: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the index of the nearest palette colour, [..., 3] to [...].

    The light makes a colour up to 8 % brighter or darker, which is far less than half the
    distance between any two colours of the palette.
    """
    distance = np.linalg.norm(rgb[..., None, :] - _PALETTE, axis=-1)
    index: NDArray[np.intp] = distance.argmin(axis=-1)
    return index


def _figure_mask(
    pixels: NDArray[np.float32], ground_rgb: NDArray[np.float32]
) -> NDArray[np.bool_] | None:
    """Return the mask of the one figure in the picture, or None if there is not exactly one."""
    distance = np.linalg.norm(pixels - ground_rgb, axis=-1)
    # The core of a figure differs from the ground by more than any shadow does (20 % of white).
    strong = distance > max(60.0, 0.7 * float(np.percentile(distance, 97)))
    if strong.mean() < MIN_AREA / 2:
        return None
    figure_rgb = np.median(pixels[strong], axis=0)
    # A pixel belongs to the figure when it is nearer to the figure's colour than to the ground's:
    # half coverage, which is where the drawn edge is.
    mask = np.linalg.norm(pixels - figure_rgb, axis=-1) < distance
    labels, count = ndimage.label(mask)
    if count == 0:
        return None
    areas = np.bincount(labels.ravel())[1:]
    largest = int(areas.argmax())
    if areas[largest] < MIN_AREA * SIZE * SIZE:
        return None
    if areas.sum() - areas[largest] > MAX_STRAY * areas[largest]:
        return None
    figure: NDArray[np.bool_] = ndimage.binary_fill_holes(labels == largest + 1)
    return figure


def _nearest_shape(figure: NDArray[np.bool_]) -> tuple[str, float]:
    """Return the shape whose outline, laid on the blob's centroid and area, overlaps it best."""
    y, x = np.nonzero(figure)
    centre = (float(x.mean()) + 0.5, float(y.mean()) + 0.5)
    scores: dict[str, float] = {}
    for shape in SHAPES:
        radius = float(np.sqrt(len(x) / polygon_area(outline(shape))))
        template = np.asarray(draw_mask(shape, radius, centre)) >= 128
        scores[shape] = _overlap(template, figure)
    best = max(scores, key=lambda shape: scores[shape])
    return best, scores[best]


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return intersection over union."""
    return float((one & other).sum() / (one | other).sum())
