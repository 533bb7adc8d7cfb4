"""The autoencoder of a loaded model: pictures to latents and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core, random
from .devices import available_memory
from .errors import ParameterError, WeightsError
from .loading import ComponentPlan
from .memory.kept import Kept, plainly
from .stores import make_store

Array = NDArray[np.float32]

# A picture is done whole if its activations fit into half of the memory that is free, and into this
# many bytes (1024 x 1024 pixels of the autoencoder of Stable Diffusion take 2.2 * 10^9).
MOST_BYTES = 3 * 10**9
# Otherwise in tiles of the largest of these sides, in latents, that fits; the last one at worst.
TILES = (128, 96, 64, 48, 32)
# For systems that do not tell how much memory is free.
ASSUMED_FREE_BYTES = 4 * 10**9

# Bounds of a posterior's log variance (Rombach et al. 2022, `DiagonalGaussianDistribution`).
_LOG_VARIANCE = (-30.0, 20.0)


class Autoencoder:
    """Pictures to latents and back: a KL autoencoder, or a tiny one (TAESD)."""

    def __init__(
        self,
        plan: ComponentPlan,
        factor: int,
        device: _core.Device,
        weight_type: str | None = None,
        part: str = "vae",
    ) -> None:
        self._part = part
        self.config: Mapping[str, Any] = plan.config
        self.factor = factor
        self.scale = float(plan.config["scaling_factor"])
        self.shift = float(plan.config["shift_factor"])
        # Per channel, for models whose latents were normalised so; see LatentFormat.
        self._mean = _per_channel(plan.config.get("latents_mean"), 0.0)
        self._deviation = _per_channel(plan.config.get("latents_std"), 1.0)
        self.kept: Kept = plainly
        self.most_encoding: int | None = None
        self.most_decoding: int | None = None
        """Bytes of activations that :meth:`encode` and :meth:`decode` may take before they cut a picture into tiles;
        None goes by what is free."""
        self._path = plan.path
        # A tiny autoencoder may come without its encoder.
        self.can_encode = plan.config.get("encoder_blocks") != []
        store, config = make_store(plan, weight_type), dict(plan.config)
        self.encoder = _core.Network(f"{plan.kind}_encoder", config, store, device)
        self.decoder = _core.Network(f"{plan.kind}_decoder", config, store, device)

    def decode(
        self,
        latents: Array,
        tile: int | None = None,
        cancel: _core.CancelToken | None = None,
        *,
        circular: int = 0,
    ) -> Array:
        """Latents to pictures.

        Args:
            latents: float32 ``[N, C, h, w]``, scaled as the denoiser sees them.
            tile: side of the tiles in latents, 8 to 1024; 0 for one piece, None for one piece where
                memory allows it (see docs/model-files.md).
            cancel: stops the run.
            circular: axes along which the picture wraps around: bit 1 is x, bit 2 is y.

        Returns:
            float32 ``[N, 3, 8 h, 8 w]``, in about -1..1.

        Raises:
            ParameterError: an argument is out of range, or a shape does not fit.
            NumericError: the autoencoder produced NaN or infinity.
        """
        shape = (1, *latents.shape[1:])
        centred = latents * self._deviation / self.scale + self.shift
        plain = np.ascontiguousarray(centred + self._mean, np.float32)

        def made_of_tiles() -> Array:
            most = self.most_decoding
            cut = _tiling(self.decoder, "latents", shape, 1, tile, circular, most)
            return _core.decode_latents(self.decoder, plain, self.factor, *cut, circular, cancel)

        made = self.kept(made_of_tiles, f"{self._part}_decoder")
        self.decoder.rest()
        return made

    def encode(
        self,
        image: Array,
        tile: int | None = None,
        cancel: _core.CancelToken | None = None,
        *,
        seed: int | None = None,
        circular: int = 0,
    ) -> Array:
        """Pictures to latents, scaled for the denoiser.

        Args:
            image: float32 ``[N, 3, H, W]`` in -1..1.
            tile: as for :meth:`decode`.
            cancel: stops the run.
            seed: None takes the mean of the posterior, a number draws from it, with ``seed + i`` for
                picture i; the noise equals that of torch's CPU generator. A tiny autoencoder has no
                posterior: it gives the same for every seed.
            circular: as for :meth:`decode`.

        Returns:
            float32 ``[N, C, H / 8, W / 8]``.

        Raises:
            WeightsError: the model came without an encoder.
            ParameterError: an argument is out of range, or a shape does not fit.
            NumericError: the autoencoder produced NaN or infinity.
        """
        mean, deviation = self.posterior(image, tile, cancel, circular=circular)
        if seed is None:
            return mean
        return np.asarray(mean + deviation * _noise(mean.shape, seed), np.float32)

    def posterior(
        self,
        image: Array,
        tile: int | None = None,
        cancel: _core.CancelToken | None = None,
        *,
        circular: int = 0,
    ) -> tuple[Array, Array]:
        """Mean and standard deviation of a picture's latents, scaled for the denoiser.

        The arguments and errors are those of :meth:`encode`; both results are float32
        ``[N, C, H / 8, W / 8]``. A tiny autoencoder's deviation is zero.
        """
        if not self.can_encode:
            raise WeightsError(
                f"{self._path} holds only the decoder of a tiny autoencoder, and a picture must be"
                " encoded. Load the model with vae=[encoder file, decoder file]"
            )
        shape = (1, *image.shape[1:])

        def made_of_tiles() -> Array:
            most = self.most_encoding
            cut = _tiling(self.encoder, "image", shape, self.factor, tile, circular, most)
            return _core.encode_image(self.encoder, image, self.factor, *cut, circular, cancel)

        made = self.kept(made_of_tiles, f"{self._part}_encoder")
        self.encoder.rest()
        channels = int(self.config["latent_channels"])
        factor = self.scale / self._deviation
        centred = made[:, :channels] - self.shift - self._mean
        mean = np.ascontiguousarray(centred * factor, np.float32)
        if made.shape[1] == channels:
            return mean, np.zeros_like(mean)
        deviation = np.exp(np.float32(0.5) * np.clip(made[:, channels:], *_LOG_VARIANCE))
        return mean, np.asarray(deviation * factor, np.float32)


def picture_bytes(count: int, height: int, width: int, activations: int) -> int:
    """Memory of the process that decoding `count` pictures of this size takes besides the network's `activations`.

    These have left when the pictures become bytes; 0 where they are not in the process.
    """
    pixels = height * width
    # Three channels in float32; for one of the pictures the tiles' weights, or a channel's rounding.
    decoded = count * pixels * 3 * 4 + pixels * 4 * 4
    # And in bytes, once more while they are checked.
    finished = count * pixels * 3 * (4 + 1 + 1)
    return max(decoded, finished - activations)


def _per_channel(values: Sequence[float] | None, otherwise: float) -> Array:
    """Numbers for channels, to be multiplied with ``[N, C, h, w]``."""
    return np.asarray(values or [otherwise], np.float32).reshape(1, -1, 1, 1)


def _noise(shape: Sequence[int], seed: int) -> Array:
    """One generator per picture, so that a batch equals single runs."""
    if not isinstance(seed, int):
        raise ParameterError(f"seed must be a whole number, not {seed!r}")
    return np.concatenate([random.normal([1, *shape[1:]], seed + i) for i in range(shape[0])])


def check_tile(tile: int | None) -> None:
    """Refuse what is no side of a tile.

    Raises:
        ParameterError: ``tile`` is neither None, 0 nor 8 to 1024.
    """
    if tile is not None and (not isinstance(tile, int) or (tile != 0 and not 8 <= tile <= 1024)):
        raise ParameterError(f"tile must be 0 (no tiles) or 8 to 1024 latents, not {tile!r}")


def _tiling(
    network: _core.Network,
    name: str,
    shape: Sequence[int],
    scale: int,
    tile: int | None,
    circular: int,
    most: int | None = None,
) -> tuple[int, int]:
    """Side and overlap of the tiles in latents; (0, 0) is one piece.

    Args:
        network: the half that runs.
        name: of its input.
        shape: of its input for one picture.
        scale: points of the input per latent.
        tile: what the caller asks for.
        circular: axes that wrap around.
        most: bytes of activations; None goes by what is free.
    """
    if tile is not None:
        check_tile(tile)
        return tile, tile // 4
    batch, channels, height, width = shape
    if most is None:
        # What an earlier run of this network still holds is used again.
        free = (available_memory() or ASSUMED_FREE_BYTES) + network.activation_bytes
        most = min(free // 2, MOST_BYTES)

    def fits(high: int, wide: int) -> bool:
        options = {"circular": circular}
        return network.planned_bytes({name: [batch, channels, high, wide]}, options) <= most

    if fits(height, width):
        return 0, 0
    sides = (side for side in TILES if fits(side * scale, side * scale))
    side = next(sides, TILES[-1])
    return side, side // 4
