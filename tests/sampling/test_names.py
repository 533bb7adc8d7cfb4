"""The names that people type, from the programs they know."""

from __future__ import annotations

import pytest

import sdengine
from sdengine.sampling import (
    SAMPLER_ALIASES,
    SAMPLERS,
    SCHEDULE_ALIASES,
    SCHEDULES,
    resolve_names,
)

A1111 = {
    "Euler": "euler",
    "Euler a": "euler_a",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm2",
    "DPM2 a": "dpm2_a",
    "DPM++ 2M": "dpm++2m",
    "DPM++ SDE": "dpm++sde",
    "DPM++ 2M SDE": "dpm++2m_sde",
    "DPM++ 2M SDE Heun": "dpm++2m_sde_heun",
    "DPM++ 2S a": "dpm++2s_a",
    "DPM++ 3M SDE": "dpm++3m_sde",
    "DDIM": "ddim",
    "PLMS": "ipndm",
    "UniPC": "unipc_bh1",
    "LCM": "lcm",
}
COMFYUI = {
    "euler": "euler",
    "euler_ancestral": "euler_a",
    "heun": "heun",
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_a",
    "lms": "lms",
    "dpmpp_2s_ancestral": "dpm++2s_a",
    "dpmpp_sde": "dpm++sde",
    "dpmpp_sde_gpu": "dpm++sde",
    "dpmpp_2m": "dpm++2m",
    "dpmpp_2m_sde": "dpm++2m_sde",
    "dpmpp_2m_sde_gpu": "dpm++2m_sde",
    "dpmpp_2m_sde_heun": "dpm++2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu": "dpm++2m_sde_heun",
    "dpmpp_3m_sde": "dpm++3m_sde",
    "dpmpp_3m_sde_gpu": "dpm++3m_sde",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "ipndm": "ipndm",
    "ipndm_v": "ipndm_v",
    "deis": "deis",
    "res_multistep": "res_multistep",
    "gradient_estimation": "euler_ge",
    "er_sde": "er_sde",
    "ddim": "ddim",
    "uni_pc": "unipc_bh1",
    "uni_pc_bh2": "unipc_bh2",
}
DIFFUSERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpm++2m",
    "DPMSolverSDEScheduler": "dpm++sde",
    "DPMSolverSinglestepScheduler": "dpm++2s_a",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "IPNDMScheduler": "ipndm",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a",
    "KDPM2DiscreteScheduler": "dpm2",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "ipndm",
    "TCDScheduler": "tcd",
    "UniPCMultistepScheduler": "unipc_bh2",
}
# GPUStack passes stable-diffusion.cpp's names on.
STABLE_DIFFUSION_CPP = {
    "euler": "euler",
    "euler_a": "euler_a",
    "euler_ge": "euler_ge",
    "heun": "heun",
    "dpm2": "dpm2",
    "dpm++2s_a": "dpm++2s_a",
    "dpm++2m": "dpm++2m",
    "dpm++2mv2": "dpm++2mv2",
    "dpm++2m_sde": "dpm++2m_sde",
    "ipndm": "ipndm",
    "ipndm_v": "ipndm_v",
    "lcm": "lcm",
    "lms": "lms",
    "ddim_trailing": "ddim",
    "tcd": "tcd",
    "res_multistep": "res_multistep",
    "res_2s": "res_2s",
    "er_sde": "er_sde",
    "k_euler": "euler",
    "k_euler_ancestral": "euler_a",
    "k_dpm_2": "dpm2",
    "k_lms": "lms",
}
SCHEDULE_NAMES = {
    "Automatic": "discrete",
    "Uniform": "discrete",
    "normal": "discrete",
    "default": "discrete",
    "discrete": "discrete",
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "polyexponential",
    "SGM Uniform": "sgm_uniform",
    "sgm_uniform": "sgm_uniform",
    "KL Optimal": "kl_optimal",
    "kl_optimal": "kl_optimal",
    "Align Your Steps": "ays",
    "AYS": "ays",
    "gits": "gits",
    "Simple": "simple",
    "DDIM": "ddim_uniform",
    "ddim_uniform": "ddim_uniform",
    "Beta": "beta",
    "Turbo": "turbo",
    "SD Turbo": "turbo",
    "linear_quadratic": "linear_quadratic",
    "smoothstep": "smoothstep",
    "lcm": "lcm",
    "bong_tangent": "bong_tangent",
}


@pytest.mark.parametrize(
    "table", [A1111, COMFYUI, DIFFUSERS, STABLE_DIFFUSION_CPP, {name: name for name in SAMPLERS}]
)
def test_samplers(table: dict[str, str]) -> None:
    for spelling, name in table.items():
        assert resolve_names(spelling) == (name, None), spelling
        assert resolve_names(spelling.upper()) == (name, None), spelling


@pytest.mark.parametrize("table", [SCHEDULE_NAMES, {name: name for name in SCHEDULES}])
def test_schedules(table: dict[str, str]) -> None:
    for spelling, name in table.items():
        assert resolve_names("euler", spelling) == ("euler", name), spelling


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("DPM++ 2M Karras", ("dpm++2m", "karras")),
        ("DPM++ 2M SDE Karras", ("dpm++2m_sde", "karras")),
        ("DPM++ 2M SDE Heun Exponential", ("dpm++2m_sde_heun", "exponential")),
        ("DPM++ 3M SDE Polyexponential", ("dpm++3m_sde", "polyexponential")),
        ("Euler SGM Uniform", ("euler", "sgm_uniform")),
        ("euler_a_align_your_steps", ("euler_a", "ays")),
    ],
)
def test_a_schedule_at_the_end_is_taken_apart(spelling: str, expected: tuple[str, str]) -> None:
    assert resolve_names(spelling) == expected
    assert resolve_names(spelling, "beta") == (expected[0], "beta")


def test_unknown_names() -> None:
    for name in ("", "karras", "k_", "dpm++", "Euler Sideways"):
        with pytest.raises(sdengine.ParameterError, match="no sampler"):
            resolve_names(name)
    with pytest.raises(sdengine.ParameterError, match="no schedule"):
        resolve_names("euler", "")


def test_aliases_lead_to_names() -> None:
    assert set(SAMPLER_ALIASES.values()) <= set(SAMPLERS)
    assert set(SCHEDULE_ALIASES.values()) <= set(SCHEDULES)
