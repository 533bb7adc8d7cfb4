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

from . import _core, branches
from .adapters import Lora, as_loras
from .adapters.loras import check_steps, with_strengths
from .branches import Phases, Told
from .conditioning import Conditioning
from .control import ControlOptions
from .errors import ParameterError, UnwiseWarning
from .events import Callback, StepEvent
from .guidance import Guidance, lcm_guidance_embedding
from .image_prompt import PictureTokens
from .loading import ModelPlan
from .noise import COMPAT
from .options import Texts, checked_latents, filled, texts
from .params import GenerateParameters
from .prompt import Text, extract_loras, write_script
from .recipes import Recipe, defaults_of, find_recipe, unwise
from .resolutions import nearest, parse_ratio, resolutions
from .results import Result
from .run import Run, RunInputs
from .steps import plan_steps
from .tasks import Beginning, Pictures
from .text_encoders import EncodedText

if TYPE_CHECKING:
    from .pipeline import Pipeline

Array = NDArray[np.float32]

REFINER_TAKES_OVER = 0.8
"""Part of the noise schedule that SDXL's base does (Podell et al. 2023, and diffusers' documentation)."""


def begin(
    pipeline: Pipeline,
    prompt: Texts | None,
    negative_prompt: Texts | None,
    options: Mapping[str, Any],
    token: _core.CancelToken | None = None,
) -> Run:
    """Prepare a generation up to its first step; `token` cancels this, and the run.

    Raises:
        ParameterError: an option is unknown or out of range.
    """
    started = time.perf_counter()
    given = filled(options)
    given["prompt"] = None if prompt is None else texts("prompt", prompt)
    for name, value in (
        ("negative_prompt", negative_prompt),
        ("prompt_2", given["prompt_2"]),
        ("negative_prompt_2", given["negative_prompt_2"]),
    ):
        given[name] = None if value is None else texts(name, value)
    loras = _loras(pipeline, given)
    plan, recipe = _as_recommended(pipeline, loras)
    conditioning, tile = given.pop("conditioning"), given.pop("tile")
    if not isinstance(conditioning, Conditioning | None):
        raise ParameterError("conditioning must be what encode_prompt() returned")
    latents = given.pop("latents")
    latents = None if latents is None else checked_latents("latents", latents)
    control = ControlOptions.of(given, len(pipeline.controls))
    given.pop("control_images")
    given.update(control.figures())
    prompted = {"ip_images": given.pop("ip_images"), "ip_scale": given["ip_scale"]}
    mode = given["resize_mode"]
    _choose_size(plan, given)
    pictures = _read_pictures(plan, given, control.first)
    parameters = _parameters(plan, given, conditioning, pictures)
    _warn(plan, recipe, parameters)
    with pipeline.running(token) as token:
        steps = plan_steps(plan, parameters)
        beginning = Beginning(plan, pipeline.vae, parameters, steps, token)
        if parameters.denoising_start is not None and latents is not None:
            start = beginning.from_state(pictures, latents)
        else:
            start = beginning.from_noise(pictures, latents)
        facts = told(
            plan,
            parameters.batch_size,
            parameters.sizes,
            parameters.negative_sizes,
            parameters.distilled_guidance,
            picture=start.picture,
        )
        facts = replace(facts, picture_tokens=_picture_tokens(pipeline, prompted, parameters))
        check_steps(loras, steps.schedule.steps)
        with pipeline.adapters.applied(loras):
            phases = _phases(pipeline, parameters, conditioning, facts, steps.schedule.steps, token)
    size = (parameters.width, parameters.height)
    controls = control.inputs(size, mode, steps.schedule.steps)
    inputs = RunInputs(parameters, phases, start, pictures, tile, loras, controls)
    return Run(pipeline, inputs, time.perf_counter() - started, token)


def _loras(pipeline: Pipeline, given: dict[str, Any]) -> tuple[Lora, ...]:
    """The adapters of a run: the call's or the pipeline's, and those that stand in its prompts."""
    own = given.pop("loras")
    chosen = pipeline.loras if own is None else as_loras(own)
    compat = given["compat"]
    conventions = COMPAT.get(compat if isinstance(compat, str) else None, COMPAT[None])
    tags = []
    if (given["weighting"] or conventions.weighting) != "diffusers":
        for prompt in (*(given["prompt"] or ()), *(given["prompt_2"] or ())):
            tags += extract_loras(prompt)[1]
    chosen = pipeline.adapters.named(chosen, list(dict.fromkeys(tags)))
    return with_strengths(pipeline.plan.family.name, chosen)


def _as_recommended(pipeline: Pipeline, loras: tuple[Lora, ...]) -> tuple[ModelPlan, Recipe | None]:
    """The plan with the defaults that a LoRA's publisher recommends, and the recipe in force."""
    names = [lora.name for lora in loras if not lora.is_idle]
    recipe = find_recipe(pipeline.plan.family.name, *names)
    if recipe is None:
        return pipeline.plan, pipeline.recipe
    return replace(pipeline.plan, defaults=defaults_of(recipe, pipeline.plan.defaults)), recipe


def told(
    plan: ModelPlan,
    count: int,
    sizes: Mapping[str, float],
    negative_sizes: Mapping[str, float],
    guidance: float | None,
    *,
    picture: Array | None = None,
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
    )


def _choose_size(plan: ModelPlan, given: dict[str, Any]) -> None:
    """Put a width and a height in the place of an aspect ratio."""
    shape = given.pop("aspect_ratio")
    if shape is None:
        return
    if given["width"] is not None or given["height"] is not None:
        raise ParameterError("give aspect_ratio, or width and height, and not both")
    sizes = resolutions(plan.family, plan.defaults)
    given["width"], given["height"] = nearest(sizes, parse_ratio(shape))


def _picture_tokens(
    pipeline: Pipeline, given: Mapping[str, Any], parameters: GenerateParameters
) -> PictureTokens | None:
    if pipeline.image_prompt is not None:
        return pipeline.image_prompt.read(given, parameters.batch_size)
    if given["ip_images"] is not None:
        raise ParameterError(
            "ip_images were given, and the model was loaded without an IP-Adapter; give"
            " sdengine.load(..., ip_adapter=...)"
        )
    return None


def _read_pictures(plan: ModelPlan, given: dict[str, Any], control: Any) -> Pictures:
    """Read the given pictures in the size of the result, which is theirs unless it was given."""
    image, mask, depth = (given.pop(name) for name in ("image", "mask", "depth"))
    mode, first = given.pop("resize_mode"), image if image is not None else depth
    first = control if first is None else first
    if first is not None and (given["width"] is None or given["height"] is None):
        width, height = Pictures.size_of(first)
        factor = plan.latents.factor * plan.family.patch
        given["width"] = given["width"] or max(factor, width // factor * factor)
        given["height"] = given["height"] or max(factor, height // factor * factor)
    width, height = given["width"] or plan.defaults.width, given["height"] or plan.defaults.height
    pictures = Pictures.read(image, mask, depth, width, height, mode)
    if given["strength"] is None:
        whole = image is None or mask is not None or plan.task in ("inpaint", "edit")
        whole |= given["denoising_start"] is not None
        given["strength"] = 1.0 if whole else plan.defaults.strength
    return pictures


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
    return GenerateParameters.resolve(plan, plan.defaults, **{**given, "guidance": guidance})


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
        width=parameters.width,
        height=parameters.height,
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
    guided |= script.composes
    encoded: dict[Text, EncodedText] = encoders.encode(
        script.texts(guided),
        clip_skip=parameters.clip_skip,
        weighting=parameters.weighting,
        cancel=token,
    )
    return branches.from_script(script, encoded, facts, guided)


def finish(run: Run, callback: Callback | None) -> Run:
    """Do all steps of a run, and tell the callback of each."""
    if callback is not None and not callable(callback):
        raise ParameterError(f"callback must be a function of a StepEvent, not {callback!r}")
    started = time.perf_counter()
    while not run.done:
        run.step()
        if callback is not None:
            callback(StepEvent.of(run, time.perf_counter() - started))
    return run


def refined(
    base: Pipeline,
    refiner: Pipeline,
    prompt: Texts | None,
    negative_prompt: Texts | None,
    options: Mapping[str, Any],
    callback: Callback | None,
    token: _core.CancelToken,
) -> Result:
    """SDXL's ensemble of experts: `base` does the first part of the noise schedule, `refiner` the rest.

    Both run over the same steps, sampler and seed; the refiner takes its own defaults for everything else.
    """
    cut = options.get("denoising_end")
    cut = REFINER_TAKES_OVER if cut is None else cut
    first = finish(
        begin(base, prompt, negative_prompt, {**options, "denoising_end": cut}, token), callback
    )
    used = first.parameters
    shared = {
        name: getattr(used, name)
        for name in (
            "width",
            "height",
            "steps",
            "sampler",
            "schedule",
            "eta",
            "seed",
            "batch_size",
            "seamless",
        )
    }
    if prompt is not None:  # the base model's LoRAs are none of the refiner's
        prompt = [extract_loras(text)[0] for text in texts("prompt", prompt)]
    rest = {"latents": first.latents, "denoising_start": cut, "tile": options.get("tile")}
    second = begin(refiner, prompt, negative_prompt, {**shared, **rest}, token)
    result = finish(second, callback).result()
    named = [{**of_one, "refiner": refiner.plan.path.stem} for of_one in first.metadata()]
    return replace(result, metadata=named)
