"""The options of a generation, in one place for ``generate``, ``start`` and the command line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from os import PathLike
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from .adapters import LoraLike
from .conditioning import Conditioning
from .errors import NumericError, ParameterError
from .guidance import (
    AdaptiveProjection,
    DynamicThreshold,
    Guidance,
    MimicScale,
    NormalizedAttention,
    PerturbedAttention,
    SkipLayers,
    ZeroStar,
)
from .images import ImageLike
from .masks import MaskOptions
from .noise import COMPAT
from .step_cache import OFF
from .tiled_diffusion import TiledDiffusion
from .upscalers import Upscaler

Texts = str | Sequence[str]
Array = NDArray[np.float32]


class GenerateOptions(TypedDict, total=False):
    """Options of :meth:`sdengine.Pipeline.generate` and :meth:`sdengine.Pipeline.start`.

    Without one, or with None, the model's own default is taken.
    """

    width: int | None
    """Pixels, a multiple of 8; of the given image where there is one."""
    height: int | None
    """Pixels, a multiple of 8."""
    aspect_ratio: str | float | None
    """Width over height (``"16:9"``, 1.5) in place of `width` and `height`: the nearest of
    :attr:`sdengine.Pipeline.resolutions` is taken."""
    steps: int | None
    """1 to 1000."""
    guidance_scale: float | Sequence[float] | None
    """Strength of classifier-free guidance, one for all steps or one for each; 1 turns it off and halves the work.
    For models that were distilled with guidance the number they read."""
    true_cfg_scale: float | Sequence[float] | None
    """Classifier-free guidance beside `guidance_scale` for models that were distilled to read that as an input (LCM,
    FLUX.1 dev); 1 is off."""
    guidance_rescale: float | None
    """0..1, pulls the guided result's contrast back (Lin et al. 2023); 0.7 suits zero-terminal-SNR models."""
    image_guidance_scale: float | None
    """How closely an editing model keeps to the given image (InstructPix2Pix; 1.5)."""
    guidance: Guidance | None
    """Further kinds of guidance, see docs/guidance.md."""
    sampler: str | None
    """A name from :mod:`sdengine.sampling`, in the spelling of any program people use."""
    schedule: str | None
    """A step schedule from :mod:`sdengine.sampling`."""
    sigmas: Sequence[float] | None
    """Noise levels of your own, falling; instead of `steps` and `schedule`."""
    timesteps: Sequence[int] | None
    """Training timesteps of your own, falling; instead of `steps` and `schedule`."""
    eta: float | None
    """Noise of ancestral samplers, 0 for none; None is the sampler's own."""
    shift: float | None
    """Time shift of a flow model (SD3 has 3), the same for every size: above 1 more of the steps are spent on what is
    large in the picture. None is the model's own."""
    s_noise: float
    """Scale of the noise that samplers add (1)."""
    s_churn: float
    """Noise before each step of euler, heun and dpm2 over the whole run (Karras et al. 2022); 0 for none."""
    s_tmin: float
    """Lowest noise level that `s_churn` applies to."""
    s_tmax: float
    """Highest noise level that `s_churn` applies to."""
    brownian: bool | None
    """Noise of a Brownian path instead of fresh noise at each step; None is as the sampler's users know it."""
    order: int | None
    """Order of multistep samplers (unipc, deis, lms, ipndm); None is their own."""
    seed: int | None
    """Of the first picture, the next ones get ``seed + 1``, ...; None takes a random one."""
    batch_size: int | None
    """Pictures to make, 1 to 64; None is one for each prompt."""
    noise: str | None
    """Whose generator: ``"torch-cpu"`` or ``"torch-cuda"``, see :func:`sdengine.random.normal`."""
    variation_seed: int | None
    """Seed of a second noise that `variation_strength` mixes in (A1111's subseed)."""
    variation_strength: float
    """0..1: 0 is the noise of `seed`, 1 that of `variation_seed`, spherical interpolation between."""
    compat: str | None
    """Conventions of ``"diffusers"``, ``"comfyui"`` or ``"a1111"``: noise, weighting, start; see docs/compat.md."""
    clip_skip: int | None
    """1 takes the text encoders' last layer, 2 the one before."""
    weighting: str | None
    """Prompt weighting rule: ``"a1111"``, ``"comfyui"``, ``"compel"`` or ``"diffusers"``, see docs/prompts.md."""
    prompt_2: Texts | None
    """What the second text encoder reads (SDXL); None is `prompt`."""
    negative_prompt_2: Texts | None
    """The same for the negative prompt."""
    conditioning: Conditioning | None
    """What :meth:`sdengine.Pipeline.encode_prompt` returned, instead of prompts."""
    sizes: Mapping[str, float] | None
    """What an SDXL class model is told about the picture: ``original_height``, ``original_width``, ``crop_top``,
    ``crop_left``, ``target_height``, ``target_width`` (pixels), ``aesthetic_score`` (refiner; 6)."""
    negative_sizes: Mapping[str, float] | None
    """The same beside the negative prompt; as `sizes`, but for the aesthetic score of 2.5."""
    image: ImageLike | Sequence[ImageLike] | None
    """A picture to start from, to edit or to repaint; one, or one per picture of the batch."""
    mask: ImageLike | Sequence[ImageLike] | None
    """What to repaint, of the image's size: white is changed, black stays exactly, grey blends. Without `width` and
    `height` the result has the image's size, whatever that is. See docs/painting.md."""
    mask_blur: float
    """0..256 pixels, standard deviation of a Gaussian blur of the mask (0)."""
    invert_mask: bool
    """Change what is black and keep what is white."""
    only_masked: bool
    """Generate the masked part alone, at `width` x `height` (the model's own), and put it back into the image."""
    mask_padding: int
    """0..4096 pixels around the masked part that `only_masked` shows the model (32)."""
    mask_fill: str
    """What a run with `strength` below 1 starts from below the mask: ``"original"``, ``"blur"`` (the colours around),
    ``"noise"`` or ``"nothing"`` (in latents)."""
    differential: bool
    """The mask's grey is the strength of each pixel (Levin and Fried 2023), times `strength`."""
    outpaint: Sequence[int] | str | float | None
    """Extend the image, and paint what is new: pixels on the left, right, top and bottom (``"64,0,64,0"``), or an
    aspect ratio (``"16:9"``). See :func:`sdengine.outpaint`."""
    depth: ImageLike | Sequence[ImageLike] | None
    """The depth map that a depth model follows; near is bright."""
    references: ImageLike | Sequence[ImageLike] | None
    """Pictures that an editing model looks at (FLUX.1 Kontext): one or several, for every picture of the batch. To a
    model that only edits, `image` without a mask is the same."""
    resize_references: bool
    """References are brought to a size that the model was trained with (True), or keep theirs: smaller is faster."""
    strength: float | None
    """0..1, how much of `image` is changed."""
    control_images: ImageLike | Sequence[Any] | None
    """What the control networks follow: one picture for each, in their order; a list of pictures in its place for a
    batch, None to leave a network out. A model that follows a picture itself (FLUX.1 Canny) takes the first one."""
    control_scales: float | Sequence[float] | None
    """0..10, strength of the control networks, one for all or one for each (1); 0 leaves it out."""
    control_start: float | Sequence[float] | None
    """0..1, part of the steps after which control begins (0)."""
    control_end: float | Sequence[float] | None
    """0..1, part of the steps after which control ends (1)."""
    guess_mode: bool
    """Control without a prompt: it guides the positive branch only, deep residuals more than others."""
    control_mode: str
    """``"balanced"``; ``"prompt"`` or ``"control"`` is more important (sd-webui-controlnet), see docs/control.md."""
    ip_images: ImageLike | Sequence[ImageLike] | None
    """What an IP-Adapter or FLUX.1 Redux reads beside the prompt: a picture, or one per picture of the batch."""
    ip_scale: float | None
    """0..10, how much it counts (1)."""
    resize_mode: str
    """How given pictures are brought to size: ``"crop"``, ``"stretch"``, ``"fill"`` or ``"pad"``."""
    denoising_start: float | None
    """0..1: the part of the noise schedule that another model has done; `latents` is its result."""
    denoising_end: float | None
    """0..1: stop there, for another model to go on."""
    latents: Array | None
    """Start noise of standard deviation 1, float32 ``[N, C, h, w]``, instead of the seed's; with `denoising_start`
    the state that the first model left."""
    loras: Sequence[LoraLike] | LoraLike | None
    """LoRAs of this call instead of the pipeline's (docs/adapters.md); an empty list for none. Tags in prompts,
    ``<lora:name:0.8>``, come on top."""
    seamless: str
    """Opposite edges join: ``"x"``, ``"y"`` or ``"xy"``."""
    cache: str
    """Step caching: ``"off"``, or ``"balanced"`` or ``"fast"`` to take over from earlier steps what changes little from
    one to the next, for less time and a slightly different picture; see docs/step-caching.md."""
    tile: int | None
    """Side of the autoencoder's tiles in latents; 0 for one piece, None to decide by size."""
    tiled_diffusion: TiledDiffusion | Mapping[str, Any] | bool | int | None
    """The denoiser sees a large picture in overlapping tiles: True, their side in latents, or a
    :class:`sdengine.TiledDiffusion`; see docs/large-pictures.md."""
    hires_scale: float | None
    """1..16: after the picture a second pass that makes it so many times as wide and high (A1111's hires fix)."""
    hires_width: int | None
    """Width of the second pass in pixels, instead of a scale; the height follows where it is not given."""
    hires_height: int | None
    """Height of the second pass in pixels."""
    hires_upscaler: str | PathLike[str] | Upscaler | None
    """What enlarges between the passes: ``"latent"`` (the default), ``"latent-bicubic"``, ... for latents;
    ``"lanczos"``, ``"nearest"``, the path of an upscaler or a loaded one for pictures."""
    hires_strength: float | None
    """0..1, how much of the enlarged picture is made again (0.7)."""
    hires_steps: int | None
    """Steps of the second pass, counted as those of image to image; None or 0 is as in the first."""
    hires_sampler: str | None
    """Sampler of the second pass; None is the first one's, as with the others below."""
    hires_schedule: str | None
    """Step schedule of the second pass."""
    hires_guidance_scale: float | None
    """Guidance of the second pass."""
    hires_prompt: Texts | None
    """Prompt of the second pass."""
    hires_negative_prompt: Texts | None
    """Negative prompt of the second pass."""


GUIDANCE_KINDS: dict[str, Any] = {
    "projection": AdaptiveProjection,
    "threshold": DynamicThreshold,
    "mimic": MimicScale,
    "skip_layers": SkipLayers,
    "perturbed_attention": PerturbedAttention,
    "normalized_attention": NormalizedAttention,
    "zero_star": ZeroStar,
}
"""Field of :class:`sdengine.Guidance` -> its class."""
_PLAIN = ("interval", "norms")

DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(GenerateOptions.__annotations__),
    "s_noise": 1.0,
    "s_churn": 0.0,
    "s_tmin": 0.0,
    "s_tmax": math.inf,
    "variation_strength": 0.0,
    "guess_mode": False,
    "control_mode": "balanced",
    "resize_mode": "crop",
    **asdict(MaskOptions()),
    "resize_references": True,
    "seamless": "",
    "cache": OFF,
}


def filled(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options, those that were not given, or None, at their default.

    Raises:
        ParameterError: an option has another name.
    """
    for name in options:
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, DEFAULTS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ParameterError(f"there is no option {name!r}{hint}")
    return {**DEFAULTS, **{name: value for name, value in options.items() if value is not None}}


def restored(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make a picture again, from what :func:`sdengine.metadata.read_parameters` found.

    Prompts are no options, and given pictures are not in it: `task` of `parameters` says that there were some.
    What no option is called is passed over.

    Raises:
        ParameterError: a kind of guidance has parameters that it does not know.
    """
    known = {k: v for k, v in parameters.items() if k in DEFAULTS and v is not None}
    known = {k: v for k, v in known.items() if k not in ("prompt_2", "negative_prompt_2") or v}
    if not known.keys() & {"hires_scale", "hires_width", "hires_height"}:  # there is no such pass
        known = {k: v for k, v in known.items() if not k.startswith("hires_")}
    compat = known.get("compat")
    if "clip_skip" in known and compat in COMPAT:  # written as this package counts
        known["clip_skip"] += COMPAT[compat].last_layer - 1
    guidance = guidance_of({f.name: parameters.get(f.name) for f in fields(Guidance)})
    return {**known, "guidance": guidance} if guidance != Guidance() else known


def guidance_of(kinds: Mapping[str, Any]) -> Guidance:
    """Guidance from plain values: a kind's parameters are a mapping.

    Raises:
        ParameterError: there is no such kind, or it has no such parameter.
    """
    given = {name: value for name, value in kinds.items() if value is not None}
    for name in given:
        if name not in GUIDANCE_KINDS and name not in _PLAIN:
            choices = ", ".join((*_PLAIN, *GUIDANCE_KINDS))
            raise ParameterError(f"there is no guidance {name!r}; choose one of {choices}")
    return Guidance(**{name: _guidance_kind(name, value) for name, value in given.items()})


def _guidance_kind(name: str, value: Any) -> Any:
    if name not in GUIDANCE_KINDS or not isinstance(value, Mapping):
        return value
    kind, layers = GUIDANCE_KINDS[name], value.get("layers")
    if layers is not None and not isinstance(layers, list | tuple):
        value = {**value, "layers": (layers,)}
    try:
        return kind(**value)
    except TypeError:
        allowed = ", ".join(field.name for field in fields(kind))
        raise ParameterError(
            f"the guidance {name} takes {allowed}; given were {', '.join(value) or 'none'}"
        ) from None


def texts(name: str, value: Texts) -> list[str]:
    """One text or several as a list.

    Raises:
        ParameterError: it is something else.
    """
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not listed:
        raise ParameterError(f"{name} must be a text or a list of texts, not {value!r}")
    if not all(isinstance(text, str) for text in listed):
        raise ParameterError(f"{name} must be a text or a list of texts, not {value!r}")
    return list(listed)


def checked_latents(name: str, value: Any) -> Array:
    """Latents as the native core takes them.

    Raises:
        ParameterError: not an array ``[N, C, h, w]`` of real numbers.
        NumericError: it holds NaN or infinity.
    """
    try:
        given = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ParameterError(f"{name} must be an array of numbers: {error}") from None
    if given.dtype.kind not in "fiu":
        raise ParameterError(f"{name} must be an array of real numbers, not of {given.dtype}")
    array = np.ascontiguousarray(given, np.float32)
    if array.ndim != 4 or 0 in array.shape:
        raise ParameterError(f"{name} must have the shape [N, C, h, w], not {list(array.shape)}")
    if not np.isfinite(array).all():
        raise NumericError(f"{name} holds NaN or infinity")
    return array
