"""Pictures as prompts: an IP-Adapter (Ye et al. 2023, arXiv 2308.06721) or FLUX.1 Redux in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import _core, images
from .errors import ParameterError
from .families.control import IMAGE_PROMPT
from .images import ImageLike
from .loading import ModelPlan
from .loading.image_prompt import plan_image_prompt
from .stores import make_store

Array = NDArray[np.float32]
AnyPath = str | PathLike[str]

# Mean and deviation of the colours that CLIP was trained on (openai/CLIP, `_transform`).
_MEAN = np.asarray([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.asarray([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class PictureTokens:
    """What cross-attentions read beside the text, one entry per picture of a batch.

    Attributes:
        positive: float32 ``[N, tokens, width]``, of the given pictures.
        negative: the same of no picture.
        scale: strength of what is read there.
    """

    positive: Array
    negative: Array
    scale: float

    def inputs(self, context: Array, negative: bool) -> dict[str, Array]:
        """The denoiser's inputs by name; values take the scale, as they are read by a linear layer."""
        tokens = self.negative if negative else self.positive
        scaled = tokens * np.float32(self.scale)
        return {"context": context, "image_keys": tokens, "image_values": scaled}


@dataclass(frozen=True)
class ContextTokens:
    """What the denoiser reads behind the positive text (Redux); the negative one stays alone.

    Attributes:
        tokens: float32 ``[N, tokens, width]``, with their strength as a factor, as ComfyUI has it.
    """

    tokens: Array

    def inputs(self, context: Array, negative: bool) -> dict[str, Array]:
        """The denoiser's context, ``[N, text + tokens, width]``."""
        whole = context if negative else np.concatenate([context, self.tokens], axis=1)
        return {"context": whole}


class LoadedImagePrompt:
    """An image prompt with its vision encoder, ready to run.

    Attributes:
        plan: where everything came from, and the denoiser that reads it.
    """

    def __init__(
        self,
        path: AnyPath,
        model: ModelPlan,
        device: _core.Device,
        encoder: AnyPath | None = None,
        weight_type: str | None = None,
    ) -> None:
        self.plan = plan_image_prompt(path, model, encoder)
        self.encoder, self.projection = (
            _core.Network(part.kind, dict(part.config), make_store(part, weight_type), device)
            for part in (self.plan.encoder, self.plan.projection)
        )

    def read(self, given: Mapping[str, Any], count: int) -> PictureTokens | ContextTokens | None:
        """The tokens of the options ``ip_images`` and ``ip_scale`` for `count` pictures; None at scale 0.

        Raises:
            ParameterError: pictures are missing or too many.
            FormatError: something is not a picture.
        """
        scale = 1.0 if given["ip_scale"] is None else given["ip_scale"]
        if scale == 0.0:
            return None
        pictures = given["ip_images"]
        if pictures is None:
            raise ParameterError(
                f"the model was loaded with {self.title}: give ip_images=, or ip_scale=0 to do without"
            )
        listed = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
        if len(listed) not in (1, count):
            raise ParameterError(
                f"{len(listed)} ip_images were given for a batch of {count}; give one or as many"
            )
        read = self._read(listed, count, scale)
        for network in self.networks.values():  # not read again until the next pictures
            network.rest()
        return read

    def _read(
        self, listed: Sequence[ImageLike], count: int, scale: float
    ) -> PictureTokens | ContextTokens:
        """The pictures through the networks."""
        side = int(self.plan.encoder.config["image_size"])
        if self.plan.is_context:
            pixels = np.concatenate([siglip_pixels(picture, side) for picture in listed])
            features = self.encoder.run({"pixels": pixels})
            tokens = self.projection.run(features)["tokens"] * np.float32(scale)
            return ContextTokens(_repeated(tokens, count))
        positive = self._tokens(np.concatenate([clip_pixels(p, side) for p in listed]), False)
        negative = self._tokens(np.zeros((1, 3, side, side), np.float32), True)
        return PictureTokens(_repeated(positive, count), _repeated(negative, count), float(scale))

    @property
    def networks(self) -> dict[str, _core.Network]:
        """The native networks by what they are."""
        return {"image_encoder": self.encoder, "image_projection": self.projection}

    @property
    def title(self) -> str:
        """In words."""
        return IMAGE_PROMPT.of_kind(self.plan.projection.kind).title

    def _tokens(self, pixels: Array, nothing: bool) -> Array:
        """No picture is a black one to a plus model, and an embedding of zeros to a base model (diffusers)."""
        plus = self.plan.is_plus
        if nothing and not plus:
            width = self.plan.encoder.config["projection_dim"]
            features = np.zeros((len(pixels), width), np.float32)
        else:
            seen = self.encoder.run({"pixels": pixels}, {"pooled": int(not plus)})
            features = seen["penultimate" if plus else "embedding"]
        return self.projection.run({"features": features}, {})["tokens"]


def clip_pixels(image: ImageLike, side: int = 224) -> Array:
    """A picture as CLIP reads it: the square in its middle, normalised; float32 ``[1, 3, side, side]``.

    Raises:
        ParameterError, FormatError: it is not a picture.
    """
    picture = images.on_white(images.open_image(image))
    shorter = min(picture.size)
    size = tuple(max(side, int(side * length / shorter)) for length in picture.size)
    picture = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = ((length - side) // 2 for length in size)
    square = picture.crop((left, top, left + side, top + side))
    values = (np.asarray(square, np.float32) / np.float32(255) - _MEAN) / _DEVIATION
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)


def siglip_pixels(image: ImageLike, side: int = 384) -> Array:
    """A picture as SigLIP reads it: the whole of it, stretched, -1..1; float32 ``[1, 3, side, side]``.

    Raises:
        ParameterError, FormatError: it is not a picture.
    """
    picture = images.on_white(images.open_image(image))
    values = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    unit = (values / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    return np.ascontiguousarray(unit.transpose(2, 0, 1)[None])


def _repeated(tokens: Array, count: int) -> Array:
    return tokens if len(tokens) == count else np.repeat(tokens, count, axis=0)
