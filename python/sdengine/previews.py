"""Pictures of a run that is not finished: a linear map of the latents, or an autoencoder.

The linear map gives one colour per latent and costs microseconds; a tiny autoencoder (TAESD, Ollin Boer Bohan,
github.com/madebyollin/taesd) shows what the picture will look like in a small part of a step's time.

The tables are those that ComfyUI publishes (Comfy-Org/ComfyUI, ``comfy/latent_formats.py``); a model with its own
autoencoder brings a table that :func:`fit_factors` made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from sdengine.checks import check_whole
from sdengine.errors import ParameterError
from sdengine.text_encoders.base import MAX_BATCH

if TYPE_CHECKING:
    from sdengine.events import StepEvent
    from sdengine.families import LatentFormat

Array = NDArray[np.float32]

METADATA_KEY = "sdengine.preview"
"""Where a model file keeps :meth:`Projection.numbers`."""

METHODS = ("linear", "tiny", "full")
"""``linear``: one colour per latent; ``tiny``: the autoencoder given as ``preview_vae``; ``full``: the model's own."""
_OTHER_NAMES = {
    "proj": "linear",
    "latent2rgb": "linear",
    "tae": "tiny",
    "taesd": "tiny",
    "vae": "full",
}
"""What stable-diffusion.cpp and ComfyUI call them."""

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

_PLAYGROUND = Projection(
    (
        (0.3920, 0.4054, 0.4549),
        (-0.2634, -0.0196, 0.0653),
        (0.0568, 0.1687, -0.0755),
        (-0.3112, -0.2359, -0.2076),
    )
)
_WAN = Projection(
    (
        (-0.1299, -0.1692, 0.2932),
        (0.0671, 0.0406, 0.0442),
        (0.3568, 0.2548, 0.1747),
        (0.0372, 0.2344, 0.1420),
        (0.0313, 0.0189, -0.0328),
        (0.0296, -0.0956, -0.0665),
        (-0.3477, -0.4059, -0.2925),
        (0.0166, 0.1902, 0.1975),
        (-0.0412, 0.0267, -0.1364),
        (-0.1293, 0.0740, 0.1636),
        (0.0680, 0.3019, 0.1128),
        (0.0032, 0.0581, 0.0639),
        (-0.1251, 0.0927, 0.1699),
        (0.0060, -0.0633, 0.0005),
        (0.3477, 0.2275, 0.2950),
        (0.1984, 0.0913, 0.1861),
    ),
    (-0.1835, -0.0868, -0.3360),
)

PROJECTIONS: dict[str, Projection] = {
    "sd1": _SD1,
    "sdxl": _SDXL,
    "playground": _PLAYGROUND,
    "sd3": _SD3,
    "flux": _FLUX,
    "wan": _WAN,
}
"""By the first model that had the autoencoder."""

_BY_LATENTS = {
    (4, 0.18215, False): "sd1",
    (4, 0.13025, False): "sdxl",
    (4, 0.5, True): "playground",
    (16, 1.5305, False): "sd3",
    (16, 0.3611, False): "flux",
    (16, 1.0, True): "wan",
}
"""Channels, scale, and whether each channel was normalised by itself: autoencoders that are known."""


def known(*formats: LatentFormat) -> Projection | None:
    """The published projection of the first of these latents that has one."""
    for latents in formats:
        name = _BY_LATENTS.get((latents.channels, round(latents.scale, 5), bool(latents.mean)))
        if name is not None:
            return PROJECTIONS[name]
    return None


def check_method(method: str) -> str:
    """The name of a method in :data:`METHODS`, from any program's.

    Raises:
        ParameterError: there is none of this name.
    """
    known = _OTHER_NAMES.get(method, method) if isinstance(method, str) else None
    if known is None or known not in METHODS:
        raise ParameterError(f"there is no preview {method!r}; choose one of {', '.join(METHODS)}")
    return known


class Frames:
    """A callback that keeps previews of a run: ``pipe.generate(..., callback=frames)``.

    Attributes:
        images: one picture per step that was looked at, of the first picture of the batch, or of `index`.
        steps: their numbers.
    """

    def __init__(
        self,
        every: int = 1,
        *,
        method: str | None = None,
        noisy: bool = False,
        index: int = 0,
    ) -> None:
        """Look at steps.

        Args:
            every: at each so many steps, and at the last one.
            method: see :meth:`sdengine.Pipeline.preview`.
            noisy: the state of the sampler instead of the picture that the denoiser believes in.
            index: which picture of a batch.

        Raises:
            ParameterError: an argument is out of range.
        """
        check_whole("every", every, 1, 1000, "steps")
        check_whole("index", index, 0, MAX_BATCH - 1)
        self._every, self._noisy, self._index = every, noisy, index
        self._method = None if method is None else check_method(method)
        self.images: list[Image.Image] = []
        self.steps: list[int] = []

    def __call__(self, event: StepEvent) -> None:
        """Look at a step.

        Raises:
            ParameterError: the model has no such preview, or the batch no such picture.
        """
        if not is_due(event.step, event.steps, self._every):
            return
        if self._index >= len(event.latents):
            raise ParameterError(
                f"index is {self._index}; a batch of {len(event.latents)} has pictures up to {len(event.latents) - 1}"
            )
        self.images.append(event.preview(self._method, noisy=self._noisy)[self._index])
        self.steps.append(event.step)


def is_due(step: int, steps: int, every: int) -> bool:
    """True at each `every`-th of `steps` steps, counted from 1, and at the last."""
    return step % every == 0 or step == steps


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
