"""The denoiser: a small diffusers ``UNet2DConditionModel`` of Stable Diffusion 1's build.

It predicts v (Salimans and Ho, arXiv 2202.00512) under a schedule whose last step holds no
signal at all (Lin et al., arXiv 2305.08891). With the usual schedule the last step still shows a
trace of the picture's mean, which training learns to trust and sampling from pure noise does not
offer; flat backgrounds would suffer most.

Latents and contexts are computed once: a training step then costs only the denoiser.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from demo import shapes, text_encoder, vae
from demo.export import export
from demo.training import (
    Average,
    Clock,
    Settings,
    Team,
    learning_rate,
    load,
    log,
    save,
    to_tensor,
)

PICTURES = 12_000
"""Pictures in the latent cache, about 40 of each trained combination."""

_BATCH = 32
_PEAK_RATE = 1.2e-3
_UNCONDITIONAL = 0.1
"""Part of the captions that are replaced by the empty one, for guidance (arXiv 2207.12598)."""
_EXPORT_SECONDS = 150.0


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


# --- the cache --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cache:
    """Latents of the pictures and contexts of the captions, as arrays mapped from disk."""

    latents: NDArray[np.float16]
    """[PICTURES, 4, 16, 16], scaled as the denoiser sees them."""
    contexts: NDArray[np.float16]
    """[captions, 77, WIDTH]; row 0 is the empty caption."""
    captions: NDArray[np.int32]
    """[PICTURES, choices]: rows of ``contexts`` that describe each picture."""


def prepare(folder: Path) -> None:
    """Encode pictures and captions with the trained autoencoder and text encoder."""
    rng = random.Random(1)
    triples = shapes.training_triples()
    scenes = [shapes.random_scene(triples[i % len(triples)], rng) for i in range(PICTURES)]
    rows: dict[str, int] = {"": 0}
    choices = []
    for scene in scenes:
        # Twelve draws give each caption form its share, whatever their number.
        texts = shapes.captions_of(scene.triple, scene.size)
        choices.append([rows.setdefault(rng.choice(texts), len(rows)) for _ in range(12)])
    np.save(folder / "captions.npy", np.array(choices, np.int32))
    np.save(folder / "contexts.npy", text_encoder.contexts_of(folder, list(rows)).numpy())
    np.save(folder / "latents.npy", _encode(folder, scenes))


@torch.no_grad()
def _encode(folder: Path, scenes: list[shapes.Scene]) -> NDArray[np.float16]:
    model = vae.load_finished(folder)
    parts = []
    for start in range(0, len(scenes), 25):
        drawn = [np.asarray(shapes.draw(scene)) for scene in scenes[start : start + 25]]
        latents = model.encode(to_tensor(np.stack(drawn))).latent_dist.mean
        parts.append((latents * vae.SCALING_FACTOR).half().numpy())
    return np.concatenate(parts)


def load_cache(folder: Path) -> Cache:
    """Map the cached arrays; the worker processes share one copy in memory."""
    return Cache(
        latents=np.load(folder / "latents.npy", mmap_mode="r"),
        contexts=np.load(folder / "contexts.npy", mmap_mode="r"),
        captions=np.load(folder / "captions.npy", mmap_mode="r"),
    )


def is_prepared(folder: Path) -> bool:
    """Whether the cache is complete (the latents are written last)."""
    return (folder / "latents.npy").exists()


# --- training ---------------------------------------------------------------------------------


def _batch(cache: Cache, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Return random latents [count, 4, 16, 16] and their contexts, some of them empty."""
    pictures = rng.integers(len(cache.latents), size=count)
    rows = cache.captions[pictures, rng.integers(cache.captions.shape[1], size=count)]
    rows = np.where(rng.random(count) < _UNCONDITIONAL, 0, rows)
    latents = torch.from_numpy(cache.latents[pictures].astype(np.float32))
    return latents, torch.from_numpy(cache.contexts[rows].astype(np.float32))


def _loss(model: UNet2DConditionModel, alphas: Tensor, latents: Tensor, contexts: Tensor) -> Tensor:
    """Return the mean squared error of v at one timestep per picture.

    The timesteps are one from each of N equal parts of the schedule, in random order, which makes
    the loss (and the gradient) of a small batch less noisy than independent draws do.
    """
    count = len(latents)
    strata = torch.randperm(count, device=latents.device) + torch.rand(count, device=latents.device)
    timesteps = (strata / count * len(alphas)).long().clamp(max=len(alphas) - 1)
    signal = alphas[timesteps].sqrt().view(-1, 1, 1, 1)
    spread = (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    with torch.autocast(latents.device.type, torch.bfloat16):
        v = model(signal * latents + spread * noise, timesteps, contexts).sample
    return functional.mse_loss(v.float(), signal * noise - spread * latents)


def train(settings: Settings, team: Team) -> None:
    """Train the denoiser until the time budget is used up; resumes from its checkpoint.

    The leading process exports the averaged weights as a diffusers folder every few minutes.
    """
    path = settings.folder / "unet.pt"
    torch.manual_seed(settings.seed)
    model = new_model().to(settings.device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    average = Average(model, 0.999)
    step, spent = 0, 0.0
    state = load(path)
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average.weights = {k: v.to(settings.device) for k, v in state["average"].items()}
        step, spent = state["step"], state["spent"]
    model.to(memory_format=torch.channels_last)
    # On a CPU the backward pass of torch's fused attention is slow at 16 and 64 tokens: a step
    # takes 14.5 instead of 18 ms per picture with plain matrix products.
    model.set_attn_processor(AttnProcessor())
    torch.manual_seed(settings.seed + 1000 * team.rank + step)
    rng = np.random.default_rng(settings.seed + 1000 * team.rank + step)
    cache = load_cache(settings.folder)
    alphas = new_scheduler().alphas_cumprod.to(settings.device)
    alphas[-1] = 0.0  # the scheduler keeps a trace for its own divisions
    clock = Clock(settings.minutes, spent)
    progress, exported, losses = spent / clock.budget, spent, []
    while progress < 1:
        latents, contexts = (x.to(settings.device) for x in _batch(cache, rng, _BATCH))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(_PEAK_RATE, progress, step)
        optimiser.zero_grad(set_to_none=True)
        loss = _loss(model, alphas, latents, contexts)
        loss.backward()  # type: ignore[no-untyped-call]
        spent = team.average_gradients(model.parameters(), clock.spent)
        progress = spent / clock.budget
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        average.update(model, step)
        losses.append(loss.item())
        if team.leads and step % 50 == 0:
            log(settings.folder, "unet", step=step, spent=spent, loss=float(np.mean(losses)))
            losses.clear()
        if team.leads and (spent - exported > _EXPORT_SECONDS or progress >= 1):
            exported = spent
            save(
                {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "average": average.weights,
                    "step": step,
                    "spent": spent,
                },
                path,
            )
            export(settings.folder, averaged(average), new_scheduler())


def averaged(average: Average) -> UNet2DConditionModel:
    """Return a denoiser with the averaged weights, on the CPU."""
    model = new_model()
    model.load_state_dict(average.weights)
    return model.eval()
