"""The names of samplers and schedules, and the spellings that other programs use for them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sdengine import _core
from sdengine.errors import ParameterError

SAMPLERS: tuple[str, ...] = tuple(_core.sampler_names())
SCHEDULES: tuple[str, ...] = tuple(_core.schedule_names())

SAMPLER_ALIASES = {
    "euler ancestral": "euler_a",
    "euler discrete": "euler",
    "euler ancestral discrete": "euler_a",
    "gradient estimation": "euler_ge",
    "heun discrete": "heun",
    "dpm 2 ancestral": "dpm2_a",
    "kdpm2 discrete": "dpm2",
    "kdpm2 ancestral discrete": "dpm2_a",
    "dpm++ 2s": "dpm++2s_a",
    "dpm++ 2s ancestral": "dpm++2s_a",
    "dpm++ 2m v2": "dpm++2mv2",
    "dpm solver multistep": "dpm++2m",
    "dpm solver singlestep": "dpm++2s_a",
    "dpm solver sde": "dpm++sde",
    "deis multistep": "deis",
    "lms discrete": "lms",
    "pndm": "ipndm",
    "plms": "ipndm",
    "ddim trailing": "ddim",
    "unipc": "unipc_bh1",
    "unipc multistep": "unipc_bh2",
}
"""Spellings of A1111, ComfyUI, diffusers, stable-diffusion.cpp and GPUStack that differ in more than case, spaces,
``_``, ``-``, ``pp`` for ``++``, ``k_`` in front, and ``scheduler`` or ``gpu`` at the end: those are ignored."""

SCHEDULE_ALIASES = {
    "normal": "discrete",
    "default": "discrete",
    "automatic": "discrete",
    "uniform": "discrete",
    "ddim": "ddim_uniform",
    "align your steps": "ays",
    "align your steps sdxl": "ays_sdxl",
    "sd turbo": "turbo",
}


def resolve_names(sampler: str, schedule: str | None = None) -> tuple[str, str | None]:
    """The names that sdengine uses for a sampler and a schedule.

    A sampler's name may end in a schedule's: ``"DPM++ 2M Karras"`` gives ``("dpm++2m", "karras")``.

    Raises:
        ParameterError: a name is unknown; the message lists the choices.
    """
    for given in (sampler, schedule):
        if given is not None and not isinstance(given, str):
            raise ParameterError(f"a sampler or schedule is named by a text, not {given!r}")
    samplers = _spellings(SAMPLERS, SAMPLER_ALIASES)
    schedules = _spellings(SCHEDULES, SCHEDULE_ALIASES)
    name, implied = samplers.get(_folded(sampler)), None
    if name is None:
        # The longest first: "polyexponential" ends in "exponential" too.
        for ending in sorted(schedules, key=len, reverse=True):
            if found := samplers.get(_folded(sampler).removesuffix(ending)):
                name, implied = found, schedules[ending]
                break
    if name is None:
        raise ParameterError(f"there is no sampler {sampler!r}; known are {', '.join(SAMPLERS)}")
    if schedule is None:
        return name, implied
    if _folded(schedule) not in schedules:
        raise ParameterError(f"there is no schedule {schedule!r}; known are {', '.join(SCHEDULES)}")
    return name, schedules[_folded(schedule)]


def _folded(name: str) -> str:
    """A name without what its spellings differ in."""
    text = name.lower().removeprefix("k_").removesuffix("_gpu").removesuffix("scheduler")
    return re.sub(r"[\s_()-]", "", text).replace("++", "pp")


def _spellings(names: Sequence[str], aliases: dict[str, str]) -> dict[str, str]:
    """Folded spelling -> name, the names themselves among them."""
    return {_folded(key): name for key, name in [*aliases.items(), *((n, n) for n in names)]}
