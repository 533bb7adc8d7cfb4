"""The rectified-flow model: a small diffusers ``SD3Transformer2DModel`` on 16-channel latents.

It is trained on the same pictures and captions as the UNet, with the loss of rectified flow (Liu et al., arXiv
2209.03003) at logit-normal times (Esser et al., arXiv 2403.03206), and read as Stable Diffusion 3 without its
T5: two CLIP encoders side by side, followed by 256 tokens of zeros.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional

from demo import cache, shapes, text_encoder, wide_vae
from demo.export import export_flow
from demo.training import Plan, Settings, Team, Weights, fit, stratified

WIDTH = 128
HEADS = 4
LAYERS = 6
PICTURES = 9000
SHIFT = 3.0
"""Of the noise levels when sampling: Stable Diffusion 3's, which gives more steps to high noise."""

T5_TOKENS = 256
"""Tokens of zeros in the place of an absent T5."""

_BATCH = 32
_PEAK_RATE = 1e-3
_PATCH = 2
_LOCATION = 0.6
"""Of the logit-normal times, whose scale is 1. Outlines are settled at high noise, because neighbouring latents of so
plain pictures tell the same.
"""


def new_model() -> SD3Transformer2DModel:
    """Return the untrained denoiser."""
    return SD3Transformer2DModel(
        sample_size=shapes.SIZE // 8,
        patch_size=_PATCH,
        in_channels=wide_vae.CHANNELS,
        out_channels=wide_vae.CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        caption_projection_dim=WIDTH,
        joint_attention_dim=sum(build.width for build in text_encoder.PAIR),
        pooled_projection_dim=sum(build.projection or 0 for build in text_encoder.PAIR),
        pos_embed_max_size=shapes.SIZE // 8,  # pictures of up to twice the trained size
        qk_norm="rms_norm",
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return the schedule of sampling."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def prepare(folder: Path) -> cache.Cache:
    """Return the pictures that the denoiser is trained on."""
    autoencoder = wide_vae.load_finished(folder)

    def encode(pictures: Tensor) -> Tensor:
        latents: Tensor = autoencoder.encode(pictures).latent_dist.mean
        return (latents - wide_vae.SHIFT) * wide_vae.SCALE

    def read(texts: list[str]) -> dict[str, Tensor]:
        parts = [text_encoder.read_texts(folder, texts, build) for build in text_encoder.PAIR]
        return {
            "context": torch.cat([part.context for part in parts], dim=2),
            "pooled": torch.cat([part.pooled for part in parts], dim=1),
        }

    scenes = cache.training_scenes(PICTURES)
    return cache.prepare(folder / "wide-pictures", scenes, shapes.draw, encode, read)


class AlikeTokens:
    """Joint attention whose last text token stands for ``T5_TOKENS`` equal ones.

    The tokens of an absent T5 are all zeros, and the text has no positions: they stay equal to each other in
    every block. As keys, n equal tokens are one whose attention is weighed by n: log n is added to its scores.
    """

    def __call__(
        self,
        attention: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what picture and text take from each other, [N, tokens, width] each."""
        places = hidden_states.shape[1]
        query, key, value = (
            torch.cat([_heads(attention, own, norm), _heads(attention, added, added_norm)], dim=2)
            for own, norm, added, added_norm in _projections(
                attention, hidden_states, encoder_hidden_states
            )
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        scores[..., -1] += math.log(T5_TOKENS)
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        picture, text = mixed[:, :places], mixed[:, places:]
        picture = attention.to_out[0](picture)
        return picture, text if attention.context_pre_only else attention.to_add_out(text)


def _projections(attention: Attention, picture: Tensor, text: Tensor) -> list[tuple[Any, ...]]:
    a = attention
    return [
        (a.to_q(picture), a.norm_q, a.add_q_proj(text), a.norm_added_q),
        (a.to_k(picture), a.norm_k, a.add_k_proj(text), a.norm_added_k),
        (a.to_v(picture), None, a.add_v_proj(text), None),
    ]


def _heads(attention: Attention, values: Tensor, norm: Any) -> Tensor:
    """Return values [N, tokens, width] as [N, heads, tokens, channels], normed."""
    parted = values.unflatten(2, (attention.heads, -1)).transpose(1, 2)
    return parted if norm is None else norm(parted)


def loss_of(
    model: SD3Transformer2DModel, latents: Tensor, context: Tensor, pooled: Tensor
) -> Tensor:
    """Return the mean squared error of the flow from the picture to noise, at one time per picture."""
    strata = stratified(len(latents), latents.device).clamp(1e-4, 1 - 1e-4)
    times = (torch.special.ndtri(strata) + _LOCATION).sigmoid()
    noise = torch.randn_like(latents)
    level = times.view(-1, 1, 1, 1)
    zeros = torch.zeros_like(context[:, :1])  # of the T5
    with torch.autocast(latents.device.type, torch.bfloat16):
        flow = model(
            (1 - level) * latents + level * noise,
            torch.cat([context, zeros], dim=1),
            pooled,
            times * 1000,
        ).sample
    return functional.mse_loss(flow.float(), noise - latents)


def train(settings: Settings, team: Team) -> None:
    """Train the denoiser until the time budget is used up; resumes from its checkpoint."""
    torch.manual_seed(settings.seed)
    model = new_model()
    for block in model.transformer_blocks:
        block.attn.set_processor(AlikeTokens())
        if shutil.which(
            "c++"
        ):  # torch's compiler needs it; a step takes 6.9 instead of 10.7 ms per picture
            block.compile()
    begin = prepare(settings.folder).losses(
        _BATCH, settings.device, lambda *given: loss_of(model, *given)
    )

    def finish(weights: Weights) -> dict[str, float]:
        finished = new_model()
        finished.load_state_dict(weights)
        export_flow(settings.folder, finished.eval(), new_scheduler())
        return {}

    fit(settings, team, Plan("dit", model, begin, finish, _PEAK_RATE))
