"""ControlNets of diffusion transformers: what they read of a picture, and how their residuals are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .families import LatentFormat
from .picture_inputs import PictureEncoder

Array = NDArray[np.float32]

KINDS = ("mmdit_controlnet", "flux_controlnet")
FLUX_TYPES: Mapping[str, int] = {
    "canny": 0,
    "tile": 1,
    "depth": 2,
    "blur": 3,
    "openpose": 4,
    "pose": 4,
    "gray": 5,
    "lq": 6,
}
"""What a ControlNet-Union for FLUX.1 is told about a control picture (InstantX and Shakker Labs; "lq" is a picture of
low quality)."""
SD3_TYPES = ("blur", "canny", "depth")
"""Stability AI's ControlNets for Stable Diffusion 3.5 Large; only "canny" is read differently."""
_USUAL_GUIDANCE = 3.5
"""For a network that reads guidance beside a denoiser that does not (FLUX.1 dev's usual one)."""


@dataclass(frozen=True)
class DiTControl:
    """What is particular to one ControlNet of a diffusion transformer.

    Attributes:
        kind: of the native network, one of :data:`KINDS`.
        config: its hyper-parameters.
        latents: of the model that it steers.
        edges: Stability AI's for edges: it was trained on pictures of 0.5 to 128 in place of -1 to 1.
        tells_guidance: the denoiser does not read guidance and the network does.
    """

    kind: str
    config: Mapping[str, Any]
    latents: LatentFormat
    edges: bool
    tells_guidance: bool

    @property
    def reads_pixels(self) -> bool:
        """XLabs' networks see the picture itself, the others its latents."""
        return bool(self.config.get("hint_block_channels"))

    @property
    def inpaints(self) -> bool:
        """It reads what is kept, in latents, and which of them."""
        return not self.reads_pixels and self.config["hint_channels"] > self.config["in_channels"]

    def encoded(
        self, picture: Array, mask: Array | None, encoder: PictureEncoder, path: object
    ) -> Array | None:
        """The latents of a control picture ``[N or 1, 3, H, W]`` in 0..1; None if it reads pixels.

        `mask`, ``[N or 1, 1, H, W]``, 1 where the picture changes, is that of the run.

        For FLUX.1 a sample of the posterior, as in diffusers' pipeline, which draws it from the run's generators
        before the noise. For Stable Diffusion 3, whose pipeline draws outside of them, the posterior's mode.

        Raises:
            ParameterError: the network is for inpainting and there is no mask, or the number of pictures does not fit.
        """
        if self.inpaints:
            if mask is None:
                raise ParameterError(
                    f"{path} is a ControlNet for inpainting: give image= and mask=, and the same picture in"
                    " control_images="
                )
            return self._kept(picture, mask, encoder)
        if self.reads_pixels:
            return None
        if self.kind == "flux_controlnet":
            return encoder.sample(centred(picture))
        # The published preprocessing, a slip that the network was trained with.
        seen = picture * np.float32(127.5) + np.float32(0.5) if self.edges else centred(picture)
        latents = encoder.mode(np.asarray(seen, np.float32))
        if self.config["zero_pooled"]:  # InstantX trained on latents that are not shifted
            latents = latents + np.float32(self.latents.shift * self.latents.scale)
        return np.asarray(latents, np.float32)

    def _kept(self, picture: Array, mask: Array, encoder: PictureEncoder) -> Array:
        """The latents of a picture that is black below the mask, and one channel that is 1 where it is kept."""
        kept, factor = (mask < 0.5).astype(np.float32), self.latents.factor
        seen = np.where(kept, centred(picture), np.float32(-1.0))
        parts = [
            encoder.mode(np.asarray(seen, np.float32)),
            encoder.repeated(kept[:, :, ::factor, ::factor]),
        ]
        return np.asarray(np.concatenate(parts, axis=1), np.float32)

    def inputs(self, count: int) -> dict[str, Array]:
        """Inputs that do not depend on the picture, for a batch of `count`."""
        if self.config.get("zero_pooled"):
            return {"pooled": np.zeros((count, self.config["pooled_width"]), np.float32)}
        if self.tells_guidance:
            return {"guidance": np.full(count, _USUAL_GUIDANCE, np.float32)}
        return {}

    @property
    def shared(self) -> list[str]:
        """The denoiser's inputs that the network reads too."""
        names = ["timesteps", "pooled"]
        if self.config["context_width"]:
            names.append("context")
        if self.config.get("guidance"):
            names.append("guidance")
        return names

    @property
    def residuals(self) -> list[str]:
        """The names of what it leaves, from the first block to the last (block_residuals.h)."""
        layers, single = self.config["layers"], self.config.get("single_layers", 0)
        order = "every" if self.reads_pixels else "of"
        return [
            *(f"control_{i}_{order}_{layers}" for i in range(layers)),
            *(f"control_single_{i}_of_{single}" for i in range(single)),
        ]


def centred(picture: Array) -> Array:
    """0..1 to -1..1, as autoencoders and XLabs' networks read it."""
    return np.asarray(picture * 2.0 - 1.0, np.float32)


def check_type(kind: str, config: Mapping[str, Any], name: str | None, path: object) -> int | None:
    """The number of a union's type for `name`; None for other networks.

    Raises:
        ParameterError: a union was given without one that it knows, or another network with one.
    """
    tasks = config.get("tasks", 0)
    if tasks:
        known = [known for known, task in FLUX_TYPES.items() if task < tasks]
        if name not in known:
            raise ParameterError(
                f"{path} is a ControlNet-Union: give it as sdengine.ControlNet(path, type=...) with"
                f" one of {', '.join(known)}, not {name!r}"
            )
        return FLUX_TYPES[name]
    takes_type = kind == "mmdit_controlnet" and not config["context_width"]
    if name is not None and not (takes_type and name in SD3_TYPES):
        also = f", or give one of {', '.join(SD3_TYPES)}" if takes_type else ""
        raise ParameterError(f"{path} is no ControlNet-Union: leave its type out{also}")
    return None
