"""A ControlNet for the demo model: white edges on black say where the shape is and how large.

A copy of the denoiser's way down and middle with a small network that reads the picture (Zhang et al., arXiv
2302.05543), trained on shapes that lie anywhere in the picture, where the model alone draws them near the middle.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel
from torch import Tensor

from demo import cache, shapes, unet
from demo.training import Plan, Settings, Team, Weights, fit

PICTURES = 5000
FOLDER = "controlnet"

_BATCH = 24
_PEAK_RATE = 1e-3
_HINT_CHANNELS = (8, 16, 32, 64)
"""Of what reads the picture: full size, then half of it at each step down to the latents'."""


def prepare(folder: Path) -> cache.Cache:
    """Return the pictures that the ControlNet is trained on, with their edges."""
    scenes = cache.training_scenes(PICTURES, spread=True)
    return unet.open_cache(folder, "edges", scenes, hint=shapes.draw_edges)


def _new_model(folder: Path) -> ControlNetModel:
    return ControlNetModel.from_unet(
        unet.load_finished(folder), conditioning_embedding_out_channels=_HINT_CHANNELS
    )


def train(settings: Settings, team: Team) -> None:
    """Train the ControlNet until the time budget is used up; resumes from its checkpoint."""
    torch.manual_seed(settings.seed)
    denoiser = unet.for_training(unet.load_finished(settings.folder).requires_grad_(False))
    denoiser.to(settings.device)
    model = unet.for_training(_new_model(settings.folder))

    def predict(noisy: Tensor, timesteps: Tensor, context: Tensor, hints: Tensor) -> Tensor:
        down, middle = model(noisy, timesteps, context, hints, return_dict=False)
        v: Tensor = denoiser(
            noisy,
            timesteps,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return v

    def finish(weights: Weights) -> dict[str, float]:
        finished = _new_model(settings.folder)
        finished.load_state_dict(weights)
        finished.half().save_pretrained(settings.folder / FOLDER)
        return {}

    loss = unet.loss_with(settings.device, predict)
    begin = prepare(settings.folder).losses(_BATCH, settings.device, loss)
    fit(settings, team, Plan("controlnet", model, begin, finish, _PEAK_RATE))
