"""Tiny SD3 and FLUX.1 models as single files in the layouts that publishers use.

Written from the published rules, without `sdengine.keys`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.renaming import vae_to_ldm
from tests.renaming_dit import State, flux_to_bfl, sd3_to_reference

COMFYUI = {
    "sd3": ("text_encoders.clip_l.", "text_encoders.clip_g.", "text_encoders.t5xxl."),
    "flux": ("text_encoders.clip_l.", "text_encoders.t5xxl."),
}
GPUSTACK = {
    "sd3": ("cond_stage_model.", "cond_stage_model.1.", "cond_stage_model.2."),
    "flux": ("cond_stage_model.", "cond_stage_model.1."),
}
"""What stands before ``transformer.`` in front of each text encoder: ComfyUI's checkpoints; stable-diffusion.cpp's
files, as gpustack publishes them."""
DENOISER = "model.diffusion_model."
E4M3 = torch.float8_e4m3fn


def states(folder: Path) -> dict[str, State]:
    """The tensors of every component of a diffusers folder."""
    found = {}
    for part in sorted(folder.iterdir()):
        files = list(part.glob("*.safetensors")) if part.is_dir() else []
        if files:
            found[part.name] = dict(load_file(files[0]))
    return found


def encoders(folder: Path) -> list[str]:
    return [name for name in states(folder) if name.startswith("text_encoder")]


def family_of(folder: Path) -> str:
    return "sd3" if (folder / "text_encoder_3").is_dir() else "flux"


def denoiser(folder: Path) -> State:
    """The denoiser under its original names."""
    rename = {"sd3": sd3_to_reference, "flux": flux_to_bfl}[family_of(folder)]
    return rename(states(folder)["transformer"])


def all_in_one(folder: Path, prefixes: Mapping[str, tuple[str, ...]]) -> State:
    """A whole model under original names, text encoders and autoencoder inside."""
    parts = states(folder)
    result = {DENOISER + n: t for n, t in denoiser(folder).items()}
    for name, prefix in zip(encoders(folder), prefixes[family_of(folder)], strict=True):
        result |= {f"{prefix}transformer.{n}": t for n, t in parts[name].items()}
    prefix = "vae." if prefixes is COMFYUI and family_of(folder) == "flux" else "first_stage_model."
    return result | {prefix + n: t for n, t in vae_to_ldm(parts["vae"]).items()}


def scaled(
    state: Mapping[str, torch.Tensor], prefixes: tuple[str, ...], weight: str, given: str
) -> tuple[State, State]:
    """Matrices below the prefixes in eight bits, with a factor each; and the values that are left."""
    stored: State = {prefix + "scaled_fp8": torch.empty(0, dtype=E4M3) for prefix in prefixes}
    left: State = {}
    for name, tensor in state.items():
        below = name.startswith(prefixes) and name.endswith(".weight") and tensor.ndim == 2
        if not below:
            stored[name] = left[name] = tensor
            continue
        factor = tensor.abs().max() / 448  # the largest number of e4m3
        stored[name] = (tensor / factor).to(E4M3)
        left[name] = stored[name].float() * factor
        module = name.removesuffix("weight")
        stored[module + weight] = factor.reshape(())
        stored[module + given] = torch.ones(())
        if given == "input_scale":
            stored[module + "comfy_quant"] = torch.tensor(list(b"{}"), dtype=torch.uint8)
    return stored, left


def written(
    state: Mapping[str, torch.Tensor],
    path: Path,
    folder: Path,
    write: Callable[[Mapping[str, torch.Tensor], Path], object] | None = None,
) -> Path:
    """The file, with the tokenizers of the model's folder beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for tokenizer in folder.glob("tokenizer*"):
        shutil.copytree(tokenizer, path.parent / tokenizer.name, dirs_exist_ok=True)
    if write is None:
        save_file({n: t.contiguous().clone() for n, t in state.items()}, path)
    else:
        write(state, path)
    return path
