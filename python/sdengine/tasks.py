"""Where a run begins: noise, or a noisy picture; and what the denoiser sees of given pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import _core, images
from .autoencoder import Autoencoder
from .errors import ParameterError
from .families import Task
from .loading import ModelPlan
from .noise import start_noise
from .params import GenerateParameters
from .steps import Steps

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Pictures:
    """What the caller gave besides the prompt, in the size of the result.

    Attributes:
        image: float32 ``[N or 1, 3, H, W]`` in -1..1.
        mask: float32 ``[N or 1, 1, H, W]``, 0 (keep) to 1 (change).
        depth: float32 ``[N or 1, 1, H, W]``, any scale, near is large.
        resize_mode: how they were brought to that size.
    """

    image: Array | None = None
    mask: Array | None = None
    depth: Array | None = None
    resize_mode: str = "crop"

    @classmethod
    def read(
        cls, image: Any, mask: Any, depth: Any, width: int, height: int, mode: str
    ) -> Pictures:
        """Read what `Pipeline.generate` was given.

        Raises:
            ParameterError, FormatError: something is not a picture; see :mod:`sdengine.images`.
        """
        size = (width, height)

        def read(pictures: Any, convert: Any) -> Array | None:
            if pictures is None:
                return None
            listed = pictures if isinstance(pictures, list | tuple) else [pictures]
            if not listed:
                raise ParameterError("an empty list of pictures was given")
            return np.asarray(np.concatenate([convert(p, size, mode) for p in listed]), np.float32)

        return cls(
            read(image, images.to_array),
            read(mask, images.to_mask),
            read(depth, images.to_mask),
            mode,
        )

    def task(self, kind: Task) -> str | None:
        """What a model of that kind does with them, in words; None where none was given."""
        if self.depth is not None:
            return "depth"
        if self.mask is not None:
            return "inpainting"
        if self.image is not None:
            return "editing" if kind == "edit" else "image to image"
        return None

    @staticmethod
    def size_of(pictures: Any) -> tuple[int, int]:
        """Width and height of a given picture, the first of several."""
        listed = pictures if isinstance(pictures, list | tuple) else [pictures]
        if not listed:
            raise ParameterError("an empty list of pictures was given")
        return images.open_image(listed[0]).size

    @property
    def count(self) -> int:
        """Pictures of the longest list."""
        arrays = (self.image, self.mask, self.depth)
        return max((len(array) for array in arrays if array is not None), default=1)


@dataclass(frozen=True)
class Blend:
    """Sampling that changes a part of the picture only; arrays are ``[N, ., h, w]``."""

    original: Array
    noise: Array
    mask: Array
    """0 (keep) to 1 (change)."""


@dataclass(frozen=True)
class Start:
    """The first state of a run.

    Attributes:
        x: float32 ``[N, C, h, w]``, latents at the first noise level.
        noise_state: of the generators, behind the draws made here.
        picture: what the denoiser reads behind the latents' channels, ``[N, E, h, w]``.
        blend: set where a part of the picture is kept.
    """

    x: Array
    noise_state: bytes
    picture: Array | None = None
    blend: Blend | None = None


def noise_seeds(parameters: GenerateParameters) -> list[int]:
    """One seed per generator: one generator per picture, or one for the batch."""
    if parameters.conventions.batch == "per-image":
        return parameters.seeds
    return [parameters.seed]


class Beginning:
    """Makes the start of one run; the order of the draws is that of diffusers' pipelines."""

    def __init__(
        self,
        plan: ModelPlan,
        vae: Autoencoder,
        parameters: GenerateParameters,
        steps: Steps,
        cancel: _core.CancelToken,
    ) -> None:
        factor = plan.latents.factor
        self.plan, self.vae, self.parameters = plan, vae, parameters
        self.steps, self.cancel = steps, cancel
        self.shape = [
            parameters.batch_size,
            plan.latents.channels,
            parameters.height // factor,
            parameters.width // factor,
        ]
        self.source = _core.NormalSource(noise_seeds(parameters), parameters.noise)

    def from_state(self, pictures: Pictures, latents: Array) -> Start:
        """Go on from a state that another run left."""
        self._check_pictures(pictures)
        self._check_shape(latents)
        return Start(latents, self._noise_state(), self._picture(pictures))

    def from_noise(self, pictures: Pictures, latents: Array | None) -> Start:
        """Begin with noise, with a picture (image to image), or with a part of one (inpainting)."""
        task, whole = self.plan.task, self.parameters.strength == 1.0
        self._check_pictures(pictures)
        if pictures.image is None and not self.plan.family.starts_from_noise:
            raise ParameterError(
                f"{self.plan.title} improves what another model made: give image=, or latents= and"
                " denoising_start=, or give this model as refiner= to the other one's generate()"
            )
        if pictures.image is None and self.parameters.denoising_start is not None:
            raise ParameterError(
                "denoising_start goes on from another model's result: give it as latents= or image="
            )
        inpaints = pictures.mask is not None and task != "inpaint"
        original = None
        if (
            pictures.image is not None
            and task != "edit"
            and (inpaints or not (task == "inpaint" and whole))
        ):
            original = self._encoded(pictures.image)
        noise = self._noise() if latents is None else latents
        self._check_shape(noise)
        only_noise = original is None or (inpaints and whole)
        if only_noise:
            x = noise * np.float32(self.steps.initial_scale)
        else:
            assert original is not None
            x = self._noised(original, noise)
        blend = None
        if inpaints:
            assert original is not None
            assert pictures.mask is not None
            blend = Blend(
                original, noise, self._repeated(_shrunk(pictures.mask, self.plan.latents.factor))
            )
        picture = self._picture(pictures)
        return Start(x, self._noise_state(), picture, blend)

    def _check_pictures(self, pictures: Pictures) -> None:
        title, task = self.plan.title, self.plan.task
        needed = {"inpaint": ("image", "mask"), "edit": ("image",), "depth": ("depth",)}.get(
            task, ()
        )
        for name in needed:
            if getattr(pictures, name) is None:
                raise ParameterError(f"{title} needs {name}= besides the prompt")
        if pictures.mask is not None and pictures.image is None:
            raise ParameterError("a mask was given without the image that it belongs to")
        if pictures.mask is not None and task == "edit":
            raise ParameterError(f"{title} takes no mask")
        if pictures.depth is not None and task != "depth":
            raise ParameterError(f"{title} takes no depth map")
        if pictures.image is None and self.parameters.strength < 1.0:
            raise ParameterError("strength is for a given image; there is none")

    def _check_shape(self, latents: Array) -> None:
        if list(latents.shape) != self.shape:
            raise ParameterError(
                f"latents must have the shape {self.shape}, not {list(latents.shape)}"
            )

    def _noise(self) -> Array:
        parameters = self.parameters
        noise = self.source.normal(self.shape)
        if parameters.variation_strength == 0.0:
            return noise
        if parameters.variation_seed is None:
            raise ParameterError("variation_strength needs a variation_seed to mix in")
        return start_noise(
            self.shape,
            parameters.seed,
            kind=parameters.noise,
            batch=parameters.conventions.batch,
            variation_seed=parameters.variation_seed,
            variation_strength=parameters.variation_strength,
        )

    def _noise_state(self) -> bytes:
        """The generators that the sampler draws from."""
        if self.parameters.conventions.step_noise == "continued":
            return self.source.save()
        later = {"seed": 0, "seed+1": 1}[self.parameters.conventions.step_noise]
        seeds = [(seed + later) % 2**64 for seed in noise_seeds(self.parameters)]
        return _core.NormalSource(seeds, self.parameters.noise).save()

    def _encoded(self, image: Array) -> Array:
        """A sample of the picture's posterior, as diffusers takes it; the draws are this run's."""
        mean, deviation = self.vae.posterior(image, cancel=self.cancel)
        mean, deviation = self._repeated(mean), self._repeated(deviation)
        return np.asarray(mean + deviation * self.source.normal(self.shape), np.float32)

    def _noised(self, original: Array, noise: Array) -> Array:
        sigma = float(self.steps.schedule.sigmas[0])
        kept = np.float32(self.steps.prediction.latents_scale(sigma))
        return np.asarray(kept * original + np.float32(sigma) * noise, np.float32)

    def _picture(self, pictures: Pictures) -> Array | None:
        """What the denoiser reads behind the latents' channels."""
        task, factor = self.plan.task, self.plan.latents.factor
        if task == "inpaint":
            assert pictures.image is not None
            assert pictures.mask is not None
            hard = (pictures.mask >= 0.5).astype(np.float32)
            seen = self._encoded(pictures.image * (1.0 - hard))
            mask = self._repeated(np.ascontiguousarray(hard[:, :, ::factor, ::factor]))
            return np.concatenate([mask, seen], axis=1)
        if task == "edit":
            assert pictures.image is not None
            mean, _ = self.vae.posterior(pictures.image, cancel=self.cancel)
            # These models were trained on latents without the autoencoder's scale.
            return self._repeated(np.asarray(mean / self.vae.scale, np.float32))
        if task == "depth":
            assert pictures.depth is not None
            return self._repeated(_depth_map(pictures.depth, factor))
        return None

    def _repeated(self, array: Array) -> Array:
        """One entry for every picture."""
        count = self.parameters.batch_size
        if len(array) == count:
            return array
        if len(array) != 1:
            raise ParameterError(
                f"{len(array)} pictures were given for a batch of {count}; give one or as many"
            )
        return np.repeat(array, count, axis=0)


def _shrunk(mask: Array, factor: int) -> Array:
    """The mean of the mask over each latent: soft edges stay soft."""
    count, one, height, width = mask.shape
    cells = mask.reshape(count, one, height // factor, factor, width // factor, factor)
    return np.asarray(cells.mean(axis=(3, 5)), np.float32)


def _depth_map(depth: Array, factor: int) -> Array:
    """One value per latent, spread over -1..1 as the depth models were trained."""
    small = _shrunk(depth, factor)
    low = small.min(axis=(1, 2, 3), keepdims=True)
    span = small.max(axis=(1, 2, 3), keepdims=True) - low
    return np.asarray(2.0 * (small - low) / np.where(span > 0, span, 1.0) - 1.0, np.float32)


def pasted(pictures: Sequence[Any], given: Pictures) -> list[Any]:
    """Results over the given image by the mask: where it is 0, pixels are exactly the image's."""
    assert given.image is not None
    assert given.mask is not None
    result = []
    for i, picture in enumerate(pictures):
        original = np.asarray(images.to_pil(given.image[i % len(given.image)][None])[0], np.float32)
        mask = given.mask[i % len(given.mask)].transpose(1, 2, 0)
        blended = mask * np.asarray(picture, np.float32) + (1.0 - mask) * original
        result.append(Image.fromarray(np.rint(blended).astype(np.uint8)))
    return result
