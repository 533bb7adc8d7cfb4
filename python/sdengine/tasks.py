"""Where a run begins: noise, or a noisy picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from .masks import Frame, listed, surroundings
from .noise import start_noise
from .params import GenerateParameters
from .picture_inputs import CHANNELS, PictureEncoder, Reference, shrunk
from .steps import Steps

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Pictures:
    """What the caller gave besides the prompt, in the size of the generated picture.

    Attributes:
        image: float32 ``[N or 1, 3, H, W]`` in -1..1.
        mask: float32 ``[N or 1, 1, H, W]``, 0 (keep) to 1 (change).
        depth: float32 ``[N or 1, 1, H, W]``, any scale, near is large.
        control: what a control model follows, as `image`.
        references: what an editing model looks at, each in a size of its own.
        resize_mode: how the others were brought to that size.
        frames: where there is a mask: what the generated pictures are put back into, one or N.
        outpainted: they are canvases around smaller ones.
        latents: float32 ``[N, C, h, w]``, clean, to start from in place of `image` (a hires pass).
    """

    image: Array | None = None
    mask: Array | None = None
    depth: Array | None = None
    resize_mode: str = "crop"
    control: Array | None = None
    references: tuple[Reference, ...] = ()
    frames: tuple[Frame, ...] = ()
    outpainted: bool = False
    latents: Array | None = None

    @classmethod
    def read(
        cls,
        image: Any,
        mask: Any,
        depth: Any,
        width: int,
        height: int,
        mode: str,
        *,
        control: Any = None,
        references: tuple[Reference, ...] = (),
    ) -> Pictures:
        """Read what `Pipeline.generate` was given.

        Raises:
            ParameterError, FormatError: something is not a picture; see :mod:`sdengine.images`.
        """
        size = (width, height)

        def read(pictures: Any, convert: Any) -> Array | None:
            if pictures is None:
                return None
            return _stacked([convert(p, size, mode) for p in listed(pictures)])

        return cls(
            read(image, images.to_array),
            read(mask, images.to_mask),
            read(depth, images.to_mask),
            mode,
            read(control, images.to_array),
            references,
        )

    @classmethod
    def framed(
        cls, frames: Sequence[Frame], depth: Any, mode: str, *, outpainted: bool = False
    ) -> Pictures:
        """A part of a picture, or of several; a depth map is cut as they were."""
        found = None
        if depth is not None:
            maps = [images.open_mask(picture) for picture in listed(depth)]
            found = _stacked([images.to_mask(cut) for cut in _cut(frames, maps, mode)])
        image = _stacked([frame.image() for frame in frames])
        mask = _stacked([frame.coverage() for frame in frames])
        return cls(image, mask, found, mode, frames=tuple(frames), outpainted=outpainted)

    def fitted(self, pictures: Sequence[Any]) -> list[Array]:
        """Others that belong to the given ones, cut like them: float32 ``[1, 3, H, W]`` each, -1..1."""
        plain = [images.on_white(images.open_image(picture)) for picture in pictures]
        return [images.to_array(cut) for cut in _cut(self.frames, plain, self.resize_mode)]

    def task(self, kind: Task) -> str | None:
        """What a model of that kind does with them, in words; None where none was given."""
        if self.depth is not None:
            return "depth"
        if self.outpainted:
            return "outpainting"
        if self.mask is not None:
            return "inpainting"
        if self.image is not None:
            return "editing" if kind == "edit" else "image to image"
        if self.references:
            return "editing by reference"
        return None if self.control is None else "control"

    @staticmethod
    def size_of(pictures: Any) -> tuple[int, int]:
        """Width and height of a given picture, the first of several."""
        return images.open_image(listed(pictures)[0]).size

    @property
    def count(self) -> int:
        """Pictures of the longest list."""
        arrays = (self.image, self.mask, self.depth, self.control)
        return max((len(array) for array in arrays if array is not None), default=1)


@dataclass(frozen=True)
class Blend:
    """Sampling that changes a part of the picture only; arrays are ``[N, ., h, w]``."""

    original: Array
    noise: Array
    mask: Array
    """0 (keep) to 1 (change)."""
    differential: bool = False
    """The mask says how much of the run changes each latent, not how much of the result is new."""


@dataclass(frozen=True)
class Start:
    """The first state of a run.

    Attributes:
        x: float32 ``[N, C, h, w]``, latents at the first noise level.
        noise_state: of the generators, behind the draws made here.
        picture: what the denoiser reads behind the latents' channels, ``[N, E, h, w]``.
        blend: set where a part of the picture is kept.
        references: latents of the pictures that the denoiser looks at, each ``[N, C, any, any]``.
    """

    x: Array
    noise_state: bytes
    picture: Array | None = None
    blend: Blend | None = None
    references: tuple[Array, ...] = ()


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
        self.plan, self.parameters = plan, parameters
        self.steps = steps
        self.shape = [
            parameters.batch_size,
            plan.latents.channels,
            parameters.height // factor,
            parameters.width // factor,
        ]
        self.source = _core.NormalSource(noise_seeds(parameters), parameters.noise)
        self.encoder = PictureEncoder(vae, self.shape, self.source, cancel)
        self.channels = CHANNELS.get(plan.task)

    def from_state(self, pictures: Pictures, latents: Array) -> Start:
        """Go on from a state that another run left."""
        self._check_pictures(pictures)
        self._check_shape(latents)
        blend, references = None, self._references(pictures)
        if pictures.image is not None and pictures.mask is not None and self.plan.task != "inpaint":
            blend = self._blend(self.encoder.sample(pictures.image), self._noise(), pictures)
        return Start(latents, self._noise_state(), self._picture(pictures), blend, references)

    def from_noise(self, pictures: Pictures, latents: Array | None) -> Start:
        """Begin with noise, with a picture (image to image), or with a part of one (inpainting)."""
        task, whole = self.plan.task, self.parameters.strength == 1.0
        self._check_pictures(pictures)
        original = pictures.latents
        if pictures.image is None and original is None and not self.plan.family.starts_from_noise:
            raise ParameterError(
                f"{self.plan.title} improves what another model made: give image=, or latents= and"
                " denoising_start=, or give this model as refiner= to the other one's generate()"
            )
        if pictures.image is None and self.parameters.denoising_start is not None:
            raise ParameterError(
                "denoising_start goes on from another model's result: give it as latents= or image="
            )
        references = self._references(pictures)
        first = self.channels is not None and self.channels.before_noise
        picture = self._picture(pictures) if first else None
        inpaints = pictures.mask is not None and task != "inpaint"
        only_noise = whole and inpaints and not self.parameters.differential
        if original is None:
            only_noise |= pictures.image is None or task == "edit" or (whole and task == "inpaint")
        if (
            original is None
            and pictures.image is not None
            and task != "edit"
            and (inpaints or not only_noise)
        ):
            # diffusers' pipelines take a sample, but for models that look at their pictures
            encode = self.encoder.mode if task == "reference" else self.encoder.sample
            original = encode(pictures.image if only_noise else self._filled(pictures))
        elif task == "inpaint" and self.plan.family.draws_kept_image and latents is None:
            self.source.normal(self.shape)
        noise = self._noise() if latents is None else latents
        self._check_shape(noise)
        if only_noise:
            x = noise * np.float32(self.steps.initial_scale)
        else:
            assert original is not None
            x = self._noised(self._emptied(original, noise, pictures), noise)
        blend = None
        if inpaints:
            assert original is not None
            blend = self._blend(original, noise, pictures)
        if not first:
            picture = self._picture(pictures)
        return Start(x, self._noise_state(), picture, blend, references)

    def _blend(self, original: Array, noise: Array, pictures: Pictures) -> Blend:
        mask = self._latent_mask(pictures)
        return Blend(original, noise, mask, self.parameters.differential)

    def _latent_mask(self, pictures: Pictures) -> Array:
        assert pictures.mask is not None
        return self.encoder.repeated(shrunk(pictures.mask, self.plan.latents.factor))

    def _filled(self, pictures: Pictures) -> Array:
        """The picture, with the surrounding colours below the mask where that was asked for."""
        assert pictures.image is not None
        if pictures.mask is None or self.parameters.mask_fill != "blur":
            return pictures.image
        filled = surroundings(pictures.image, pictures.mask)
        return np.asarray(filled + (1.0 - pictures.mask) * (pictures.image - filled), np.float32)

    def _emptied(self, original: Array, noise: Array, pictures: Pictures) -> Array:
        """Latents with noise, or with nothing, below the mask where that was asked for."""
        fill = self.parameters.mask_fill
        if fill not in ("noise", "nothing"):
            return original
        mask = self._latent_mask(pictures)
        new = noise if fill == "noise" else np.zeros_like(noise)
        return np.asarray((1.0 - mask) * original + mask * new, np.float32)

    def _check_pictures(self, pictures: Pictures) -> None:
        title, task = self.plan.title, self.plan.task
        for name in () if self.channels is None else self.channels.needed:
            if getattr(pictures, name) is None:
                raise ParameterError(f"{title} needs {name}= besides the prompt")
        if pictures.mask is not None and pictures.image is None:
            raise ParameterError("a mask was given without the image that it belongs to")
        if pictures.mask is not None and task == "edit":
            raise ParameterError(f"{title} takes no mask")
        if self.parameters.differential and task == "inpaint":
            raise ParameterError(
                f"{title} reads a mask that is black or white: leave differential out, or use an"
                " ordinary model"
            )
        if pictures.depth is not None and task != "depth":
            raise ParameterError(f"{title} takes no depth map")
        given = pictures.image is not None or pictures.latents is not None
        if not given and self.parameters.strength < 1.0:
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

    def _noised(self, original: Array, noise: Array) -> Array:
        sigma = float(self.steps.schedule.sigmas[0])
        kept = np.float32(self.steps.prediction.latents_scale(sigma))
        return np.asarray(kept * original + np.float32(sigma) * noise, np.float32)

    def _picture(self, pictures: Pictures) -> Array | None:
        """What the denoiser reads behind the latents' channels."""
        if self.channels is None:
            return None
        return self.channels.read(self.encoder, pictures, self.plan)

    def _references(self, pictures: Pictures) -> tuple[Array, ...]:
        """Latents of the pictures that the denoiser looks at; nothing is drawn for them."""
        return tuple(self.encoder.mode(reference.pixels()) for reference in pictures.references)


def _stacked(arrays: Sequence[Array]) -> Array:
    return np.asarray(np.concatenate(arrays), np.float32)


def _cut(
    frames: Sequence[Frame], pictures: Sequence[Image.Image], mode: str
) -> Iterator[Image.Image]:
    """Pictures that belong to the given ones, one for all or one for each, brought to their size and cut like them."""
    for i in range(max(len(frames), len(pictures))):
        frame, picture = frames[i % len(frames)], pictures[i % len(pictures)]
        height, width = frame.mask.shape
        yield frame.cut(images.resize(picture, (width, height), mode))
