"""The autoencoder of the rectified-flow model: the demo's own, with 16 latent channels.

It has Stable Diffusion 3's latent format: no 1 x 1 convolutions around the latents, a scale of 1.5305 and a
shift of 0.0609. Training starts from the weights of the 4-channel one; only the two convolutions that make
and read latents are new. What demo/vae.py says about whitening and noise holds here too; since all of it
happens in scaled latents, nothing is left to fold in at the end but the constant width of the posterior.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from demo import vae
from demo.training import Settings, Team, Weights

CHANNELS = 16
SCALE, SHIFT = 1.5305, 0.0609
"""Of Stable Diffusion 3's latents (the published vae/config.json)."""

_NEW = ("quant_conv", "post_quant_conv", "encoder.conv_out", "decoder.conv_in")
"""Parts of the 4-channel autoencoder that do not fit."""


def new_model() -> AutoencoderKL:
    """Return the untrained autoencoder."""
    return vae.new_model(
        latent_channels=CHANNELS,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _loss(model: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, dict[str, float]]:
    latents = (model.encode(pictures).latent_dist.mean - SHIFT) * SCALE
    noisy = latents + vae.LATENT_NOISE * torch.randn_like(latents)
    loss, figures = vae.restoration_loss(model.decode(noisy / SCALE + SHIFT).sample, pictures)
    return loss + 0.3 * vae.whitening_penalty(latents), figures


def train(settings: Settings, team: Team) -> None:
    """Train the autoencoder until the time budget is used up; resumes from its checkpoint."""
    torch.manual_seed(settings.seed)
    model = new_model()
    narrow = vae.load_finished(settings.folder, polished=True).state_dict()
    known = {name: value for name, value in narrow.items() if not name.startswith(_NEW)}
    model.load_state_dict(known, strict=False)
    vae.fit_autoencoder(settings, team, "wide_vae", model, _loss, _finished)


@torch.no_grad()
def _finished(weights: Weights) -> AutoencoderKL:
    """Return the model with the constant posterior that it was trained with."""
    model = _filled(weights)
    spread = model.encoder.conv_out  # its second half is the logarithm of the variance
    spread.weight[CHANNELS:] = 0
    spread.bias[CHANNELS:] = 2 * math.log(vae.LATENT_NOISE / SCALE)
    return model


def _filled(weights: Weights) -> AutoencoderKL:
    model = new_model()
    model.load_state_dict(weights)
    return model.eval()


def load_finished(folder: Path) -> AutoencoderKL:
    """Load the trained autoencoder."""
    return _filled(load_file(folder / "wide_vae" / "diffusion_pytorch_model.safetensors"))
