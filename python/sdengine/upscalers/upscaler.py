"""A loaded upscaler: pictures in, larger pictures out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdengine import _core
from sdengine.devices import available_memory, open_device
from sdengine.errors import ParameterError
from sdengine.images import ImageLike, on_white, open_image
from sdengine.memory.kept import Kept, plainly
from sdengine.stores import make_store
from sdengine.upscalers.plan import UpscalerPlan, plan_upscaler

Array = NDArray[np.float32]

DEFAULT_OVERLAP = 32
"""Pixels; the middle half is blended, so that an edge that lacks its surroundings is not seen."""

LARGEST_SCALE = 32.0

# A picture is done whole if its activations fit into half of the memory that is free, and into this
# many bytes; otherwise in tiles of the largest of these sides, in pixels, that fits.
_MOST_BYTES = 3 * 10**9
_ASSUMED_FREE_BYTES = 4 * 10**9
TILES = (512, 384, 256, 192, 128, 96, 64)
_SMALLEST_TILE, _LARGEST_TILE = 16, 4096


class Upscaler:
    """An upscaler ready to run; made by :func:`sdengine.load_upscaler`.

    Attributes:
        plan: what the file was found to be, and where its parameters lie.
        network: the native network.
        device: where it runs.
        most: bytes of activations that a picture may take before it is done in tiles; None goes by what is free.
        kept: runs it again in less memory where memory ran out.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        device: str = "auto",
        threads: int = 0,
        *,
        on: _core.Device | None = None,
    ) -> None:
        """Open it; `on` is a device that is open already, instead of `device`."""
        self.plan: UpscalerPlan = plan_upscaler(path)
        self.device = open_device(device, threads) if on is None else on
        self.network = _core.Network(
            self.plan.network.kind,
            dict(self.plan.network.config),
            make_store(self.plan.network),
            self.device,
        )
        self.most: int | None = None
        self.kept: Kept = plainly
        self._running: set[_core.CancelToken] = set()
        self._named = (device, threads)

    def __reduce__(self) -> tuple[Any, ...]:
        return Upscaler, (self.plan.network.path, *self._named)

    def __repr__(self) -> str:
        return f"<sdengine.Upscaler x{self.scale} from {str(self.plan.network.path)!r}>"

    @property
    def scale(self) -> int:
        """How many times as wide and high the network makes a picture; 1 for restoration."""
        return self.plan.scale

    def cancel(self) -> None:
        """Stop every call that is running; each raises :class:`sdengine.Cancelled`."""
        for token in list(self._running):
            token.cancel()

    @overload
    def upscale(
        self,
        image: ImageLike,
        tile: int | None = ...,
        scale: float | None = ...,
        *,
        overlap: int | None = ...,
        cancel: _core.CancelToken | None = ...,
    ) -> Image.Image: ...

    @overload
    def upscale(
        self,
        image: list[ImageLike],
        tile: int | None = ...,
        scale: float | None = ...,
        *,
        overlap: int | None = ...,
        cancel: _core.CancelToken | None = ...,
    ) -> list[Image.Image]: ...

    def upscale(
        self,
        image: ImageLike | list[ImageLike],
        tile: int | None = None,
        scale: float | None = None,
        *,
        overlap: int | None = None,
        cancel: _core.CancelToken | None = None,
    ) -> Image.Image | list[Image.Image]:
        """Make a picture larger.

        Args:
            image: a PIL picture, a path, or an array (uint8 ``[H, W, 3]``, or float 0..1); or a list of them, of
                any sizes. Transparency is enlarged by the same network.
            tile: side of the tiles in pixels of `image`, 16 to 4096; 0 for one piece, None for one piece where
                memory allows it. The memory taken follows the tile, not the picture.
            scale: width and height of the result in those of `image`, above 0 and up to 32; the network's own size
                is brought to it with Lanczos' filter. None is the network's own.
            overlap: pixels by which tiles overlap, at most half of a tile; None is 32 or a quarter of the tile,
                whichever is less.
            cancel: stops the call, besides :meth:`cancel`.

        Returns:
            The picture (mode RGB, or RGBA where `image` has transparency); a list for a list.

        Raises:
            ParameterError: an argument is out of range, or there is no such file.
            FormatError: the file is no picture.
            NumericError: the network produced NaN or infinity.
            Cancelled: :meth:`cancel` was called.
        """
        factor = _checked_scale(scale, self.scale)
        with self._token(cancel) as token:
            if isinstance(image, list):
                return [self._one(each, tile, overlap, factor, token) for each in image]
            return self._one(image, tile, overlap, factor, token)

    def release(self) -> None:
        """Give memory back until the next picture: weights and activations."""
        self.network.rest()

    @contextmanager
    def _token(self, given: _core.CancelToken | None) -> Iterator[_core.CancelToken]:
        token = given or _core.CancelToken()
        self._running.add(token)
        try:
            yield token
        finally:
            self._running.discard(token)

    def _one(
        self,
        source: ImageLike,
        tile: int | None,
        overlap: int | None,
        factor: float,
        token: _core.CancelToken,
    ) -> Image.Image:
        image = open_image(source)
        if not (image.width and image.height):
            raise ParameterError(
                f"the picture is {image.width} x {image.height} pixels; expected one at least"
            )

        def enlarged(layer: Image.Image) -> Image.Image:
            def made_of_tiles() -> Image.Image:
                side, shared = self._tiling(image.size, tile, overlap)
                return self._layer(layer, side, shared, token)

            return self.kept(made_of_tiles, "upscaler")

        result = enlarged(image.convert("RGB") if image.mode == "RGBA" else on_white(image))
        if image.mode == "RGBA":
            result.putalpha(enlarged(image.getchannel("A")).convert("L"))
        size = tuple(max(1, round(length * factor)) for length in image.size)
        if size != result.size:
            result = result.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        return result

    def _layer(
        self, image: Image.Image, side: int, overlap: int, token: _core.CancelToken
    ) -> Image.Image:
        """One picture, colour or grey, at the network's own scale."""
        mode = "RGB" if self.plan.channels == 3 else "L"
        values = np.asarray(image.convert(mode), np.float32) / np.float32(255)
        planes = values.reshape(*values.shape[:2], self.plan.channels).transpose(2, 0, 1)[None]
        made = self._enlarged(planes, side, overlap, token)
        pixels = np.empty((*made.shape[2:], self.plan.channels), np.uint8)
        for channel, plane in enumerate(made[0]):  # in place: these are the largest arrays here
            np.clip(plane, 0, 1, out=plane)
            plane *= 255
            pixels[..., channel] = np.rint(plane, out=plane)
        return Image.fromarray(np.squeeze(pixels, 2) if mode == "L" else pixels).convert("RGB")

    def _enlarged(self, planes: Array, side: int, overlap: int, token: _core.CancelToken) -> Array:
        """The network over float32 ``[1, C, H, W]`` in 0..1."""
        height, width = planes.shape[2:]
        # Whole pictures are brought to the grid by the network itself, and in the same way.
        grid = self.plan.grid if side else 1
        room = [(0, 0), (0, 0), (0, -height % grid), (0, -width % grid)]
        padded = np.ascontiguousarray(np.pad(planes, room, mode="reflect"), np.float32)
        tile = -(-side // grid)
        shared = min(-(-overlap // grid), tile // 2)
        made = _core.upscale_image(self.network, padded, self.scale, grid, tile, shared, token)
        return made[:, :, : height * self.scale, : width * self.scale]

    def _tiling(
        self, size: tuple[int, int], tile: int | None, overlap: int | None
    ) -> tuple[int, int]:
        """Side and overlap of the tiles; a side of 0 is one piece."""
        if tile is None:
            side = 0 if self._fits(*size) else next(filter(self._fits, TILES), TILES[-1])
        elif isinstance(tile, int) and (tile == 0 or _SMALLEST_TILE <= tile <= _LARGEST_TILE):
            side = tile
        else:
            raise ParameterError(
                f"tile must be 0 (no tiles) or {_SMALLEST_TILE} to {_LARGEST_TILE} pixels, not"
                f" {tile!r}"
            )
        most = side // 2 if side else max(size)
        if overlap is None:
            return side, min(DEFAULT_OVERLAP, side // 4)
        if not isinstance(overlap, int) or not 0 <= overlap <= most:
            raise ParameterError(
                f"overlap must be 0 to {most} pixels (half of a tile), not {overlap!r}"
            )
        return side, overlap if side else 0

    def _fits(self, width: int, height: int | None = None) -> bool:
        """Whether a picture of this size (a square without `height`) can be done in one piece."""
        most = self.most
        if most is None:
            # What an earlier run still holds is used again.
            free = (available_memory() or _ASSUMED_FREE_BYTES) + self.network.activation_bytes
            most = min(free // 2, _MOST_BYTES)
        shape = [1, self.plan.channels, height or width, width]
        return self.network.planned_bytes({"image": shape}, {}) <= most


def _checked_scale(scale: float | None, own: int) -> float:
    if scale is None:
        return own
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise ParameterError(f"scale must be a number, not {scale!r}")
    if not 0 < scale <= LARGEST_SCALE:  # false for NaN as well
        raise ParameterError(f"scale must be above 0 and at most {LARGEST_SCALE:g}, not {scale!r}")
    return float(scale)


def load_upscaler(path: str | PathLike[str], *, device: str = "auto", threads: int = 0) -> Upscaler:
    """Load an upscaler: ESRGAN, Real-ESRGAN (also compact), or SwinIR. Weights are mapped, not read.

    Args:
        path: a safetensors or ``.pth`` file.
        device: a name from :func:`sdengine.devices`, or ``"auto"``.
        threads: CPU threads; 0 takes one per physical core.

    Returns:
        An upscaler, ready to run.

    Raises:
        FormatError: the file is damaged.
        UnsupportedModelError: the file is something else; the message says what.
        WeightsError: a parameter is missing or does not fit.
    """
    return Upscaler(path, device, threads)
