"""Masks: which part of a given picture is generated, and how it comes back into the picture."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from . import images
from .checks import check_choice, check_flag, check_number, check_whole
from .errors import ParameterError, UnwiseWarning

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""
Size = tuple[int, int]
"""Width, height."""

FILLS: Final = ("original", "blur", "noise", "nothing")
"""What a run starts from below a mask: the picture itself; the colours around the mask; latents of noise; of zeros."""
MAX_BLUR, MAX_PADDING = 256.0, 4096
KERNEL_RADII = 2.5
"""A blur reaches that many of its standard deviations far, as in A1111: 2 floor(2.5 s + 0.5) + 1 taps."""


@dataclass(frozen=True)
class MaskOptions:
    """How a mask is used; :class:`sdengine.GenerateOptions` says what each means."""

    mask_blur: float = 0.0
    invert_mask: bool = False
    only_masked: bool = False
    mask_padding: int = 32
    mask_fill: str = "original"
    differential: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> MaskOptions:
        """Read them from all options of a generation.

        Raises:
            ParameterError: one is out of range.
        """
        options = cls(**{name: given[name] for name in cls.__dataclass_fields__})
        check_number("mask_blur", options.mask_blur, 0.0, MAX_BLUR)
        check_whole("mask_padding", options.mask_padding, 0, MAX_PADDING, "pixels")
        check_choice("mask_fill", options.mask_fill, FILLS)
        for name in ("invert_mask", "only_masked", "differential"):
            check_flag(name, getattr(options, name))
        return options

    def check_used(self, masked: bool, strength: float) -> None:
        """Say so where an option of a mask can do nothing.

        Raises:
            ParameterError: there is no mask, and an option for one was given.
        """
        for name, usual in MaskOptions().__dict__.items():
            if not masked and getattr(self, name) != usual:
                raise ParameterError(f"{name} is for a given mask; there is none")
        if masked and self.mask_fill != "original" and strength == 1.0 and not self.differential:
            warnings.warn(
                f"mask_fill={self.mask_fill!r} does nothing at strength 1, which starts from noise"
                " alone; use a strength below 1",
                UnwiseWarning,
                stacklevel=5,
            )


@dataclass(frozen=True)
class Frame:
    """A given picture, and the part of it that is generated.

    What lies in `box` of the picture lies in `inner` of the generated one, scaled where their sizes differ. Around
    that the generated picture repeats the border pixels.

    Attributes:
        original: uint8 ``[H, W, 3]``, or ``[H, W, 4]`` with transparency.
        mask: uint8 ``[H, W]``, 0 (keep) to 255 (change).
        opacity: uint8 ``[H, W]``, of generated over given pixels; 0 where they come back exactly.
        size: of the generated picture.
    """

    original: Bytes
    mask: Bytes
    opacity: Bytes
    box: Box
    inner: Box
    size: Size

    def cut(self, picture: Image.Image) -> Image.Image:
        """The part of a picture of the given one's size (mode RGB or L), as the generated picture has it."""
        left, top, right, bottom = self.inner
        part = _scaled(picture.crop(self.box), (right - left, bottom - top))
        borders = [(top, self.size[1] - bottom), (left, self.size[0] - right)]
        pixels = np.asarray(part)
        return Image.fromarray(np.pad(pixels, borders + [(0, 0)] * (pixels.ndim - 2), "edge"))

    def image(self) -> Array:
        """The given picture's part, float32 ``[1, 3, h, w]`` in -1..1, transparency on white."""
        return images.to_array(self.cut(images.on_white(Image.fromarray(self.original))))

    def coverage(self) -> Array:
        """The mask's part, float32 ``[1, 1, h, w]`` in 0..1."""
        return images.to_mask(self.cut(Image.fromarray(self.mask)))

    def put_back(self, generated: Image.Image) -> Image.Image:
        """The given picture with the generated one over it."""
        left, top, right, bottom = self.box
        part = _scaled(generated.crop(self.inner), (right - left, bottom - top))
        result = self.original.copy()
        result[top:bottom, left:right] = _over(
            np.asarray(part, np.float32),
            self.original[top:bottom, left:right],
            self.opacity[top:bottom, left:right],
        )
        return Image.fromarray(result)


def read_frames(
    image: Any,
    mask: Any,
    given: tuple[int | None, int | None],
    usual: Size,
    multiple: int,
    resize_mode: str,
    options: MaskOptions,
) -> list[Frame]:
    """One frame per picture of the batch.

    Args:
        image: a picture or a list of them.
        mask: the same; one mask may serve all pictures, and one picture may have several masks.
        given: the size that was asked for. Without one, or with the picture's own, the picture keeps its size, and is
            generated on a canvas whose sides are the next multiples.
        usual: the model's, which the part below a mask is generated at.
        multiple: of pixels that a generated picture's sides have.
        resize_mode: how pictures are brought to a size that was asked for.
        options: how the masks are used.

    Raises:
        ParameterError, FormatError: something is not a picture; or a mask has another size than its picture.
    """
    originals = [images.open_image(picture) for picture in listed(image)]
    masks = [images.open_mask(picture) for picture in listed(mask)]
    count = max(len(originals), len(masks))
    if {len(originals), len(masks)} - {1, count}:
        raise ParameterError(
            f"{len(masks)} masks were given for {len(originals)} images; give one, or one for each"
        )
    pairs = [(originals[i % len(originals)], masks[i % len(masks)]) for i in range(count)]
    for original, own in pairs:
        if own.size != original.size:
            raise ParameterError(
                f"the mask has {own.width}x{own.height} pixels and its image {original.width}x"
                f"{original.height}; give a mask of the image's size"
            )
    first = originals[0].size
    if not options.only_masked:
        target, size = _sizes(first, given, multiple)
        pairs = [
            (images.resize(a, target, resize_mode), images.resize(b, target, resize_mode))
            for a, b in pairs
        ]
    else:
        size = (given[0] or usual[0], given[1] or usual[1])
    return [_framed(original, prepared(own, options), size, options) for original, own in pairs]


def listed(pictures: Any) -> list[Any]:
    """One picture or several, as a list.

    Raises:
        ParameterError: the list is empty.
    """
    found = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
    if not found:
        raise ParameterError("an empty list of pictures was given")
    return found


def prepared(mask: Image.Image, options: MaskOptions) -> Bytes:
    """A mask of mode L, inverted and blurred as asked; uint8 ``[H, W]``.

    An empty one draws an :class:`sdengine.UnwiseWarning`: its picture comes back as it is.
    """
    pixels = np.array(ImageOps.invert(mask) if options.invert_mask else mask)
    if not pixels.any():
        warnings.warn(
            "the mask is empty (black everywhere): the picture comes back unchanged. White is what"
            " is to be changed; invert_mask=True turns a mask around",
            UnwiseWarning,
            stacklevel=7,
        )
    return blurred(pixels, options.mask_blur) if options.mask_blur else pixels


def blurred(mask: Bytes, deviation: float) -> Bytes:
    """A Gaussian blur with a kernel that ends at :data:`KERNEL_RADII` deviations; borders are mirrored."""
    radius = int(KERNEL_RADII * deviation + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    taps /= taps.sum()
    values = mask.astype(np.float32)
    for axis in (0, 1):
        borders = [(0, 0), (0, 0)]
        borders[axis] = (radius, radius)
        rows = np.moveaxis(np.pad(values, borders, "reflect"), axis, 0)
        length = mask.shape[axis]
        summed = sum(float(tap) * rows[i : i + length] for i, tap in enumerate(taps))
        values = np.moveaxis(np.asarray(summed, np.float32), 0, axis)
    return np.rint(values).astype(np.uint8)


def surroundings(image: Array, mask: Array) -> Array:
    """A picture whose masked part has the colours around it, smooth inside: pull and push over halved pictures.

    Gortler et al. 1996, "The Lumigraph", section 3.4.

    Args:
        image: float32 ``[N, 3, H, W]``.
        mask: float32 ``[N, 1, H, W]``, 1 where colours are missing.

    Returns:
        float32 ``[N, 3, H, W]``; zeros where nothing is known at all.
    """
    known = np.concatenate([image * (1.0 - mask), 1.0 - mask], axis=1)
    return np.stack([_completed(one)[:3] for one in known])


def _completed(known: Array) -> Array:
    """Weighted colours and their weights ``[4, h, w]``, made whole from half the size."""
    _, height, width = known.shape
    if height == width == 1:
        return np.asarray(known / np.maximum(known[3:], 1e-6), np.float32)
    even = np.pad(known, [(0, 0), (0, height % 2), (0, width % 2)])
    half = even.reshape(4, even.shape[1] // 2, 2, even.shape[2] // 2, 2).sum(axis=(2, 4))
    around = _completed(np.asarray(half / np.maximum(half[3:], 1.0), np.float32))
    double = (even.shape[2], even.shape[1])
    larger = np.stack(
        [np.asarray(Image.fromarray(p).resize(double, Image.Resampling.BILINEAR)) for p in around]
    )
    return np.asarray(known + (1.0 - known[3:]) * larger[:, :height, :width], np.float32)


def _sizes(own: Size, given: tuple[int | None, int | None], multiple: int) -> tuple[Size, Size]:
    """What pictures are resized to, and the size that is generated."""
    if given == (None, None) or given == own:
        width, height = (math.ceil(side / multiple) * multiple for side in own)
        return own, (width, height)
    width, height = (
        asked or max(multiple, side // multiple * multiple)
        for asked, side in zip(given, own, strict=True)
    )
    return (width, height), (width, height)


def _framed(original: Image.Image, mask: Bytes, size: Size, options: MaskOptions) -> Frame:
    whole = (0, 0, original.width, original.height)
    box, inner = whole, whole
    if options.only_masked:
        box = masked_box(mask, options.mask_padding, size[0] / size[1])
        width, height = box[2] - box[0], box[3] - box[1]
        scale = min(size[0] / width, size[1] / height)
        fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
        left, top = (size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2
        inner = (left, top, left + fitted[0], top + fitted[1])
    # A differential mask says how much each pixel changes: what changed at all is shown as it is.
    opacity = np.where(mask > 0, np.uint8(255), np.uint8(0)) if options.differential else mask
    return Frame(np.array(original), mask, opacity, box, inner, size)


def masked_box(mask: Bytes, padding: int, ratio: float) -> Box:
    """The part of a picture to generate: what is masked and `padding` pixels around, in the shape `ratio`.

    The shape is width over height. It is reached by growing, and near a border by moving inwards, as in A1111 and in
    diffusers (``padding_mask_crop``); a picture that is too small for it gives all that it has. Of an empty mask the
    whole picture.
    """
    height, width = mask.shape
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return 0, 0, width, height
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, width)
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, height)
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _grown(top, bottom, int((right - left) / ratio), height)
    else:
        left, right = _grown(left, right, int((bottom - top) * ratio), width)
    return left, top, right, bottom


def _grown(low: int, high: int, length: int, end: int) -> tuple[int, int]:
    """The interval at `length`, around its middle where 0..`end` has room for that."""
    length = min(max(length, high - low), end)
    start = min(max(low - (length - (high - low)) // 2, 0), end - length)
    return start, start + length


def _scaled(picture: Image.Image, size: Size) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _over(generated: Array, original: Bytes, opacity: Bytes) -> Bytes:
    """Generated pixels ``[h, w, 3]`` over given ones, which stay exactly where the opacity is 0."""
    share = opacity[..., None].astype(np.float32) / 255
    if original.shape[2] == 3:
        return np.rint(share * generated + (1 - share) * original).astype(np.uint8)
    below = (1 - share) * original[..., 3:] / 255
    alpha = share + below
    colours = (share * generated + below * original[..., :3]) / np.maximum(alpha, 1e-6)
    mixed = np.rint(np.concatenate([colours, alpha * 255], axis=2)).astype(np.uint8)
    return np.where(share == 0, original, mixed)


def pasted(pictures: Sequence[Image.Image], frames: Sequence[Frame]) -> list[Image.Image]:
    """Each generated picture back in the given one."""
    return [frames[i % len(frames)].put_back(picture) for i, picture in enumerate(pictures)]
