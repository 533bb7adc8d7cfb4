"""Hires fix: a picture is made small, enlarged, and partly made again at the larger size.

Two runs, one after the other (:func:`sdengine.passes.second_pass`): here is what lies between them. The terms and
defaults are those of A1111; see docs/large-pictures.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import _core
from .checks import check_number, check_path, check_whole
from .errors import ParameterError
from .interpolation import enlarge
from .sampling import resolve_names
from .upscalers import Upscaler

if TYPE_CHECKING:
    from .params import GenerateParameters
    from .pipeline import Pipeline

Array = NDArray[np.float32]

STRENGTH, UPSCALER = 0.7, "latent"
"""A1111's defaults."""
LARGEST_SCALE, MOST_STEPS = 16.0, 1000

LATENT = {
    "latent": ("bilinear", False),
    "latent-antialiased": ("bilinear", True),
    "latent-bicubic": ("bicubic", False),
    "latent-bicubic-antialiased": ("bicubic", True),
    "latent-nearest": ("nearest", False),
    "latent-nearest-exact": ("nearest-exact", False),
}
"""Upscalers of latents: mode and antialiasing of :func:`sdengine.interpolation.enlarge`."""
PIXELS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
"""Upscalers of pictures besides networks: Pillow's filters."""
OPTIONS = (
    *("hires_scale", "hires_width", "hires_height", "hires_upscaler", "hires_steps"),
    *("hires_strength", "hires_sampler", "hires_schedule", "hires_guidance_scale"),
    *("hires_prompt", "hires_negative_prompt"),
)
_FIRST_ONLY = ("aspect_ratio", "latents", "strength", "width", "height", "seed", "batch_size")
"""Options of the first pass that the second has its own values for."""


@dataclass(frozen=True)
class Hires:
    """The second pass, in plain values. None is as in the first pass.

    Attributes:
        width, height: of the result in pixels.
        scale: what was asked for instead of a width and a height.
        upscaler: a name of :data:`LATENT` or :data:`PIXELS`, or a network's path.
        strength: how much of the enlarged picture is made again, 0..1.
        steps: as ``steps`` of image to image.
    """

    width: int
    height: int
    scale: float | None = None
    upscaler: str = UPSCALER
    strength: float = STRENGTH
    steps: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    guidance_scale: float | None = None
    prompt: tuple[str, ...] | None = None
    negative_prompt: tuple[str, ...] | None = None

    def steering(self) -> dict[str, Any]:
        """Options of a generation that the second pass has of its own."""
        own = {
            "strength": self.strength,
            "steps": self.steps,
            "sampler": self.sampler,
            "schedule": self.schedule,
            "guidance_scale": self.guidance_scale,
        }
        return {name: value for name, value in own.items() if value is not None}

    def metadata(self, index: int) -> dict[str, object]:
        """What the text in picture `index` of a batch says about it, by option."""
        named: dict[str, object] = {
            "hires_upscaler": self.upscaler
            if is_known(self.upscaler)
            else Path(self.upscaler).name,
            "hires_strength": self.strength,
            "hires_steps": self.steps,
            "hires_sampler": self.sampler,
            "hires_schedule": self.schedule,
            "hires_guidance_scale": self.guidance_scale,
        }
        if self.scale is None:
            named |= {"hires_width": self.width, "hires_height": self.height}
        else:
            named["hires_scale"] = self.scale
        for name in ("prompt", "negative_prompt"):
            texts = getattr(self, name)
            named[f"hires_{name}"] = None if texts is None else texts[index % len(texts)]
        return named


@dataclass(frozen=True)
class Plan:
    """What a first pass keeps for the second: all that it was given, and the upscaler.

    Attributes:
        prompt, negative_prompt, options: as they were given.
        upscaler: a loaded network, where one was given in place of its path.
    """

    prompt: Any
    negative_prompt: Any
    options: Mapping[str, Any]
    upscaler: Upscaler | None = None

    @classmethod
    def of(cls, prompt: Any, negative_prompt: Any, options: Mapping[str, Any]) -> Plan:
        """From the arguments of a generation."""
        upscaler = options.get("hires_upscaler")
        loaded = upscaler if isinstance(upscaler, Upscaler) else None
        return cls(prompt, negative_prompt, dict(options), loaded)


def take(given: dict[str, Any]) -> dict[str, Any] | None:
    """Take the options ``hires_...`` out of `given`; None where there is no second pass.

    Raises:
        ParameterError: there is no size, or another option does not go with it.
    """
    own = {name: given.pop(name) for name in OPTIONS}
    sized = [name for name in OPTIONS[:3] if own[name] is not None]
    if not sized:
        for name, value in own.items():
            if value is not None:
                raise ParameterError(f"{name} needs hires_scale, hires_width or hires_height")
        return None
    if "hires_scale" in sized and len(sized) > 1:
        raise ParameterError("give hires_scale, or hires_width and hires_height, and not both")
    for name in ("denoising_start", "denoising_end"):
        if given[name] is not None:
            raise ParameterError(
                f"the hires pass goes on from a finished picture and does not go with {name}"
            )
    return own


def read(own: Mapping[str, Any], width: int, height: int, grid: int, pictures: int) -> Hires:
    """The second pass from what :func:`take` found.

    Args:
        own: all options ``hires_...``.
        width: of the first pass, in pixels.
        height: of the first pass.
        grid: pixels that widths and heights are multiples of.
        pictures: of the batch.

    Raises:
        ParameterError: one is out of range.
    """
    for name, most in (("hires_strength", 1.0), ("hires_guidance_scale", 1000.0)):
        if own[name] is not None:
            check_number(name, own[name], 0.0, most)
    if own["hires_steps"] is not None:
        check_whole("hires_steps", own["hires_steps"], 0, MOST_STEPS)
    sampler, schedule = own["hires_sampler"], own["hires_schedule"]
    sampler, implied = (None, None) if sampler is None else resolve_names(sampler)
    if schedule is not None:
        _, schedule = resolve_names(sampler or "euler", schedule)
    wide, high = _size(own, width, height, grid)
    return Hires(
        width=wide,
        height=high,
        scale=_or_none(float, own["hires_scale"]),
        upscaler=_upscaler_name(own["hires_upscaler"]),
        strength=STRENGTH if own["hires_strength"] is None else float(own["hires_strength"]),
        steps=int(own["hires_steps"]) if own["hires_steps"] else None,
        sampler=sampler,
        schedule=schedule or implied,
        guidance_scale=_or_none(float, own["hires_guidance_scale"]),
        prompt=_texts("hires_prompt", own["hires_prompt"], pictures),
        negative_prompt=_texts("hires_negative_prompt", own["hires_negative_prompt"], pictures),
    )


def _or_none(kind: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else kind(value)


def _size(own: Mapping[str, Any], width: int, height: int, grid: int) -> tuple[int, int]:
    """Width and height of the result; one that is not given follows from the other."""
    scale, wide, high = (own[name] for name in OPTIONS[:3])
    if scale is not None:
        check_number("hires_scale", scale, 1.0, LARGEST_SCALE)
        return int(width * scale) // grid * grid, int(height * scale) // grid * grid
    for name, value in (("hires_width", wide), ("hires_height", high)):
        if value is None:
            continue
        check_whole(name, value, grid, 2**16)
        if value % grid:
            raise ParameterError(f"{name} must be a multiple of {grid}, not {value}")
    if high is None:
        high = max(grid, wide * height // width // grid * grid)
    if wide is None:
        wide = max(grid, high * width // height // grid * grid)
    return int(wide), int(high)


def _upscaler_name(given: Any) -> str:
    if given is None:
        return UPSCALER
    if isinstance(given, Upscaler):
        return str(given.plan.network.path)
    if not isinstance(given, str | os.PathLike):
        raise ParameterError(
            f"hires_upscaler must be a name, the path of an upscaler or a loaded one, not {given!r:.80}"
        )
    name = canonical(str(check_path("hires_upscaler", given)))
    if not is_known(name) and not os.path.isfile(given):
        known = ", ".join((*LATENT, *PIXELS))
        raise ParameterError(
            f"hires_upscaler {str(given)!r} is no file, and none of {known}; give one of these, or"
            " the path of an upscaler"
        )
    return name


def canonical(name: str) -> str:
    """An upscaler's name as it is called here; names that are not known stay."""
    folded = name.lower().replace("(", "").replace(")", "").replace(" ", "-").replace("_", "-")
    return folded if is_known(folded) else name


def is_known(name: str) -> bool:
    """True for a name that is no path."""
    return name in LATENT or name in PIXELS


def _texts(name: str, given: Any, pictures: int) -> tuple[str, ...] | None:
    if given is None:
        return None
    listed = (given,) if isinstance(given, str) else given
    if not isinstance(listed, list | tuple) or not all(isinstance(text, str) for text in listed):
        raise ParameterError(f"{name} must be a text or a list of texts, not {given!r}")
    if len(listed) not in (1, pictures):
        raise ParameterError(
            f"{name}: {len(listed)} texts do not fit batch_size {pictures}; give one or as many"
        )
    return tuple(listed)


# ------------------------------ between the passes
def second_parameters(first: GenerateParameters) -> GenerateParameters:
    """What decides about the steps of the second pass, before there is one."""
    hires = first.hires
    assert hires is not None
    changed: dict[str, Any] = {"width": hires.width, "height": hires.height, "hires": None}
    changed["in_hires"] = True
    changed |= {name: value for name, value in hires.steering().items() if name != "guidance_scale"}
    if hires.steps or hires.schedule:
        changed |= {"sigmas": None, "timesteps": None}
    if hires.guidance_scale is not None and first.distilled_guidance is None:
        changed["guidance"] = replace(first.guidance, scale=hires.guidance_scale)
    return replace(first, **changed)


def second_options(plan: Plan, first: GenerateParameters, keeps_image: bool) -> dict[str, Any]:
    """Options of the second run, from those that the first was given.

    Args:
        plan: of the first run.
        first: what its options came to.
        keeps_image: the denoiser reads the given image in both passes.
    """
    hires = first.hires
    assert hires is not None
    left_out = {*OPTIONS, *_FIRST_ONLY, *(() if keeps_image else ("image",))}
    if hires.steps or hires.schedule:
        left_out |= {"sigmas", "timesteps"}
    if hires.prompt is not None:
        left_out |= {"conditioning", "prompt_2"}
    if hires.negative_prompt is not None:
        left_out.add("negative_prompt_2")
    options = {name: value for name, value in plan.options.items() if name not in left_out}
    same = {"seed": first.seed, "batch_size": first.batch_size}
    return {
        **options,
        **same,
        "width": hires.width,
        "height": hires.height,
        **hires.steering(),
    }


def network_of(pipeline: Pipeline, wanted: Hires, given: Upscaler | None) -> Upscaler | None:
    """The network that enlarges between the passes; None for interpolation.

    Args:
        pipeline: that the passes are of; it remembers the network.
        wanted: the hires pass. A network that it names by path is opened on the autoencoder's device, and stays.
        given: a loaded one.
    """
    if given is None and is_known(wanted.upscaler):
        return None
    if given is None:
        there = pipeline.upscaler
        if there is not None and str(there.plan.network.path) == wanted.upscaler:
            return there
        given = Upscaler(wanted.upscaler, on=pipeline.devices.vae)
    pipeline.upscaler = given
    return given


def enlarged_pictures(
    pictures: Sequence[Image.Image],
    hires: Hires,
    upscaler: Upscaler | None,
    cancel: _core.CancelToken,
) -> list[Image.Image]:
    """Pictures of the second pass's size: enlarged to cover it, and cut evenly where the shapes differ.

    Args:
        pictures: of the first pass.
        hires: the second.
        upscaler: the network that enlarges them; None where it is an interpolation.
        cancel: stops it.
    """
    made = [_enlarged(picture, hires, upscaler, cancel) for picture in pictures]
    if upscaler is not None:
        upscaler.release()
    return made


def _enlarged(
    picture: Image.Image, hires: Hires, upscaler: Upscaler | None, cancel: _core.CancelToken
) -> Image.Image:
    scale = max(hires.width / picture.width, hires.height / picture.height)
    width = max(hires.width, round(picture.width * scale))
    height = max(hires.height, round(picture.height * scale))
    if upscaler is not None:
        picture = upscaler.upscale(picture, scale=scale, cancel=cancel)
    filters = PIXELS.get(hires.upscaler, Image.Resampling.LANCZOS)
    if picture.size != (width, height):
        picture = picture.resize((width, height), filters)
    left, top = (width - hires.width) // 2, (height - hires.height) // 2
    return picture.crop((left, top, left + hires.width, top + hires.height))


def enlarged_latents(latents: Array, hires: Hires, factor: int) -> Array:
    """Latents of the second pass's size, the same way; `factor` is pixels per latent."""
    height, width = latents.shape[2:]
    rows, columns = hires.height // factor, hires.width // factor
    scale = max(rows / height, columns / width)
    size = max(rows, round(height * scale)), max(columns, round(width * scale))
    made = enlarge(latents, size, *LATENT[hires.upscaler])
    top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
    return np.ascontiguousarray(made[:, :, top : top + rows, left : left + columns])
