"""From a prompt and options to a run: the composition of one generation."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core, branches
from .branches import Phases, Told
from .conditioning import Conditioning
from .errors import ParameterError, UnwiseWarning
from .events import Callback, StepEvent
from .guidance import Guidance, lcm_guidance_embedding
from .loading import ModelPlan
from .options import Texts, checked_latents, filled, texts
from .params import GenerateParameters
from .prompt import Text, write_script
from .recipes import unwise
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
) -> Run:
    """Prepare a generation up to its first step.

    Raises:
        ParameterError: an option is unknown or out of range.
    """
    started = time.perf_counter()
    plan, given = pipeline.plan, filled(options)
    given["prompt"] = None if prompt is None else texts("prompt", prompt)
    for name, value in (
        ("negative_prompt", negative_prompt),
        ("prompt_2", given["prompt_2"]),
        ("negative_prompt_2", given["negative_prompt_2"]),
    ):
        given[name] = None if value is None else texts(name, value)
    conditioning, tile = given.pop("conditioning"), given.pop("tile")
    latents = given.pop("latents")
    latents = None if latents is None else checked_latents("latents", latents)
    pictures = _read_pictures(plan, given)
    parameters = _parameters(plan, given, conditioning, pictures)
    _warn(pipeline, parameters)
    token = _core.CancelToken()
    with pipeline.running(token):
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
        phases = _phases(pipeline, parameters, conditioning, facts, steps.schedule.steps, token)
    inputs = RunInputs(parameters, phases, start, pictures, tile)
    return Run(pipeline, inputs, time.perf_counter() - started)


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


def _read_pictures(plan: ModelPlan, given: dict[str, Any]) -> Pictures:
    """Read the given pictures in the size of the result, which is theirs unless it was given."""
    image, mask, depth = (given.pop(name) for name in ("image", "mask", "depth"))
    mode, first = given.pop("resize_mode"), image if image is not None else depth
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
    guidance = given["guidance"] or Guidance()
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


def _warn(pipeline: Pipeline, parameters: GenerateParameters) -> None:
    """Say what is known to go wrong with these parameters."""
    if pipeline.plan.reads_guidance and pipeline.recipe is None:
        return  # a consistency model whose name does not say so
    explicit = parameters.sigmas is not None or parameters.timesteps is not None
    messages = unwise(
        pipeline.recipe,
        pipeline.plan.family.name,
        steps=parameters.steps,
        guidance=max(parameters.guidance.scales),
        sampler=parameters.sampler,
        schedule="explicit" if explicit else parameters.schedule,
        width=parameters.width,
        height=parameters.height,
        zero_terminal_snr=pipeline.plan.scheduler.rescale_zero_snr,
    )
    for message in messages:
        warnings.warn(message, UnwiseWarning, stacklevel=5)


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
    if script.loras:
        names = ", ".join(tag.name for tag in script.loras)
        raise ParameterError(
            f"the prompt asks for the LoRA {names}, and adapters are not supported yet; remove the tag"
        )
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
) -> Result:
    """SDXL's ensemble of experts: `base` does the first part of the noise schedule, `refiner` the rest.

    Both run over the same steps, sampler and seed; the refiner takes its own defaults for everything else.
    """
    cut = options.get("denoising_end")
    cut = REFINER_TAKES_OVER if cut is None else cut
    first = finish(
        base.start(prompt, negative_prompt, **{**options, "denoising_end": cut}), callback
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
    second = refiner.start(
        prompt,
        negative_prompt,
        latents=first.latents,
        denoising_start=cut,
        **shared,
        tile=options.get("tile"),
    )
    return finish(second, callback).result()
