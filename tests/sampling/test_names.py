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
    "DDIM CFG++": "euler_cfg_pp",
    "PLMS": "ipndm",
    "UniPC": "unipc_bh1",
    "LCM": "lcm",
    "Heun++": "heunpp2",
    "DDPM": "ddpm",
    "ER SDE": "er_sde",
    "k_euler_a": "euler_a",
    "k_euler_ancestral": "euler_a",
    "k_euler": "euler",
    "k_lms": "lms",
    "k_heun": "heun",
    "k_dpm_2": "dpm2",
    "k_dpm_2_a": "dpm2_a",
    "k_dpmpp_2s_a": "dpm++2s_a",
    "k_dpmpp_2m": "dpm++2m",
    "k_dpmpp_sde": "dpm++sde",
    "k_dpmpp_2m_sde": "dpm++2m_sde",
    "k_dpmpp_3m_sde": "dpm++3m_sde",
    "k_lcm": "lcm",
}
COMFYUI = {
    "euler": "euler",
    "euler_ancestral": "euler_a",
    "euler_cfg_pp": "euler_cfg_pp",
    "euler_ancestral_cfg_pp": "euler_a_cfg_pp",
    "heun": "heun",
    "heunpp2": "heunpp2",
    "dpmpp_2m_cfg_pp": "dpm++2m_cfg_pp",
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
    "res_multistep_ancestral": "res_multistep_a",
    "gradient_estimation": "euler_ge",
    "er_sde": "er_sde",
    "ddim": "ddim",
    "uni_pc": "unipc_bh1",
    "uni_pc_bh2": "unipc_bh2",
}
DIFFUSERS = {
    "DDIMParallelScheduler": "ddim",
    "DDIMScheduler": "ddim",
    "DDPMParallelScheduler": "ddpm",
    "DDPMScheduler": "ddpm",
    "DDPMWuerstchenScheduler": "ddpm",
    "EDMDPMSolverMultistepScheduler": "dpm++2m",
    "EDMEulerScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "FlowMatchLCMScheduler": "lcm",
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
    "dpm++2m_sde_bt": "dpm++2m_sde",
    "euler_cfg_pp": "euler_cfg_pp",
    "euler_a_cfg_pp": "euler_a_cfg_pp",
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
REFUSED = [
    # A1111 and its forks
    "DPM fast",
    "DPM adaptive",
    "k_dpm_fast",
    "k_dpm_ad",
    "Restart",
    "DPM++ 3M SDE Ctrl-Z",
    # ComfyUI
    "dpm_fast",
    "dpm_adaptive",
    "exp_heun_2_x0",
    "exp_heun_2_x0_sde",
    "dpmpp_2s_ancestral_cfg_pp",
    "cfgpp_ud10_ab",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation_cfg_pp",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    # diffusers
    "CMStochasticIterativeScheduler",
    "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler",
    "KarrasVeScheduler",
    "SASolverScheduler",
]
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
        ("DPM++ SDE Karras", ("dpm++sde", "karras")),
        ("LMS Karras", ("lms", "karras")),
        ("k_lms_ka", ("lms", "karras")),
        ("k_dpm_2_ka", ("dpm2", "karras")),
        ("k_dpm_2_a_ka", ("dpm2_a", "karras")),
        ("k_dpmpp_2s_a_ka", ("dpm++2s_a", "karras")),
        ("k_dpmpp_2m_ka", ("dpm++2m", "karras")),
        ("k_dpmpp_sde_ka", ("dpm++sde", "karras")),
        ("k_dpmpp_2m_sde_exp", ("dpm++2m_sde", "exponential")),
        ("UniPC Karras", ("unipc_bh1", "karras")),
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


@pytest.mark.parametrize("name", [*REFUSED, "Restart Karras"])
def test_what_there_is_not_says_what_to_use(name: str) -> None:
    for spelling in (name, name.upper()):
        with pytest.raises(sdengine.ParameterError, match="no sampler .*: .*use ") as caught:
            resolve_names(spelling)
        advised = str(caught.value).split("use ")[-1].split(" ")[0].rstrip(",")
        assert advised in SAMPLERS, advised


def test_every_sampler_of_comfyui_is_known_or_refused() -> None:
    # comfy/samplers.py, KSAMPLER_NAMES and SAMPLER_NAMES.
    names = """euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0
        exp_heun_2_x0_sde dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral
        dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde
        dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm
        lcm ipndm ipndm_v deis cfgpp_ud10_ab res_multistep res_multistep_cfg_pp
        res_multistep_ancestral res_multistep_ancestral_cfg_pp gradient_estimation
        gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver sa_solver_pece ddim uni_pc
        uni_pc_bh2""".split()
    assert {*names} == {*COMFYUI, *(name for name in REFUSED if name in names)}


def test_aliases_lead_to_names() -> None:
    assert set(SAMPLER_ALIASES.values()) <= set(SAMPLERS)
    assert set(SCHEDULE_ALIASES.values()) <= set(SCHEDULES)
