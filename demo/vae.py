"""The autoencoder: a small diffusers ``AutoencoderKL``, four latent channels, factor 8.

It is trained on reconstruction with three additions:

* the latents are whitened by a penalty on their mean and covariance, (cov - I)^2, instead of the
  usual divergence, under which small encoders leave channels unused;
* a little noise is added to the latents before decoding, so that the decoder forgives the small
  errors a denoiser makes;
* an edge term (differences of neighbouring pixels) keeps outlines crisp.

When it is done, the exact mean and scale of the latents over the data set are folded into
``quant_conv`` and ``post_quant_conv``, such that latents times 0.18215 (Stable Diffusion's
factor) have mean zero and variance one, and the posterior gets the constant width it was trained
with.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from demo import shapes
from demo.checker import check
from demo.training import Loss, Plan, Settings, Team, Weights, fit, to_tensor

SCALING_FACTOR = 0.18215
LATENT_NOISE = 0.1
"""Standard deviation of the noise added to latents of variance one."""

_PEAK_RATE = 6e-4
_CROP = 64
_CROP_PART = 0.45
"""Crops of this size are enough for the first part of the training, and four times cheaper."""
_BANK = 1500
"""Pictures drawn at a time and used a few times over."""


def new_model(**changes: Any) -> AutoencoderKL:
    """Return the untrained autoencoder; ``changes`` are settings of diffusers' that differ."""
    settings: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 64, 64),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": shapes.SIZE,
        "scaling_factor": SCALING_FACTOR,
    }
    return AutoencoderKL(**{**settings, **changes})


class PictureBank:
    """An endless supply of random training pictures."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._triples = shapes.training_triples()
        self._pixels = np.empty((0, shapes.SIZE, shapes.SIZE, 3), np.uint8)
        self._uses = 0

    def batch(self, count: int, crop: int = shapes.SIZE) -> Tensor:
        """Return ``count`` pictures, or random crops of them, [count, 3, crop, crop] in -1..1."""
        if len(self._pixels) == 0 or self._uses > 3 * _BANK:
            self._pixels = np.stack([np.asarray(self._draw()) for _ in range(_BANK)])
            self._uses = 0
        self._uses += count
        parts = []
        for _ in range(count):
            x, y = (self._rng.randint(0, shapes.SIZE - crop) for _ in "xy")
            picture = self._pixels[self._rng.randrange(_BANK)]
            parts.append(picture[y : y + crop, x : x + crop])
        return to_tensor(np.stack(parts))

    def _draw(self) -> Image.Image:
        triple = self._rng.choice(self._triples)
        return shapes.draw(shapes.random_scene(triple, self._rng))


def whitening_penalty(latents: Tensor) -> Tensor:
    """Return how far latents [N, C, H, W] are from mean zero and unit covariance."""
    flat = latents.movedim(1, 0).flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    covariance = (flat - mean) @ (flat - mean).T / flat.shape[1]
    unit = torch.eye(len(flat), device=flat.device)
    return (covariance - unit).square().mean() + mean.square().mean()


def _edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    return pictures.diff(dim=2), pictures.diff(dim=3)


def restoration_loss(restored: Tensor, pictures: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return the reconstruction part of the loss, and the mean squared error for the log."""
    squared = functional.mse_loss(restored, pictures)
    edges = [
        functional.l1_loss(a, b) for a, b in zip(_edges(restored), _edges(pictures), strict=True)
    ]
    loss = functional.l1_loss(restored, pictures) + squared + 0.5 * torch.stack(edges).sum()
    return loss, {"squared": float(squared.detach())}


PictureLoss = Callable[[AutoencoderKL, Tensor], tuple[Tensor, dict[str, float]]]
"""From an autoencoder and pictures [N, 3, H, W] to a loss, and figures for the log."""


def _whole_loss(model: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, dict[str, float]]:
    latents = model.encode(pictures).latent_dist.mean
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    loss, figures = restoration_loss(model.decode(noisy).sample, pictures)
    return loss + 0.3 * whitening_penalty(latents), figures


def _decoder_loss(model: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, dict[str, float]]:
    with torch.no_grad():
        latents = model.encode(pictures).latent_dist.sample()
    return restoration_loss(model.decode(latents).sample, pictures)


def train(settings: Settings, team: Team) -> None:
    """Train the autoencoder until the time budget is used up; resumes from its checkpoint."""
    torch.manual_seed(settings.seed)
    fit_autoencoder(settings, team, "vae", new_model(), _whole_loss, finish, _CROP_PART)


def polish(settings: Settings, team: Team) -> None:
    """Train the decoder alone for longer, for sharper corners; the latents stay what they are.

    Since the encoder is frozen, this may run before, after or beside the denoiser's training.
    """
    model = load_finished(settings.folder)
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    fit_autoencoder(settings, team, "polish", model, _decoder_loss, _filled)


def _filled(weights: Weights) -> AutoencoderKL:
    model = new_model()
    model.load_state_dict(weights)
    return model.eval()


def fit_autoencoder(
    settings: Settings,
    team: Team,
    name: str,
    model: AutoencoderKL,
    picture_loss: PictureLoss,
    finished: Callable[[Weights], AutoencoderKL],
    crop_part: float = 0.0,
) -> None:
    """Train an autoencoder on pictures and write it to ``settings.folder / name``.

    Args:
        settings: of the stage.
        team: its processes.
        name: of the checkpoint, the log and the folder.
        model: what is trained; parameters that need no gradient stay as they are.
        picture_loss: what is minimised.
        finished: makes the model to ship from averaged weights.
        crop_part: part of the time budget, 0 to 1, that is spent on crops.
    """
    model.to(memory_format=torch.channels_last)

    def begin(seed: int) -> Loss:
        bank = PictureBank(seed)

        def loss(progress: float) -> tuple[Tensor, dict[str, float]]:
            crop = _CROP if progress < crop_part else shapes.SIZE
            pictures = bank.batch(16 if crop == _CROP else 6, crop)
            return picture_loss(
                model, pictures.to(settings.device, memory_format=torch.channels_last)
            )

        return loss

    def write(weights: Weights) -> dict[str, float]:
        result = finished(weights)
        result.save_pretrained(settings.folder / name)
        return report(result, 60)

    fit(settings, team, Plan(name, model, begin, write, _PEAK_RATE, 0.998, 1e-3))


@torch.no_grad()
def finish(weights: Weights) -> AutoencoderKL:
    """Return the model with the mean and scale of its latents folded into its 1 x 1 convolutions.

    Whitening is per channel: z' = (z - mean) / (deviation * 0.18215).
    """
    model = new_model()
    model.load_state_dict(weights)
    model.eval()
    bank = PictureBank(seed=99)
    latents = torch.cat([model.encode(bank.batch(20)).latent_dist.mean for _ in range(10)])
    flat = latents.movedim(1, 0).flatten(1).double()
    mean, deviation = flat.mean(dim=1), flat.std(dim=1) * SCALING_FACTOR
    quant, post = model.quant_conv, model.post_quant_conv
    weight, bias = quant.weight.double(), quant.bias.double()
    quant.weight[:4] = (weight[:4] / deviation[:, None, None, None]).float()
    quant.bias[:4] = ((bias[:4] - mean) / deviation).float()
    # Channels 4 to 7 are the logarithm of the posterior's variance: constant, as trained.
    quant.weight[4:] = 0
    quant.bias[4:] = (2 * (LATENT_NOISE * flat.std(dim=1) / deviation).log()).float()
    weight = post.weight.double()
    post.bias += (weight[:, :, 0, 0] @ mean).float()
    post.weight.copy_((weight * deviation[None, :, None, None]).float())
    return model


@torch.no_grad()
def report(model: AutoencoderKL, count: int) -> dict[str, float]:
    """Measure reconstructions: PSNR in dB, parts judged right, the latents' least variance.

    ``least`` and ``most`` are the extreme eigenvalues of the covariance of the scaled latents; a
    dead channel would show as a value near zero.
    """
    rng, config = random.Random(5), model.config
    triples = tuple(shapes.triples())
    scenes = [shapes.random_scene(rng.choice(triples), rng) for _ in range(count)]
    right = {"shape": 0, "colour": 0, "ground": 0}
    error, latents = 0.0, []
    for start in range(0, count, 20):
        part = scenes[start : start + 20]
        pictures = to_tensor(np.stack([np.asarray(shapes.draw(s)) for s in part]))
        z = model.encode(pictures).latent_dist.mean
        latents.append((z - (config.shift_factor or 0.0)) * config.scaling_factor)
        restored = model.decode(z).sample.clamp(-1, 1)
        error += float(functional.mse_loss(restored, pictures)) * len(part) / count
        for scene, picture in zip(part, to_pictures(restored), strict=True):
            verdict = check(picture)
            right["shape"] += verdict.shape == scene.shape
            right["colour"] += verdict.colour == scene.colour
            right["ground"] += verdict.background == scene.background
    eigenvalues = torch.linalg.eigvalsh(torch.cat(latents).movedim(1, 0).flatten(1).cov())
    return {
        "psnr": -10 * float(np.log10(error / 4)),
        **{name: value / count for name, value in right.items()},
        "least": float(eigenvalues[0]),
        "most": float(eigenvalues[-1]),
    }


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Turn floats [N, 3, H, W] in -1..1 into pictures."""
    bytes_ = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in bytes_]


def load_finished(folder: Path, polished: bool = False) -> AutoencoderKL:
    """Load the trained autoencoder, with the polished decoder if wanted and there is one."""
    name = "polish" if polished and (folder / "polish").exists() else "vae"
    # Not from_pretrained, which would write this folder's path into the exported configuration.
    return _filled(load_file(folder / name / "diffusion_pytorch_model.safetensors"))
