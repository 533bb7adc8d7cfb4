"""What a denoiser reads of given pictures besides its noisy latents.

Some read further channels behind the latents (masks, masked pictures, depth, pictures to follow), others look at
whole pictures beside them (references). Which, says the model's task; how, its family's data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import _core, images
from .autoencoder import Autoencoder
from .checks import check_flag
from .errors import ParameterError
from .families.settings import References
from .loading import ModelPlan

if TYPE_CHECKING:
    from .tasks import Pictures

Array = NDArray[np.float32]


# ------------------------------ references
@dataclass(frozen=True)
class Reference:
    """A picture to look at.

    Attributes:
        picture: as it was given, upright, mode RGB.
        size: width and height in which the denoiser sees it.
    """

    picture: Image.Image
    size: tuple[int, int]

    def pixels(self) -> Array:
        """float32 ``[1, 3, H, W]`` in -1..1; shapes differ so little that stretching is what diffusers does."""
        return images.to_array(self.picture, self.size, "stretch")


def take_references(plan: ModelPlan, given: dict[str, Any]) -> tuple[Reference, ...]:
    """The references among the options of a generation; what was read is taken out of `given`.

    To a model that edits by reference, ``image`` is the same as ``references``; beside a mask it is repainted, and
    looked at unless there are references.

    Raises:
        ParameterError: the model looks at none, or needs one, or not so many.
        FormatError: something is not a picture.
    """
    chosen, edits = given.pop("references"), plan.task == "reference"
    if edits and given["image"] is not None:
        if chosen is not None and given["mask"] is None:
            raise ParameterError(
                f"{plan.title} looks at its image: give image= or references=, not both"
            )
        chosen = given["image"] if chosen is None else chosen
        if given["mask"] is None:
            given["image"] = None
            if given["strength"] not in (None, 1.0):
                raise ParameterError(
                    f"{plan.title} looks at its image and starts from noise: leave strength out"
                )
    rule, resized = plan.family.references, given["resize_references"]
    check_flag("resize_references", resized)
    if chosen is None:
        if edits:
            raise ParameterError(
                f"{plan.title} edits a picture: give the one to edit as image=, or several to look at"
                " as references="
            )
        return ()
    listed = list(chosen) if isinstance(chosen, list | tuple) else [chosen]
    if rule is None or plan.task not in ("text", "reference"):
        raise ParameterError(
            f"{plan.title} looks at no references; models such as FLUX.1 Kontext do"
        )
    if not 1 <= len(listed) <= rule.most:
        raise ParameterError(
            f"{len(listed)} references were given; {plan.title} takes 1 to {rule.most}"
        )
    pictures = [images.on_white(images.open_image(picture)) for picture in listed]
    return tuple(Reference(p, reference_size(p.size, rule, resized)) for p in pictures)


def reference_size(
    size: tuple[int, int], rule: References, resized: bool = True
) -> tuple[int, int]:
    """Width and height in which a picture of `size` is looked at.

    Raises:
        ParameterError: it keeps its size, and is too small for that.
    """
    width, height = size
    if not resized:
        kept = (width // rule.multiple * rule.multiple, height // rule.multiple * rule.multiple)
        if 0 in kept:
            raise ParameterError(
                f"a reference of {width}x{height} is too small: with resize_references=False each side"
                f" must have {rule.multiple} pixels"
            )
        return kept
    ratio = width / height
    if rule.sizes:
        return min(rule.sizes, key=lambda s: (abs(ratio - s[0] / s[1]), s))
    ideal = (rule.area * ratio) ** 0.5

    def rounded(side: float) -> int:
        return max(1, round(side / rule.multiple)) * rule.multiple

    return rounded(ideal), rounded(ideal / ratio)


# ------------------------------ further channels
def take_control(plan: ModelPlan, given: dict[str, Any]) -> Any:
    """The picture that the denoiser itself follows, of ``control_images``; the others are left to control networks.

    Raises:
        ParameterError: a model that follows a picture was given none.
    """
    if plan.task != "control":
        return None
    chosen = given["control_images"]
    if chosen is None:
        raise ParameterError(f"{plan.title} follows a picture: give control_images=")
    listed = list(chosen) if isinstance(chosen, list | tuple) else [chosen]
    if not listed or listed[0] is None:
        raise ParameterError(
            f"{plan.title} follows the first of control_images; it must be a picture"
        )
    given["control_images"] = listed[1:] or None
    return listed[0]


class PictureEncoder:
    """Pictures to latents for one run; what is drawn comes from the run's generators."""

    def __init__(
        self,
        vae: Autoencoder,
        shape: list[int],
        source: _core.NormalSource,
        cancel: _core.CancelToken,
    ) -> None:
        self.vae, self.shape, self.source, self.cancel = vae, shape, source, cancel

    def sample(self, image: Array) -> Array:
        """A sample of the picture's posterior, as diffusers takes it, ``[N, C, h, w]``."""
        mean, deviation = self.vae.posterior(image, cancel=self.cancel)
        mean, deviation = self.repeated(mean), self.repeated(deviation)
        return np.asarray(mean + deviation * self.source.normal(self.shape), np.float32)

    def mode(self, image: Array) -> Array:
        """The mean of the picture's posterior, ``[N, C, h, w]``."""
        return self.repeated(self.vae.posterior(image, cancel=self.cancel)[0])

    def repeated(self, array: Array) -> Array:
        """One entry for every picture of the batch.

        Raises:
            ParameterError: there are several, and not as many as pictures.
        """
        count = self.shape[0]
        if len(array) == count:
            return array
        if len(array) != 1:
            raise ParameterError(
                f"{len(array)} pictures were given for a batch of {count}; give one or as many"
            )
        return np.repeat(array, count, axis=0)


def _masked(encoder: PictureEncoder, pictures: Pictures, plan: ModelPlan) -> Array:
    """A mask and the picture without what it covers."""
    assert pictures.image is not None
    assert pictures.mask is not None
    factor = plan.latents.factor
    hard = (pictures.mask >= 0.5).astype(np.float32)
    seen = encoder.sample(pictures.image * (1.0 - hard))
    if plan.family.mask_layout == "folded":
        return np.concatenate([seen, encoder.repeated(folded(hard, factor))], axis=1)
    mask = encoder.repeated(np.ascontiguousarray(hard[:, :, ::factor, ::factor]))
    return np.concatenate([mask, seen], axis=1)


def _to_edit(encoder: PictureEncoder, pictures: Pictures, plan: ModelPlan) -> Array:
    """A picture; these models were trained on latents without the autoencoder's scale."""
    assert pictures.image is not None
    return np.asarray(encoder.mode(pictures.image) / encoder.vae.scale, np.float32)


def _depths(encoder: PictureEncoder, pictures: Pictures, plan: ModelPlan) -> Array:
    """One depth per latent, spread over -1..1 as the depth models were trained."""
    assert pictures.depth is not None
    small = shrunk(pictures.depth, plan.latents.factor)
    low = small.min(axis=(1, 2, 3), keepdims=True)
    span = small.max(axis=(1, 2, 3), keepdims=True) - low
    spread = 2.0 * (small - low) / np.where(span > 0, span, 1.0) - 1.0
    return encoder.repeated(np.asarray(spread, np.float32))


def _followed(encoder: PictureEncoder, pictures: Pictures, plan: ModelPlan) -> Array:
    """The latents of a control picture."""
    assert pictures.control is not None
    return encoder.sample(pictures.control)


@dataclass(frozen=True)
class Channels:
    """What the models of one task read behind the latents' channels."""

    read: Callable[[PictureEncoder, Pictures, ModelPlan], Array]
    """Gives float32 ``[N, E, h, w]``."""
    needed: tuple[str, ...]
    """The options that it is read from."""
    before_noise: bool = False
    """diffusers' pipeline draws for it before it draws the noise."""


CHANNELS: Mapping[str, Channels] = {
    "inpaint": Channels(_masked, ("image", "mask")),
    "edit": Channels(_to_edit, ("image",)),
    "depth": Channels(_depths, ("depth",)),
    "control": Channels(_followed, ("control",), before_noise=True),
}
"""By the model's task; the others read nothing there."""


def shrunk(mask: Array, factor: int) -> Array:
    """The mean of a mask ``[N, 1, H, W]`` over each latent: soft edges stay soft."""
    return np.asarray(_cells(mask, factor).mean(axis=(3, 5)), np.float32)


def folded(mask: Array, factor: int) -> Array:
    """A mask ``[N, 1, H, W]`` with the pixels of a latent as channels, row by row."""
    cells = _cells(mask, factor)[:, 0].transpose(0, 2, 4, 1, 3)
    count, _, _, height, width = cells.shape
    return np.ascontiguousarray(cells.reshape(count, factor * factor, height, width))


def _cells(mask: Array, factor: int) -> Array:
    count, one, height, width = mask.shape
    return mask.reshape(count, one, height // factor, factor, width // factor, factor)
