"""Tiny random upscalers, and the same under the names of other releases."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.models import randomise
from tests.parity.reference_upscalers import Rrdb, Srvgg, SwinIr

Weights = dict[str, torch.Tensor]

MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "rrdb-x1": lambda: Rrdb(12, 32, 1, 2, 4, False),
    "rrdb-x2": lambda: Rrdb(12, 32, 2, 2, 2, False),
    "rrdb-x4": lambda: Rrdb(12, 32, 2, 2, 1, False),
    "rrdb-x8": lambda: Rrdb(8, 32, 1, 3, 1, False),
    "rrdb-plus": lambda: Rrdb(8, 32, 1, 2, 1, True),
    "rrdb-narrow-x4": lambda: Rrdb(20, 6, 3, 2, 1, False),
    "srvgg-x4": lambda: Srvgg(12, 3, 4),
    "srvgg-x2": lambda: Srvgg(8, 1, 2),
    "swinir-classical-x2": lambda: SwinIr(12, [2, 3], 2, 8, "pixelshuffle", 2),
    "swinir-classical-x3": lambda: SwinIr(12, [2], 2, 8, "pixelshuffle", 3),
    "swinir-classical-x4": lambda: SwinIr(12, [2], 3, 8, "pixelshuffle", 4),
    "swinir-lightweight-x4": lambda: SwinIr(12, [2], 2, 8, "pixelshuffledirect", 4),
    "swinir-real-x4": lambda: SwinIr(12, [2], 2, 8, "nearest+conv", 4, bottleneck=True),
    "swinir-real-x2": lambda: SwinIr(12, [2], 2, 8, "nearest+conv", 2),
    "swinir-colour-x1": lambda: SwinIr(12, [2], 2, 8, "", 1),
    "swinir-grey-x1": lambda: SwinIr(12, [2], 2, 8, "", 1, channels=1),
    "swinir-jpeg-x1": lambda: SwinIr(12, [2], 2, 7, "", 1),
}


def make(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = MODELS[name]()
    randomise(model, seed + 1)
    return model.eval()


def write(path: Path, model: torch.nn.Module, names: Callable[[Weights], Weights] = dict) -> Path:
    weights = names({k: v.clone() for k, v in model.state_dict().items()})
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in weights.items()}, path)
    else:
        # Real-ESRGAN's trainer stores the averaged weights beside the last ones.
        stale = {k: torch.zeros_like(v) for k, v in weights.items()}
        torch.save({"params": stale, "params_ema": weights}, path)
    return path


def bsrgan_names(weights: Weights) -> Weights:
    """BasicSR's names to those of BSRGAN's release (network_rrdbnet.py)."""
    rules = (
        (r"^body\.(\d+)\.rdb(\d)\.", r"RRDB_trunk.\1.RDB\2."),
        (r"^conv_body\.", "trunk_conv."),
        (r"^conv_up(\d)\.", r"upconv\1."),
        (r"^conv_hr\.", "HRconv."),
    )
    return {_renamed(name, rules): tensor for name, tensor in weights.items()}


def esrgan_names(weights: Weights) -> Weights:
    """BasicSR's names to those of the first release, a chain: conv, trunk, then upsample, conv, activation each."""
    doublings = sum(bool(re.match(r"conv_up\d\.weight", name)) for name in weights)
    blocks = 1 + max(int(m[1]) for m in (re.match(r"body\.(\d+)\.", n) for n in weights) if m)
    rules = (
        (r"^conv_first\.", "model.0."),
        (r"^body\.(\d+)\.rdb(\d)\.conv1x1\.", r"model.1.sub.\1.RDB\2.conv1x1."),
        (r"^body\.(\d+)\.rdb(\d)\.conv(\d)\.", r"model.1.sub.\1.RDB\2.conv\3.0."),
        (r"^conv_body\.", f"model.1.sub.{blocks}."),
        *((rf"^conv_up{i}\.", f"model.{3 * i}.") for i in range(1, doublings + 1)),
        (r"^conv_hr\.", f"model.{3 * doublings + 2}."),
        (r"^conv_last\.", f"model.{3 * doublings + 4}."),
    )
    return {_renamed(name, rules): tensor for name, tensor in weights.items()}


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
