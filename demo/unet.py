"""The denoiser: a small diffusers ``UNet2DConditionModel`` of Stable Diffusion 1's build.

It predicts v (Salimans and Ho, arXiv 2202.00512) under a schedule whose last step holds no
signal at all (Lin et al., arXiv 2305.08891). With the usual schedule the last step still shows a
trace of the picture's mean, which training learns to trust and sampling from pure noise does not
offer; flat backgrounds would suffer most.

Latents and contexts are computed once: a training step then costs only the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from demo import cache, shapes, text_encoder, vae
from demo.export import export
from demo.training import Plan, Settings, Team, Weights, fit, stratified

PICTURES = 12_000
"""Pictures in the latent cache, about 40 of each trained combination."""

_BATCH = 32
_PEAK_RATE = 1.2e-3


def new_model() -> UNet2DConditionModel:
    """Return the untrained denoiser."""
    return UNet2DConditionModel(
        sample_size=shapes.SIZE // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 3, 4),  # heads per level: 32 channels each
        cross_attention_dim=text_encoder.WIDTH,
        norm_num_groups=16,
    )


def new_scheduler() -> EulerDiscreteScheduler:
    """Return the schedule of training and sampling: Stable Diffusion's betas, zero terminal SNR."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        steps_offset=1,  # unused with this spacing, but Stable Diffusion pipelines ask for it
    )


def open_cache(
    folder: Path,
    name: str,
    scenes: Sequence[shapes.Scene],
    drawn: Callable[[shapes.Scene], Image.Image] = shapes.draw,
    hint: Callable[[shapes.Scene], Image.Image] | None = None,
) -> cache.Cache:
    """Return latents and contexts of scenes, encoded by the trained autoencoder and text encoder.

    They are kept in ``folder / name``; see :func:`demo.cache.prepare` for the rest.
    """
    autoencoder = vae.load_finished(folder)

    def encode(pictures: Tensor) -> Tensor:
        latents: Tensor = autoencoder.encode(pictures).latent_dist.mean
        return latents * vae.SCALING_FACTOR

    def read(texts: list[str]) -> dict[str, Tensor]:
        return {"context": text_encoder.read_texts(folder, texts).context}

    return cache.prepare(folder / name, scenes, drawn, encode, read, hint)


# --- training ---------------------------------------------------------------------------------


def loss_with(device: str, model: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the loss of latents and conditions: the mean squared error of v at one timestep per picture.

    Args:
        device: of the tensors.
        model: from noisy latents, timesteps and the conditions to v.
    """
    alphas = new_scheduler().alphas_cumprod.to(device)
    alphas[-1] = 0.0  # the scheduler keeps a trace for its own divisions

    def loss(latents: Tensor, *conditions: Tensor) -> Tensor:
        timesteps = (stratified(len(latents), latents.device) * len(alphas)).long()
        timesteps = timesteps.clamp(max=len(alphas) - 1)
        signal = alphas[timesteps].sqrt().view(-1, 1, 1, 1)
        spread = (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        with torch.autocast(latents.device.type, torch.bfloat16):
            v = model(signal * latents + spread * noise, timesteps, *conditions)
        return functional.mse_loss(v.float(), signal * noise - spread * latents)

    return loss


def for_training(model: nn.Module) -> nn.Module:
    """Return the model, set up for quick steps on a CPU."""
    # The backward pass of torch's fused attention is slow at 16 and 64 tokens: a step takes 14.5
    # instead of 18 ms per picture with plain matrix products.
    model.set_attn_processor(AttnProcessor())
    return model.to(memory_format=torch.channels_last)


def prepare(folder: Path) -> cache.Cache:
    """Return the pictures that the denoiser is trained on."""
    return open_cache(folder, "pictures", cache.training_scenes(PICTURES))


def train(settings: Settings, team: Team) -> None:
    """Train the denoiser until the time budget is used up; resumes from its checkpoint.

    The leading process exports the averaged weights as a diffusers folder every few minutes.
    """
    torch.manual_seed(settings.seed)
    model = for_training(new_model())
    loss = loss_with(settings.device, lambda *given: model(*given).sample)
    begin = prepare(settings.folder).losses(_BATCH, settings.device, loss)

    def finish(weights: Weights) -> dict[str, float]:
        export(settings.folder, averaged(weights), new_scheduler())
        return {}

    fit(settings, team, Plan("unet", model, begin, finish, _PEAK_RATE))


def averaged(weights: Weights) -> UNet2DConditionModel:
    """Return a denoiser with these weights, on the CPU."""
    model = new_model()
    model.load_state_dict(weights)
    return model.eval()


def load_finished(folder: Path) -> UNet2DConditionModel:
    """Load the trained denoiser from the exported folder."""
    return averaged(load_file(folder / "export" / "unet" / "diffusion_pytorch_model.safetensors"))
