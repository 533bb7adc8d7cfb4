"""What the publishers of accelerated and special models say to sample them with.

Tensors cannot tell an SDXL-Lightning from an SDXL: the file's name, its metadata or the name of a LoRA must. The rows
are :data:`RECIPES`; docs/recipes.md is the same as a table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdengine.families.naming import TITLES, says, titles, words
from sdengine.families.settings import Defaults, Prediction
from sdengine.recipe_table import RECIPES, Recipe

if TYPE_CHECKING:
    from sdengine.loading import ModelPlan

__all__ = [
    "RECIPES",
    "TITLES",
    "Recipe",
    "as_published",
    "defaults_of",
    "find_recipe",
    "prediction_of",
    "titles",
    "unwise",
    "with_recipe",
]

_STEPS = re.compile(r"\b(\d{1,2}) ?steps?\b")

SPREAD_SCHEDULES = (
    *("karras", "exponential", "polyexponential", "kl_optimal"),
    *("ays", "ays_sdxl", "gits"),
)
"""Schedules that crowd their steps at low noise, where few-step models were never trained."""

CONSISTENCY_SAMPLERS = ("lcm", "tcd")
"""Samplers that jump to the estimate and add fresh noise: right only where one evaluation is enough."""


@dataclass(frozen=True)
class _Run:
    """The settings that are judged."""

    steps: int
    guidance: float
    sampler: str
    schedule: str
    width: int
    height: int


def find_recipe(family: str, *names: str) -> Recipe | None:
    """The recipe that a name asks for.

    Words are told apart by punctuation, spaces and a change to upper case: ``v40Lightning`` and
    ``sdxl_lightning_4step`` say Lightning, ``turboprop`` does not say Turbo. A number of steps in the name is taken
    over where the publisher released a model for it.

    Args:
        family: name of the model's family.
        names: file names or stems, titles from metadata, names of LoRAs, in any order; empty ones are passed over.

    Returns:
        The first row of :data:`RECIPES` that fits any of the names; None when no row does.
    """
    spoken = [said for said in map(words, names) if said]
    for recipe in RECIPES:
        if family not in recipe.families:
            continue
        for said in spoken:
            if says(said, recipe.patterns):
                return _with_count(recipe, said)
    return None


def defaults_of(recipe: Recipe, defaults: Defaults) -> Defaults:
    """The family's defaults with everything that the recipe decides. A user's own values still come first."""
    return replace(
        defaults,
        steps=recipe.steps,
        guidance=recipe.guidance,
        sampler=recipe.sampler,
        schedule=recipe.schedule or defaults.schedule,
        timesteps=recipe.timesteps,
        eta=recipe.eta,
        shift=recipe.shift,
        width=recipe.width or defaults.width,
        height=recipe.height or defaults.height,
    )


def with_recipe(plan: ModelPlan, recipe: Recipe) -> ModelPlan:
    """The plan with the defaults of a recipe.

    A model that reads guidance as an input is told the recipe's number for that, or keeps its own.
    """
    defaults = defaults_of(recipe, plan.defaults)
    if plan.reads_guidance:  # `guidance` is for models that are guided from outside
        told = recipe.distilled_guidance
        defaults = replace(defaults, guidance=told or plan.defaults.guidance)
    return replace(plan, defaults=defaults)


def prediction_of(recipe: Recipe | None, prediction: Prediction) -> Prediction:
    """What the denoiser predicts: the recipe's, or `prediction` where it does not say."""
    return recipe.prediction if recipe is not None and recipe.prediction else prediction


def as_published(
    plan: ModelPlan, prediction_is_given: bool = False
) -> tuple[ModelPlan, Recipe | None]:
    """The plan with what the recipe of the model's name says, and that recipe; the same plan without one.

    What ``convert`` stored in the file comes first: it came from the recipe, or from whoever converted the model.

    Args:
        plan: of the model as its file has it.
        prediction_is_given: the caller says what is predicted.
    """
    recipe = find_recipe(plan.family.name, plan.path.stem, *titles(plan.metadata))
    if recipe is None:
        return plan, None
    if not prediction_is_given and "sdengine.scheduler" not in plan.metadata:
        prediction = prediction_of(recipe, plan.scheduler.prediction)
        plan = replace(plan, scheduler=replace(plan.scheduler, prediction=prediction))
    if "sdengine.defaults" not in plan.metadata:
        plan = with_recipe(plan, recipe)
    return plan, recipe


def unwise(
    recipe: Recipe | None,
    family: str,
    *,
    steps: int,
    guidance: float,
    sampler: str,
    schedule: str,
    width: int,
    height: int,
    zero_terminal_snr: bool = False,
) -> list[str]:
    """What is known to go wrong with these settings, each with what to use instead.

    Args:
        recipe: of the model, or None.
        family: name of the model's family, for models without a recipe.
        steps: number of steps.
        guidance: scale of classifier-free guidance; 0 and 1 are none.
        sampler: sdengine's name of the sampler.
        schedule: sdengine's name of the schedule; ``"explicit"`` for timesteps or sigmas that were given.
        width: pixels.
        height: pixels.
        zero_terminal_snr: the first step is pure noise.

    Returns:
        Texts for :class:`sdengine.UnwiseWarning`, none for settings without known trouble.
    """
    run = _Run(steps, guidance, sampler, schedule, width, height)
    found = [] if recipe is None else [*recipe.warnings, *_against_recipe(recipe, run)]
    title = family if recipe is None else recipe.title
    if sampler in CONSISTENCY_SAMPLERS and (recipe is None or not recipe.few_steps):
        found.append(
            f"{title} was not distilled to a consistency model, and the sampler {sampler} blurs its pictures; "
            f"use {'euler_a or dpm++2m' if recipe is None else recipe.sampler}, or load an LCM or TCD LoRA"
        )
    if zero_terminal_snr and schedule in ("ays", "ays_sdxl", "gits"):
        found.append(
            f"the schedule {schedule} starts at sigma 14.6, but this model was trained from pure noise "
            "(zero terminal SNR); use trailing or sgm_uniform"
        )
    return found


def _against_recipe(recipe: Recipe, run: _Run) -> list[str]:
    """Where a run leaves what the publisher trained for."""
    found = []
    if recipe.guidance_limit is not None and run.guidance > recipe.guidance_limit:
        found.append(
            f"{recipe.title} burns its pictures at guidance {run.guidance:g}; use {recipe.guidance:g}, "
            f"at most {recipe.guidance_limit:g}"
        )
    if recipe.steps_range is not None:
        low, high = recipe.steps_range
        if not low <= run.steps <= high:
            allowed = str(low) if low == high else f"{low} to {high}"
            found.append(
                f"{recipe.title} is made for {allowed} steps, not {run.steps}; use {recipe.steps}"
            )
    if complaint := _about_schedule(recipe, run.schedule):
        found.append(complaint)
    if recipe.max_side is not None and max(run.width, run.height) > recipe.max_side:
        found.append(
            f"{recipe.title} repeats its subject at {run.width}x{run.height}; use {recipe.width}x{recipe.height}"
        )
    if recipe.fixed_size and (run.width, run.height) != (recipe.width, recipe.height):
        found.append(
            f"{recipe.title} works at {recipe.width}x{recipe.height} only, not {run.width}x{run.height}"
        )
    return found


def _about_schedule(recipe: Recipe, schedule: str) -> str | None:
    if schedule in ("explicit", recipe.schedule):
        return None
    instead = "the model's own" if recipe.schedule is None else recipe.schedule
    if recipe.schedules and schedule not in recipe.schedules:
        return (
            f"{recipe.title} knows only the noise levels it was distilled at, and the schedule {schedule} misses them; "
            f"use {instead}"
        )
    if recipe.few_steps and schedule in SPREAD_SCHEDULES:
        return (
            f"the schedule {schedule} spends the few steps of {recipe.title} at noise levels it does not know; "
            f"use {instead}"
        )
    return None


def _with_count(recipe: Recipe, said: str) -> Recipe:
    """The recipe for the number of steps that the name says, if it was published for that number."""
    found = _STEPS.search(said)
    count = int(found[1]) if found else 0
    if count not in recipe.counts:
        return recipe
    return replace(
        recipe,
        name=f"{recipe.name}-{count}",
        title=f"{recipe.title}, {count} step{'s' if count > 1 else ''}",
        steps=count,
        guidance=dict(recipe.guidance_by_count).get(count, recipe.guidance),
        steps_range=(count, count) if recipe.exact else recipe.steps_range,
    )
