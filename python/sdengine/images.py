"""Pictures: from what users have to float arrays and back, and into files.

Arrays are float32 in torch order ``[N, 3, H, W]`` with values -1 (black) to 1 (white), as
autoencoders read and write them; masks are ``[N, 1, H, W]``, 0 (keep) to 1 (change).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from sdengine.checks import check_choice, check_path, check_whole
from sdengine.errors import (
    FormatError,
    NumericError,
    OutOfMemoryError,
    ParameterError,
)
from sdengine.output import check_place, write_whole

Array = NDArray[np.float32]
ImageLike = Image.Image | NDArray[Any] | str | os.PathLike[str]
"""A PIL picture; a path; or numpy ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]``, ``[H, W, 4]`` as uint8
0..255 or float 0..1."""

RESIZE_MODES: Final = ("stretch", "crop", "fill", "pad")
"""``stretch`` ignores the aspect ratio; ``crop`` covers the size and cuts the rest off evenly;
``fill`` fits inside and repeats the border pixels outward; ``pad`` fits inside on white."""

WHITE: Final = (255, 255, 255)
_JPEG_EXIF_BYTES = 65533  # a JPEG segment's length has 16 bits and counts itself
_TIFF_LONG, _TIFF_UNDEFINED = 4, 7  # types of TIFF entries


# ------------------------------ reading
def open_image(source: ImageLike) -> Image.Image:
    """The picture upright, as mode RGB, or RGBA when it has transparency.

    EXIF orientation is applied; 16-bit grey is reduced to 8 bits.

    Raises:
        ParameterError: no such file, no pixels, or an array of another shape, type or range.
        FormatError: the file is no picture, or is damaged.
    """
    if isinstance(source, np.ndarray):
        return _upright(_from_array(source))
    if not isinstance(source, (Image.Image, str, os.PathLike)):
        raise ParameterError(
            f"a picture must be a path, a PIL image or a numpy array, not {type(source).__name__}"
        )
    if isinstance(source, Image.Image) and 0 in source.size:
        raise ParameterError(f"the picture is empty: it has {source.width}x{source.height} pixels")
    try:
        if isinstance(source, Image.Image):
            return _upright(source)
        with Image.open(source) as image:
            return _upright(image)
    except FileNotFoundError as error:
        raise ParameterError(f"{source}: there is no such file") from error
    except MemoryError as error:
        raise OutOfMemoryError(f"{source}: no memory to read it; use a smaller picture") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise FormatError(f"{source}: not a readable picture ({error})") from error


def to_array(
    source: ImageLike, size: tuple[int, int] | None = None, resize_mode: str = "crop"
) -> Array:
    """One picture as float32 ``[1, 3, H, W]``, -1 to 1; transparency is laid on white.

    Args:
        source: the picture.
        size: ``(width, height)`` in pixels; None keeps the picture's.
        resize_mode: one of :data:`RESIZE_MODES`.

    Raises:
        ParameterError, FormatError: as :func:`open_image` and :func:`resize`.
    """
    image = on_white(open_image(source))
    if size is not None:
        image = resize(image, size, resize_mode)
    values = np.asarray(image, np.float32) / 255 * 2 - 1
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def to_mask(
    source: ImageLike, size: tuple[int, int] | None = None, resize_mode: str = "crop"
) -> Array:
    """A mask as float32 ``[1, 1, H, W]``, 0 (keep) to 1 (change).

    White is change. A picture with transparent parts is read as an erased one: those parts are to
    be changed, whatever their colour. Arguments and errors are those of :func:`to_array`.
    """
    grey = open_mask(source)
    if size is not None:
        grey = resize(grey, size, resize_mode)
    mask: Array = np.asarray(grey, np.float32)[None, None] / np.float32(255)
    return mask


def open_mask(source: ImageLike) -> Image.Image:
    """A mask as mode L, read as :func:`to_mask` says; errors are those of :func:`open_image`."""
    image = open_image(source)
    erased = image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255)
    return ImageOps.invert(image.getchannel("A")) if erased else image.convert("L")


def on_white(image: Image.Image) -> Image.Image:
    """The picture as RGB, transparent parts on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (*WHITE, 255))
    return Image.alpha_composite(background, image).convert("RGB")


# ------------------------------ shaping
def resize(image: Image.Image, size: tuple[int, int], mode: str = "crop") -> Image.Image:
    """Resize with Lanczos.

    Args:
        image: mode RGB or L.
        size: ``(width, height)`` in pixels, 1 to 65535 each.
        mode: one of :data:`RESIZE_MODES`.

    Raises:
        ParameterError: `size` or `mode` is out of range.
    """
    check_choice("resize_mode", mode, RESIZE_MODES)
    width, height = size
    if not (1 <= width <= 65535 and 1 <= height <= 65535):
        raise ParameterError(f"width and height must be 1 to 65535, not {width}x{height}")
    if image.size == (width, height):
        return image
    if mode == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if mode == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    scale = min(width / image.width, height / image.height)
    fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    inner = np.asarray(image.resize(fitted, Image.Resampling.LANCZOS))
    left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    borders = [(top, height - fitted[1] - top), (left, width - fitted[0] - left)]
    borders += [(0, 0)] * (inner.ndim - 2)
    if mode == "fill":
        return Image.fromarray(np.pad(inner, borders, "edge"))
    return Image.fromarray(np.pad(inner, borders, constant_values=255))


def to_pil(images: NDArray[Any]) -> list[Image.Image]:
    """Pictures from float ``[N, 3, H, W]``, -1 to 1; values beyond are clipped.

    Rounds as diffusers does: to the nearest of 256 levels, halves to the even one.

    Raises:
        ParameterError: another shape.
        NumericError: a value is NaN or infinite.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ParameterError(f"pictures must have the shape [N, 3, H, W]; found {images.shape}")
    if not np.isfinite(images).all():
        bad = sorted({int(n) for n in np.argwhere(~np.isfinite(images))[:, 0]})
        raise NumericError(f"picture {bad[0] + 1} of {len(images)} holds NaN or infinity")
    made = []
    for picture in images:
        levels = np.empty((*picture.shape[1:], 3), np.uint8)
        for channel, plane in enumerate(picture):  # large pictures: one plane at a time
            unit = np.clip(plane.astype(np.float32) / 2 + np.float32(0.5), 0, 1)
            levels[..., channel] = np.rint(unit * 255)
        made.append(Image.fromarray(levels))
    return made


# ------------------------------ writing
def save(
    image: Image.Image,
    path: str | os.PathLike[str],
    parameters: str | None = None,
    *,
    quality: int = 95,
    lossless: bool = False,
) -> Path:
    """Write a picture whole or not at all.

    It is written beside its final name and then renamed, so an interruption, a full disk or an
    error leaves the old file, or none.

    Args:
        image: the picture.
        path: ends in ``.png``, ``.jpg``, ``.jpeg`` or ``.webp``.
        parameters: generation parameters to embed, readable with
            :func:`sdengine.metadata.read_parameters` and by A1111: a PNG text chunk ``parameters``,
            else EXIF UserComment.
        quality: 1 to 100, for JPEG and lossy WebP.
        lossless: for WebP.

    Raises:
        ParameterError: the suffix or `quality` is out of range, or `parameters` do not fit.
        OutputError: the file cannot be written; nothing was left behind.
    """
    path = check_path("path", path)
    encode = _encoder(path)
    check_whole("quality", quality, 1, 100)
    text = None if parameters is None else parameters.encode("utf-8", "replace").decode()
    write_whole(path, lambda file: encode(image, file, text, quality, lossless))
    return path


def check_output(path: str | os.PathLike[str]) -> None:
    """Find out before the work whether :func:`save` can write there.

    Raises:
        ParameterError: the suffix is not supported.
        OutputError: the folder is missing, or nothing may be written in it.
    """
    path = check_path("path", path)
    _encoder(path)
    check_place(path)


def _encoder(path: Path) -> Callable[..., None]:
    encoder = _ENCODERS.get(path.suffix.lower())
    if encoder is None:
        found = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise ParameterError(
            f"{path}: found {found}; a picture's name must end in {', '.join(_ENCODERS)}"
        )
    return encoder


def _write_png(image: Image.Image, file: Any, text: str | None, _: int, __: bool) -> None:
    chunks = PngImagePlugin.PngInfo()
    if text is not None:
        chunks.add_text("parameters", text)  # iTXt where Latin-1 does not suffice
    image.save(file, "PNG", pnginfo=chunks)


def _write_jpeg(image: Image.Image, file: Any, text: str | None, quality: int, _: bool) -> None:
    exif = _exif(text)
    if len(exif) > _JPEG_EXIF_BYTES:
        raise ParameterError(
            f"the generation parameters take {len(exif)} bytes; JPEG holds at most "
            f"{_JPEG_EXIF_BYTES}. Save as .png or .webp"
        )
    on_white(image).save(file, "JPEG", quality=quality, exif=exif)


def _write_webp(
    image: Image.Image, file: Any, text: str | None, quality: int, lossless: bool
) -> None:
    image.save(file, "WEBP", quality=quality, lossless=lossless, exif=_exif(text))


_ENCODERS: Final[dict[str, Callable[..., None]]] = {
    ".png": _write_png,
    ".jpg": _write_jpeg,
    ".jpeg": _write_jpeg,
    ".webp": _write_webp,
}


def _exif(text: str | None) -> bytes:
    """An EXIF block with a UserComment, in the charset "UNICODE" and UTF-16 as A1111 writes it.

    Written by hand, because Pillow stores the comment as BYTE, where the standard (EXIF 2.3, 4.6.5)
    has UNDEFINED and other readers insist on it. A big-endian TIFF: header, a directory that points
    to the EXIF directory, that one with a single entry, the comment.
    """
    if text is None:
        return b""
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    main_at, exif_at, comment_at = 8, 26, 44
    header = b"MM\0*" + struct.pack(">I", main_at)
    main = struct.pack(">HHHIII", 1, ExifTags.IFD.Exif, _TIFF_LONG, 1, exif_at, 0)
    entry = (ExifTags.Base.UserComment, _TIFF_UNDEFINED, len(comment), comment_at)
    return b"Exif\0\0" + header + main + struct.pack(">HHHIII", 1, *entry, 0) + comment


# ------------------------------ sources
def _upright(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        limit = 1.0 if image.mode == "F" else 65535.0
        grey = np.clip(np.asarray(image, np.float64) / limit, 0, 1) * 255
        return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    shape: Sequence[int] = array.shape
    grey = len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
    if not (grey or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
        raise ParameterError(
            f"a picture array must have the shape [H, W], [H, W, 3] or [H, W, 4]; found {shape}"
        )
    if np.issubdtype(array.dtype, np.floating):
        if not (np.min(array) >= 0 and np.max(array) <= 1):  # false for NaN as well
            raise ParameterError("a float picture array must lie in 0 to 1; use uint8 for 0 to 255")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ParameterError(f"a picture array must be uint8 or float, not {array.dtype}")
    if grey:
        array = array.reshape(shape[:2])
    return Image.fromarray(np.ascontiguousarray(array))
