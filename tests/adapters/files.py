"""Adapter files with random values, in the forms that trainers write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj", "net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv", "conv_in", "conv_shortcut", "time_emb_proj")
ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def modules_of(network: torch.nn.Module, endings: Iterable[str]) -> dict[str, torch.nn.Module]:
    """The linear layers and convolutions whose names end so."""
    kinds = torch.nn.Linear, torch.nn.Conv2d
    wanted = tuple(endings)
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, kinds)
        and (name in wanted or name.endswith(tuple(f".{w}" for w in wanted)))
    }


def randn(shape: Iterable[int], seed: int, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator) * spread


def pair(module: torch.nn.Module, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) of a LoRA whose change is about a third of the weight."""
    weight = module.weight.detach()
    shape = weight.shape
    down = randn((rank, *shape[1:]), seed, 1 / float(shape[1:].numel()) ** 0.5)
    up = randn((shape[0], rank, *([1] * (len(shape) - 2))), seed + 1, float(weight.std()))
    return down, up


def lora(
    network: torch.nn.Module,
    endings: Iterable[str],
    rename: Callable[[str], str],
    *,
    rank: int = 4,
    alpha: float | None = None,
    names: tuple[str, str] = (".lora_down.weight", ".lora_up.weight"),
    seed: int = 0,
) -> State:
    """A LoRA over the modules that end so."""
    state: State = {}
    for number, (name, module) in enumerate(modules_of(network, endings).items()):
        down, up = pair(module, rank, seed * 10_000 + 2 * number)
        state[rename(name) + names[0]], state[rename(name) + names[1]] = down, up
        if alpha is not None:
            state[f"{rename(name)}.alpha"] = torch.tensor(alpha)
    return state


def kohya(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name.replace(".", "_")


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def write(path: Path, state: State) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, str(path))
    return path
