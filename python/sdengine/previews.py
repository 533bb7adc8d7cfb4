"""Rough pictures of latents without the autoencoder: one colour per latent, a linear map of its channels.

The tables are those that ComfyUI publishes (Comfy-Org/ComfyUI, ``comfy/latent_formats.py``); a model with its own
autoencoder brings a table that :func:`fit_factors` made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from sdengine.errors import ParameterError

Array = NDArray[np.float32]

METADATA_KEY = "sdengine.preview"
"""Where a model file keeps :meth:`Projection.numbers`."""

MAX_SIDE = 512
PIXELS_PER_LATENT = 8


@dataclass(frozen=True)
class Projection:
    """Colours as a linear map of a model's latents: ``latents @ factors + bias``, from -1 (black) to 1."""

    factors: tuple[tuple[float, float, float], ...]
    """One row (red, green, blue) per channel of the latents, as the denoiser sees them."""
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def numbers(self) -> list[float]:
        """The factors row by row, then the bias: 3 C + 3 values."""
        return [value for row in (*self.factors, self.bias) for value in row]

    @classmethod
    def of_numbers(cls, values: Sequence[float]) -> Projection:
        """The reverse of :meth:`numbers`.

        Raises:
            ParameterError: there are not 3 C + 3 finite numbers.
        """
        try:
            table = np.asarray(values, np.float64).reshape(-1)
        except (TypeError, ValueError):
            raise ParameterError(f"a preview table holds numbers, not {values!r:.80}") from None
        if table.size < 6 or table.size % 3 or not np.isfinite(table).all():
            raise ParameterError(
                f"a preview table has 3 finite numbers per channel and 3 more; found {table.size} values"
            )
        rows = [(float(r), float(g), float(b)) for r, g, b in table.reshape(-1, 3)]
        return cls(tuple(rows[:-1]), rows[-1])


def stored(metadata: Mapping[str, object]) -> Projection | None:
    """The projection that a model file brings, if any.

    Raises:
        ParameterError: what it brings is none.
    """
    values: Any = metadata.get(METADATA_KEY)
    return None if values is None else Projection.of_numbers(values)


_SD1 = Projection(
    (
        (0.3512, 0.2297, 0.3227),
        (0.3250, 0.4974, 0.2350),
        (-0.2829, 0.1762, 0.2721),
        (-0.2120, -0.2616, -0.7177),
    )
)
_SDXL = Projection(
    (
        (0.3651, 0.4232, 0.4341),
        (-0.2533, -0.0042, 0.1068),
        (0.1076, 0.1111, -0.0362),
        (-0.3165, -0.2492, -0.2188),
    ),
    (0.1084, -0.0175, -0.0011),
)
_SD3 = Projection(
    (
        (-0.0922, -0.0175, 0.0749),
        (0.0311, 0.0633, 0.0954),
        (0.1994, 0.0927, 0.0458),
        (0.0856, 0.0339, 0.0902),
        (0.0587, 0.0272, -0.0496),
        (-0.0006, 0.1104, 0.0309),
        (0.0978, 0.0306, 0.0427),
        (-0.0042, 0.1038, 0.1358),
        (-0.0194, 0.0020, 0.0669),
        (-0.0488, 0.0130, -0.0268),
        (0.0922, 0.0988, 0.0951),
        (-0.0278, 0.0524, -0.0542),
        (0.0332, 0.0456, 0.0895),
        (-0.0069, -0.0030, -0.0810),
        (-0.0596, -0.0465, -0.0293),
        (-0.1448, -0.1463, -0.1189),
    ),
    (0.2394, 0.2135, 0.1925),
)
_FLUX = Projection(
    (
        (-0.0346, 0.0244, 0.0681),
        (0.0034, 0.0210, 0.0687),
        (0.0275, -0.0668, -0.0433),
        (-0.0174, 0.0160, 0.0617),
        (0.0859, 0.0721, 0.0329),
        (0.0004, 0.0383, 0.0115),
        (0.0405, 0.0861, 0.0915),
        (-0.0236, -0.0185, -0.0259),
        (-0.0245, 0.0250, 0.1180),
        (0.1008, 0.0755, -0.0421),
        (-0.0515, 0.0201, 0.0011),
        (0.0428, -0.0012, -0.0036),
        (0.0817, 0.0765, 0.0749),
        (-0.1264, -0.0522, -0.1103),
        (-0.0280, -0.0881, -0.0499),
        (-0.1262, -0.0982, -0.0778),
    ),
    (-0.0329, -0.0718, -0.0851),
)

PROJECTIONS: dict[str, Projection] = {
    "sd1": _SD1,
    "sd2": _SD1,
    "sdxl": _SDXL,
    "kolors": _SDXL,
    "sd3": _SD3,
    "flux": _FLUX,
}
"""By the name of the family; SD2 has the autoencoder of SD1, Kolors that of SDXL."""


def preview(
    latents: ArrayLike,
    factors: ArrayLike,
    bias: ArrayLike = (0.0, 0.0, 0.0),
    *,
    scale: int = PIXELS_PER_LATENT,
    resample: Literal["bilinear", "nearest"] = "bilinear",
) -> list[Image.Image]:
    """Pictures of denoised latents, one per entry, at most 512 pixels along a side.

    Args:
        latents: ``[N, C, h, w]``, what the sampler calls denoised; values that are no numbers become black.
        factors: ``[C, 3]``.
        bias: ``[3]``.
        scale: pixels per latent, less where 512 pixels would be exceeded.
        resample: how the pictures are enlarged.

    Raises:
        ParameterError: shapes do not fit, or an argument is out of range.
    """
    values, table, offset = (np.asarray(a, np.float32) for a in (latents, factors, bias))
    if (
        values.ndim != 4
        or (*values.shape[1:2], 3) != table.shape
        or offset.shape != (3,)
        or 0 in values.shape
    ):
        raise ParameterError(
            f"a preview takes latents [N, C, h, w], factors [C, 3] and a bias [3]; found {values.shape}, {table.shape} "
            f"and {offset.shape}"
        )
    if scale < 1 or resample not in ("bilinear", "nearest"):
        raise ParameterError(
            f"scale must be 1 or more and resample bilinear or nearest; not {scale}, {resample!r}"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        colours = np.einsum("nchw,cd->nhwd", values, table) + offset
        bytes_ = np.clip(np.nan_to_num(colours, nan=-1.0) * 127.5 + 127.5, 0, 255).astype(np.uint8)
    height, width = values.shape[2:]
    ratio = min(float(scale), MAX_SIDE / max(height, width))
    size = (max(1, int(width * ratio)), max(1, int(height * ratio)))
    method = Image.Resampling.BILINEAR if resample == "bilinear" else Image.Resampling.NEAREST
    return [Image.fromarray(picture).resize(size, method) for picture in bytes_]


def fit_factors(latents: ArrayLike, images: ArrayLike) -> Projection:
    """The projection that comes nearest to given pictures, by least squares.

    Args:
        latents: ``[N, C, h, w]``, encoded and scaled as the denoiser sees them.
        images: the pictures they come from, uint8 ``[N, H, W, 3]``; H and W are multiples of h and w.

    Raises:
        ParameterError: shapes do not fit, or there are fewer latents than numbers to find.
    """
    values, pictures = np.asarray(latents, np.float64), np.asarray(images)
    if (
        values.ndim != 4
        or pictures.ndim != 4
        or pictures.shape[3] != 3
        or pictures.dtype != np.uint8
    ):
        raise ParameterError(
            f"expected latents [N, C, h, w] and uint8 images [N, H, W, 3]; found {values.shape} and {pictures.shape} "
            f"{pictures.dtype}"
        )
    count, channels, height, width = values.shape
    if (
        pictures.shape[0] != count
        or 0 in values.shape
        or pictures.shape[1] % height
        or pictures.shape[2] % width
    ):
        raise ParameterError(
            f"images {pictures.shape} do not fit latents {values.shape}: as many, H and W multiples of h and w"
        )
    if count * height * width <= channels:
        raise ParameterError(
            f"{count * height * width} latents are too few for {channels} channels; give more pictures"
        )
    blocks = pictures.reshape(
        count, height, pictures.shape[1] // height, width, pictures.shape[2] // width, 3
    )
    colours = blocks.mean(axis=(2, 4)).reshape(-1, 3) / 127.5 - 1
    rows = values.transpose(0, 2, 3, 1).reshape(-1, channels)
    solution = np.linalg.lstsq(np.column_stack([rows, np.ones(len(rows))]), colours, rcond=None)[0]
    return Projection.of_numbers([float(value) for value in solution.reshape(-1)])
