"""A LoRA for the demo model: it puts every picture into a frame of the figure's colour.

Low-rank changes (Hu et al., arXiv 2106.09685) of the denoiser's residual blocks and attention, trained on
:func:`demo.shapes.draw_framed` with the usual captions, so that no word is needed to call it. The file has
PEFT's names, as diffusers writes them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict

from demo import cache, shapes, unet
from demo.training import Plan, Settings, Team, Weights, fit

RANK = 4
PICTURES = 3000
FILE = "frame_lora.safetensors"

_BATCH = 24
_PEAK_RATE = 4e-3
_TARGETS = ("conv1", "conv2", "to_v", "to_out.0")
"""The last parts of the names of the layers that are changed."""


def prepare(folder: Path) -> cache.Cache:
    """Return the framed pictures that the LoRA is trained on."""
    return unet.open_cache(folder, "framed", cache.training_scenes(PICTURES), shapes.draw_framed)


def train(settings: Settings, team: Team) -> None:
    """Train the LoRA until the time budget is used up; resumes from its checkpoint."""
    torch.manual_seed(settings.seed)
    model = unet.load_finished(settings.folder)
    model.requires_grad_(False)
    # Strength 1 is alpha / rank = 1, and so the file needs no alpha.
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(_TARGETS)))
    unet.for_training(model)
    loss = unet.loss_with(settings.device, lambda *given: model(*given).sample)
    begin = prepare(settings.folder).losses(_BATCH, settings.device, loss)

    def finish(weights: Weights) -> dict[str, float]:
        trained = get_peft_model_state_dict(model, weights)
        StableDiffusionPipeline.save_lora_weights(
            settings.folder,
            {name: value.half().cpu().contiguous() for name, value in trained.items()},
            weight_name=FILE,
        )
        return {"bytes": float((settings.folder / FILE).stat().st_size)}

    fit(settings, team, Plan("lora", model, begin, finish, _PEAK_RATE))
