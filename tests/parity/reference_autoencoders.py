"""Reference autoencoders with random weights, the layouts that their files come in, and rings."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.downsampling import Downsample2D
from torch.nn import functional

from sdengine.autoencoder import Autoencoder
from sdengine.devices import open_device
from sdengine.loading import plan_model
from tests.models import VAE_CONFIG, randomise

REDUCED = {
    "encoder_block_out_channels": (32, 32, 32),
    "decoder_block_out_channels": (32, 32, 32),
    "num_encoder_blocks": (1, 2, 1),
    "num_decoder_blocks": (2, 1, 1),
}


def tiny_reference(seed: int = 0, **config: object) -> AutoencoderTiny:
    """An AutoencoderTiny whose every parameter is random."""
    torch.manual_seed(seed)
    module = AutoencoderTiny(**config).eval()
    randomise(module, seed)
    return module


def kl_reference(seed: int = 0, **config: object) -> AutoencoderKL:
    """A small AutoencoderKL whose every parameter is random."""
    torch.manual_seed(seed)
    module = AutoencoderKL(**{**VAE_CONFIG, **config}).eval()
    randomise(module, seed)
    return module


def original_names(module: AutoencoderTiny) -> tuple[dict, dict]:
    """Encoder and decoder as in taesd_encoder.pth and taesd_decoder.pth: bare numbers, the decoder's
    counted from a clamp in front."""
    halves: tuple[dict, dict] = ({}, {})
    for name, tensor in module.state_dict().items():
        half, _, number, rest = name.split(".", 3)
        decoder = half == "decoder"
        halves[decoder][f"{int(number) + decoder}.{rest}"] = tensor.contiguous()
    return halves


def open_autoencoder(model: Path, vae: object = None, factor: int = 8) -> Autoencoder:
    """The engine's autoencoder of a model, or of `vae` in its place."""
    plan = plan_model(model, vae)
    assert plan.latents.factor == factor
    return Autoencoder(plan.components["vae"], factor, open_device("cpu"))


def make_circular(module: torch.nn.Module, x: bool, y: bool) -> torch.nn.Module:
    """Let every convolution of a reference wrap around along the given axes."""
    asymmetric = {
        id(m.conv) for m in module.modules() if isinstance(m, Downsample2D) and m.padding == 0
    }
    for conv in module.modules():
        if isinstance(conv, torch.nn.Conv2d) and conv.kernel_size[0] > 1:
            conv.forward = _wrapped(conv, x, y, id(conv) in asymmetric)
    return module


def _wrapped(conv: torch.nn.Conv2d, x: bool, y: bool, asymmetric: bool):
    before = 0 if asymmetric else 1

    def forward(value: torch.Tensor) -> torch.Tensor:
        if asymmetric:  # the zeros that the layer above has put there
            value = value[..., :-1, :-1]
        value = functional.pad(value, (before, 1, 0, 0), mode="circular" if x else "constant")
        value = functional.pad(value, (0, 0, before, 1), mode="circular" if y else "constant")
        return functional.conv2d(value, conv.weight, conv.bias, conv.stride, 0)

    return forward
