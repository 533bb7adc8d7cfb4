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
    "euler ancestral cfg++": "euler_a_cfg_pp",
    "euler ge": "euler_ge",
    "edm euler": "euler",
    "flow match euler discrete": "euler",
    "flow match heun discrete": "heun",
    "flow match lcm": "lcm",
    "gradient estimation": "euler_ge",
    "heun++": "heunpp2",
    "heun++ 2": "heunpp2",
    "dpm 2 a": "dpm2_a",
    "res multistep ancestral": "res_multistep_a",
    "ddim cfg++": "euler_cfg_pp",
    "dpm++ 2m sde bt": "dpm++2m_sde",
    "edm dpm solver multistep": "dpm++2m",
    "ipndm v": "ipndm_v",
    "ddpm wuerstchen": "ddpm",
    "ddim parallel": "ddim",
    "ddpm parallel": "ddpm",
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

REFUSED_SAMPLERS = {
    "dpm fast": "it mixes orders within a run; use dpm++2m",
    "dpm ad": "it chooses its own steps; use dpm++2m",
    "dpm adaptive": "it chooses its own steps; use dpm++2m",
    "restart": "it goes back up to levels that were left; use heun or euler with s_churn",
    "seeds 2": "use dpm++sde, a solver of the same order for the same equation",
    "seeds 3": "use dpm++3m_sde, a solver of the same order for the same equation",
    "sa solver": "use dpm++3m_sde",
    "sa solver pece": "use dpm++3m_sde",
    "exp heun 2 x0": "use res_2s",
    "exp heun 2 x0 sde": "use dpm++sde",
    "cfgpp ud10 ab": "use euler_cfg_pp",
    "dpm++ 2s ancestral cfg++": "use euler_a_cfg_pp",
    "dpm++ 2s a cfg++": "use euler_a_cfg_pp",
    "res multistep cfg++": "use dpm++2m_cfg_pp",
    "res multistep ancestral cfg++": "use euler_a_cfg_pp",
    "gradient estimation cfg++": "use euler_cfg_pp",
    "dpm++ 3m sde ctrl-z": "use dpm++3m_sde",
    "cm stochastic iterative": "it is for consistency models over pixels; use lcm",
    "karras ve": "use heun with s_churn",
    "ddim inverse": "it runs from a picture to noise; use ddim",
    "dpm solver multistep inverse": "it runs from a picture to noise; use dpm++2m",
}
"""Samplers of those programs that sdengine lacks, and what to use instead."""

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
    schedules = _spellings(SCHEDULES, SCHEDULE_ALIASES)
    name, implied = _sampler_and_schedule(sampler, schedules)
    if schedule is None:
        return name, implied
    if _folded(schedule) not in schedules:
        raise ParameterError(f"there is no schedule {schedule!r}; known are {', '.join(SCHEDULES)}")
    return name, schedules[_folded(schedule)]


def _sampler_and_schedule(sampler: str, schedules: dict[str, str]) -> tuple[str, str | None]:
    """A sampler's name, and that of the schedule that it ends in."""
    samplers = _spellings(SAMPLERS, SAMPLER_ALIASES)
    refused = _spellings((), REFUSED_SAMPLERS)
    folded = _folded(sampler)
    # The longest first: "polyexponential" ends in "exponential" too.
    for ending in ["", *sorted({**schedules, **_SHORT_SCHEDULES}, key=len, reverse=True)]:
        if not folded.endswith(ending):
            continue
        stem = folded.removesuffix(ending)
        if stem in samplers:
            return samplers[stem], {"": None, **schedules, **_SHORT_SCHEDULES}[ending]
        if stem in refused:
            raise ParameterError(f"there is no sampler {sampler!r}: {refused[stem]}")
    raise ParameterError(f"there is no sampler {sampler!r}; known are {', '.join(SAMPLERS)}")


# At the end of a sampler's name only: A1111's k_dpmpp_2m_ka.
_SHORT_SCHEDULES = {"ka": "karras", "exp": "exponential"}


def _folded(name: str) -> str:
    """A name without what its spellings differ in."""
    text = name.lower().removeprefix("k_").removesuffix("_gpu").removesuffix("scheduler")
    return re.sub(r"[\s_()-]", "", text).replace("++", "pp")


def _spellings(names: Sequence[str], aliases: dict[str, str]) -> dict[str, str]:
    """Folded spelling -> name, the names themselves among them."""
    return {_folded(key): name for key, name in [*aliases.items(), *((n, n) for n in names)]}
