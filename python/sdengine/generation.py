"""From a prompt and options to a run: the composition of one generation."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import _core, branches, hires, step_cache
from .adapters import Lora, as_loras
from .adapters.loras import as_recommended, check_steps, with_strengths
from .branches import Phases, Told
from .checks import check_choice
from .conditioning import Conditioning
from .control_options import ControlOptions
from .errors import ParameterError, UnwiseWarning
from .guidance import Guidance, lcm_guidance_embedding
from .image_prompt import ContextTokens, PictureTokens
from .images import RESIZE_MODES
from .loading import ModelPlan
from .masks import MaskOptions, read_frames
from .memory.scenario import decoder_tile
from .noise import COMPAT
from .options import Texts, checked_latents, filled, texts
from .outpainting import extended, parse_sides
from .params import MAX_SIDE, GenerateParameters, check_size
from .picture_inputs import Reference, take_control, take_references
from .prompt import RULES, Text, extract_loras, write_script
from .recipes import Recipe, unwise
from .resolutions import nearest, parse_ratio, resolutions
from .run import FirstPass, Run, RunInputs, Times
from .steps import plan_steps
from .tasks import Beginning, Pictures
from .text_encoders import EncodedText

if TYPE_CHECKING:
    from .pipeline import Pipeline

Array = NDArray[np.float32]


def begin(
    pipeline: Pipeline,
    prompt: Texts | None,
    negative_prompt: Texts | None,
    options: Mapping[str, Any],
    token: _core.CancelToken | None = None,
    *,
    before: FirstPass | None = None,
) -> Run:
    """Prepare a generation up to its first step; `token` cancels this, and the run.

    A hires pass goes on from another run: `before`.

    Raises:
        ParameterError: an option is unknown or out of range.
    """
    started = time.perf_counter()
    if pipeline.memory is not None and before is None:  # the first pass's plan has both
        pipeline.memory.settle(prompt, negative_prompt, options)
    given = _given(prompt, negative_prompt, options)
    loras = _loras(pipeline, given)
    plan, recipe = as_recommended(pipeline.model, loras, pipeline.recipe)
    conditioning, latents, tile = (given.pop(name) for name in ("conditioning", "latents", "tile"))
    references, followed = take_references(plan, given), take_control(plan, given)
    control = ControlOptions.of(given, len(pipeline.controls))
    given.pop("control_images")
    given["reference_count"] = len(references)
    given.update(control.figures())
    prompted = {"ip_images": given.pop("ip_images"), "ip_scale": given["ip_scale"]}
    mode = given["resize_mode"]
    _choose_size(plan, given)
    pictures = _read_pictures(plan, given, control.first, followed, references)
    if before is not None:
        pictures = replace(pictures, latents=before.clean)
    given["in_hires"] = before is not None
    parameters = _parameters(plan, given, conditioning, pictures)
    _warn(plan, recipe, parameters)
    with pipeline.running(token) as token:
        steps = plan_steps(plan, parameters)
        if complaint := step_cache.unwise(parameters.cache, steps.schedule.steps):
            warnings.warn(complaint, UnwiseWarning, stacklevel=3)
        beginning = Beginning(plan, pipeline.vae, parameters, steps, token)
        size = (parameters.width, parameters.height)
        fitted = pictures.fitted if pictures.frames else None
        controls = [
            pipeline.controls[part.net].encoded(part, pictures.mask, beginning.encoder)
            for part in control.inputs(size, mode, steps.schedule.steps, fitted)
        ]
        if parameters.denoising_start is not None and latents is not None:
            start = beginning.from_state(pictures, latents)
        else:
            start = beginning.from_noise(pictures, latents)
        facts = told(
            *(plan, parameters.batch_size, parameters.sizes, parameters.negative_sizes),
            parameters.distilled_guidance,
            picture=start.picture,
            references=start.references,
        )
        facts = replace(facts, picture_tokens=_picture_tokens(pipeline, prompted, parameters))
        check_steps(loras, steps.schedule.steps)
        with pipeline.adapters.applied(loras):
            seen = [reference.picture for reference in references]
            phases = _phases(
                pipeline, parameters, conditioning, facts, steps.schedule.steps, loras, seen, token
            )
            second = None
            if parameters.hires is not None:
                second = hires.Plan.of(prompt, negative_prompt, options)
    tile = decoder_tile(parameters, tile)
    inputs = RunInputs(parameters, phases, start, pictures, tile, loras, controls, second)
    times = Times(time.perf_counter() - started)
    if pipeline.memory is not None:
        inputs = pipeline.memory.checked(inputs)
    if before is not None:
        inputs = replace(inputs, described=before.described)
        times = Times(times.encode + before.times.encode, before.times.steps)
    return Run(pipeline, inputs, times, token)


def _given(
    prompt: Texts | None, negative_prompt: Texts | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """All that a generation was given, by option; every text as a list."""
    given = filled(options) | {"prompt": prompt, "negative_prompt": negative_prompt}
    for name in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2"):
        if given[name] is not None:
            given[name] = texts(name, given[name])
    if not isinstance(given["conditioning"], Conditioning | None):
        raise ParameterError("conditioning must be what encode_prompt() returned")
    if given["latents"] is not None:
        given["latents"] = checked_latents("latents", given["latents"])
    return given


def _loras(pipeline: Pipeline, given: dict[str, Any]) -> tuple[Lora, ...]:
    """The adapters of a run: the call's or the pipeline's, and those that stand in its prompts."""
    own = given.pop("loras")
    chosen = pipeline.loras if own is None else as_loras(own)
    compat = given["compat"]
    conventions = COMPAT.get(compat if isinstance(compat, str) else None, COMPAT[None])
    tags = []
    if given["weighting"] is not None:
        check_choice("weighting", given["weighting"], RULES)
    if (given["weighting"] or conventions.weighting) != "diffusers":
        for prompt in (*(given["prompt"] or ()), *(given["prompt_2"] or ())):
            tags += extract_loras(prompt)[1]
    chosen = pipeline.adapters.named(chosen, list(dict.fromkeys(tags)))
    return with_strengths(pipeline.model.family.name, chosen)


def told(
    plan: ModelPlan,
    count: int,
    sizes: Mapping[str, float],
    negative_sizes: Mapping[str, float],
    guidance: float | None,
    *,
    picture: Array | None = None,
    references: tuple[Array, ...] = (),
) -> Told:
    """What the denoiser of `plan` is told about `count` pictures besides the text."""
    config = plan.components[plan.family.denoiser].config
    if guidance is not None and (isinstance(guidance, bool) or not isinstance(guidance, Real)):
        raise ParameterError(
            f"guidance_scale must be one number for {plan.title}, which was distilled with it, not"
            f" {guidance!r}; true_cfg_scale takes one per step"
        )
    given: dict[str, Array] = {}
    if guidance is not None and config.get("time_cond_proj_dim"):
        row = lcm_guidance_embedding(guidance, config["time_cond_proj_dim"])
        given["guidance_embedding"] = np.repeat(row, count, axis=0)
    elif guidance is not None:
        given["guidance"] = np.full(count, guidance, np.float32)
    return Told(
        plan.family.size_conditioning,
        sizes,
        negative_sizes,
        given,
        picture,
        drops_picture=plan.task == "edit",
        references=references,
    )


def _choose_size(plan: ModelPlan, given: dict[str, Any]) -> None:
    """Check the size that was asked for, and put one in the place of an aspect ratio."""
    masked = given["mask"] is not None or given["outpaint"] is not None
    # A masked picture may keep a size that is no multiple.
    check_size(given, 1 if masked else plan.latents.factor * plan.family.patch)
    shape = given.pop("aspect_ratio")
    if shape is None:
        return
    if given["width"] is not None or given["height"] is not None:
        raise ParameterError("give aspect_ratio, or width and height, and not both")
    sizes = resolutions(plan.family, plan.defaults)
    area = plan.defaults.width * plan.defaults.height
    given["width"], given["height"] = nearest(sizes, parse_ratio(shape), area)


def _picture_tokens(
    pipeline: Pipeline, given: Mapping[str, Any], parameters: GenerateParameters
) -> PictureTokens | ContextTokens | None:
    if pipeline.image_prompt is not None:
        return pipeline.image_prompt.read(given, parameters.batch_size)
    if given["ip_images"] is not None:
        raise ParameterError(
            "ip_images were given, and the model was loaded without an IP-Adapter or Redux; give"
            " sdengine.load(..., ip_adapter=...)"
        )
    return None


def _read_pictures(
    plan: ModelPlan,
    given: dict[str, Any],
    control: Any,
    followed: Any,
    references: tuple[Reference, ...],
) -> Pictures:
    """Read the given pictures in the size of the result, which is theirs unless it was given."""
    image, mask, depth = (given.pop(name) for name in ("image", "mask", "depth"))
    options = MaskOptions.of(given)
    mode = given.pop("resize_mode")
    check_choice("resize_mode", mode, RESIZE_MODES)
    if given["outpaint"] is not None:
        if image is None or mask is not None:
            raise ParameterError("outpaint extends a given image, and makes the mask itself")
        given["outpaint"] = parse_sides(given["outpaint"])
        image, mask = extended(image, given["outpaint"])
    if image is not None and mask is not None:
        frames = read_frames(
            *(image, mask, (given["width"], given["height"])),
            (plan.defaults.width, plan.defaults.height),
            plan.latents.factor * plan.family.patch,
            mode,
            options,
        )
        given["width"], given["height"] = frames[0].size
        outpainted = given["outpaint"] is not None
        pictures = Pictures.framed(frames, depth, mode, outpainted=outpainted)
    else:
        of_its_size = next((p for p in (image, depth, followed, control) if p is not None), None)
        width, height = _whole_size(plan, given, of_its_size, references)
        pictures = Pictures.read(image, mask, depth, width, height, mode, control=followed)
    if given["strength"] is None:
        whole = image is None or mask is not None or plan.task in ("inpaint", "edit")
        whole |= given["denoising_start"] is not None
        given["strength"] = 1.0 if whole else plan.defaults.strength
    options.check_used(mask is not None, given["strength"])
    return replace(pictures, references=references)


def _whole_size(
    plan: ModelPlan, given: dict[str, Any], first: Any, references: tuple[Reference, ...]
) -> tuple[int, int]:
    """Width and height of the result: as given, as the first picture's, or the model's own."""
    if (first is not None or references) and (given["width"] is None or given["height"] is None):
        width, height = references[-1].size if first is None else Pictures.size_of(first)
        factor = plan.latents.factor * plan.family.patch
        given["width"] = given["width"] or max(factor, width // factor * factor)
        given["height"] = given["height"] or max(factor, height // factor * factor)
    width, height = given["width"] or plan.defaults.width, given["height"] or plan.defaults.height
    return width, height


def _parameters(
    plan: ModelPlan,
    given: dict[str, Any],
    conditioning: Conditioning | None,
    pictures: Pictures,
) -> GenerateParameters:
    if (given["prompt"] is None) == (conditioning is None):
        raise ParameterError("give a prompt, or a conditioning, and not both")
    if given["prompt"] is None:
        assert conditioning is not None
        given["prompt"] = [""]
        given["batch_size"] = given["batch_size"] or conditioning.batch_size
    if given["batch_size"] is None:
        given["batch_size"] = max(len(given["prompt"]), pictures.count)
    given["seed"] = secrets.randbits(32) if given["seed"] is None else given["seed"]
    guidance = Guidance() if given["guidance"] is None else given["guidance"]
    if not isinstance(guidance, Guidance):
        raise ParameterError(
            f"guidance must be a sdengine.Guidance, not {guidance!r}; a number is guidance_scale"
        )
    scale, true_scale = given.pop("guidance_scale"), given.pop("true_cfg_scale")
    given["distilled_guidance"] = None
    if plan.reads_guidance:
        given["distilled_guidance"] = plan.defaults.guidance if scale is None else scale
        scale = 1.0 if true_scale is None else true_scale
    elif true_scale is not None:
        raise ParameterError(
            f"{plan.title} was not distilled with guidance: give guidance_scale, not true_cfg_scale"
        )
    chosen = {
        "scale": scale,
        "rescale": given.pop("guidance_rescale"),
        "image_scale": given.pop("image_guidance_scale"),
    }
    guidance = replace(guidance, **{k: v for k, v in chosen.items() if v is not None})
    if guidance.scale is None:
        guidance = replace(guidance, scale=plan.defaults.guidance)
    if guidance.norms is None:
        guidance = replace(guidance, norms=plan.family.norms)
    given["hires"] = hires.take(given)
    parameters = GenerateParameters.resolve(plan, plan.defaults, **{**given, "guidance": guidance})
    if parameters.hires is not None:
        _check_second(plan, parameters, pictures)
        wanted = parameters.hires
        if conditioning is not None and wanted.negative_prompt is not None and not wanted.prompt:
            raise ParameterError(
                "a conditioning holds both prompts: give hires_prompt too, or no hires_negative_prompt"
            )
    return parameters


def _check_second(plan: ModelPlan, parameters: GenerateParameters, pictures: Pictures) -> None:
    """Refuse before the first pass what the second could not do."""
    second = hires.second_parameters(parameters)
    if pictures.mask is not None or plan.task == "inpaint":
        raise ParameterError(
            "the hires pass makes the whole picture again and does not go with a mask; do the two"
            " one after the other"
        )
    if len(second.guidance.scales) > 1:
        raise ParameterError(
            "the guidance has a number per step, and the hires pass steps of its own; give one"
            " number, or hires_guidance_scale"
        )
    for name, side in (("width", second.width), ("height", second.height)):
        if side > MAX_SIDE:
            raise ParameterError(f"the hires pass's {name} must be at most {MAX_SIDE}, not {side}")
    plan_steps(plan, second)


def _warn(plan: ModelPlan, recipe: Recipe | None, parameters: GenerateParameters) -> None:
    """Say what is known to go wrong with these parameters."""
    if plan.reads_guidance and recipe is None:
        return  # a consistency model whose name does not say so
    explicit = parameters.sigmas is not None or parameters.timesteps is not None
    messages = unwise(
        recipe,
        plan.family.name,
        steps=parameters.steps,
        guidance=max(parameters.guidance.scales),
        sampler=parameters.sampler,
        schedule="explicit" if explicit else parameters.schedule,
        width=parameters.seen[0],
        height=parameters.seen[1],
        zero_terminal_snr=plan.scheduler.rescale_zero_snr,
    )
    for message in messages:
        warnings.warn(message, UnwiseWarning, stacklevel=4)


def _phases(
    pipeline: Pipeline,
    parameters: GenerateParameters,
    conditioning: Conditioning | None,
    facts: Told,
    steps: int,
    loras: tuple[Lora, ...],
    seen: list[Image.Image],
    token: _core.CancelToken,
) -> Phases:
    """Encode what the prompts say, and lay it out over the steps."""
    guidance, count = parameters.guidance, parameters.batch_size
    guided = guidance.needs_negative or _core.reads_unguided(parameters.sampler)
    guided |= facts.drops_picture and guidance.image_scale != 1.0
    if conditioning is not None:
        return branches.from_conditioning(conditioning.repeat(count), steps, facts, guided)
    encoders = pipeline.text_encoders
    positives = encoders.pair(parameters.prompt, parameters.prompt_2, count)
    negatives = pipeline.negatives(parameters.negative_prompt, parameters.negative_prompt_2, count)
    script = write_script(positives, negatives, steps, parameters.weighting)
    script = script.prefixed(pipeline.model.family.prompt_prefix)
    guided |= script.composes
    encoded: dict[Text, EncodedText] = encoders.encode(
        script.texts(guided),
        clip_skip=parameters.clip_skip,
        weighting=parameters.weighting,
        adapted=pipeline.adapters.in_text_encoders(loras),
        pictures=seen,
        cancel=token,
    )
    return branches.from_script(script, encoded, facts, guided)
