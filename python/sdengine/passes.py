"""The passes of a generation: one run, one with a hires pass after it, or a base model's and a refiner's."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import _core, hires
from .errors import ParameterError, UnwiseWarning
from .events import Callback, StepEvent
from .generation import begin
from .masks import MaskOptions
from .options import Texts, texts
from .prompt import extract_loras
from .results import Result
from .run import FirstPass, Run, RunInputs, Times

if TYPE_CHECKING:
    from .pipeline import Pipeline

PAINTING = ("image", "mask", "outpaint", "resize_mode", *MaskOptions.__dataclass_fields__)
"""Options that say what is painted where; a refiner keeps to them."""
REFINER_TAKES_OVER = 0.8
"""Part of the noise schedule that SDXL's base does (Podell et al. 2023, and diffusers' documentation)."""


def finish(run: Run, callback: Callback | None, started: float | None = None) -> Run:
    """Do all steps of a run, and tell the callback of each; `started` is when the first pass began."""
    if callback is not None and not callable(callback):
        raise ParameterError(f"callback must be a function of a StepEvent, not {callback!r}")
    started = time.perf_counter() if started is None else started
    while not run.done:
        run.step()
        if callback is not None:
            callback(StepEvent.of(run, time.perf_counter() - started))
    return run


def complete(run: Run, callback: Callback | None) -> Result:
    """Do all passes of a generation."""
    started = time.perf_counter()
    finish(run, callback, started)
    while (following := run.next_pass()) is not None:
        run = finish(following, callback, started)
    return run.result()


def second_pass(pipeline: Pipeline, first: Run, inputs: RunInputs, token: _core.CancelToken) -> Run:
    """The hires pass after `first`, which is done: its picture, enlarged, is partly made again.

    Raises:
        SDEngineError: as those of :func:`begin`, of the upscaler and of the autoencoder.
    """
    started, parameters, plan = time.perf_counter(), first.parameters, inputs.second
    _rest(pipeline)
    wanted = parameters.hires
    assert wanted is not None
    assert plan is not None
    # An editing model looks at the given picture in both passes; it may count as a reference.
    looks = pipeline.model.task == "edit" or inputs.pictures.image is None
    options = hires.second_options(plan, parameters, looks)
    prompt = plan.prompt if wanted.prompt is None else list(wanted.prompt)
    negative = plan.negative_prompt
    if wanted.negative_prompt is not None:
        negative = list(wanted.negative_prompt)
    clean = None
    if wanted.upscaler in hires.LATENT:
        clean = hires.enlarged_latents(first.latents, wanted, pipeline.model.latents.factor)
    else:
        upscaler = hires.network_of(pipeline, wanted, plan.upscaler)
        pictures = hires.enlarged_pictures(first.result().images, wanted, upscaler, token)
        if looks and options.get("image") is not None:
            clean = pipeline.encode_image(pictures, tile=inputs.tile)
        else:
            options["image"] = pictures
    times = Times(first.times.encode + time.perf_counter() - started, [*first.times.steps])
    before = FirstPass(first.described, times, clean)
    with warnings.catch_warnings():  # the first pass was warned of all that they share
        warnings.simplefilter("ignore", UnwiseWarning)
        return begin(pipeline, prompt, negative, options, token, before=before)


def _rest(pipeline: Pipeline) -> None:
    """Leave the memory to what comes after a pass: the next one has other graphs, or another denoiser."""
    for network in pipeline.networks.values():
        network.rest()


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

    Both run over the same steps, sampler, seed and tiles; the refiner takes its own defaults for everything else.
    """
    if any(options.get(name) is not None for name in hires.OPTIONS):
        raise ParameterError(
            "a refiner and a hires pass do not go together: leave one out, or give the picture of"
            " the first call to a second one as image="
        )
    cut = options.get("denoising_end")
    cut = REFINER_TAKES_OVER if cut is None else cut
    first = finish(
        begin(base, prompt, negative_prompt, {**options, "denoising_end": cut}, token), callback
    )
    _rest(base)
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
            "noise",
            "compat",
        )
    }
    if options.get("mask") is not None or options.get("outpaint") is not None:
        shared |= {name: first.metadata()[0][name] for name in ("width", "height")}
        shared |= {name: options[name] for name in PAINTING if name in options}
    if prompt is not None:  # the base model's LoRAs are none of the refiner's
        prompt = [extract_loras(text)[0] for text in texts("prompt", prompt)]
    rest = {"latents": first.latents, "denoising_start": cut}
    rest |= {name: options.get(name) for name in ("tile", "tiled_diffusion", "cache")}
    second = begin(refiner, prompt, negative_prompt, {**shared, **rest}, token)
    result = finish(second, callback).result()
    named = [{**of_one, "refiner": refiner.model.path.stem} for of_one in first.metadata()]
    return replace(result, metadata=named)
