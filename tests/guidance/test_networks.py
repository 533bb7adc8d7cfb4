"""What guidance changes inside the UNet, against diffusers' UNet with other attention processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from diffusers import UNet2DConditionModel

import sdengine
from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.guidance import (
    Guidance,
    NormalizedAttention,
    PerturbedAttention,
    SkipLayers,
    lcm_guidance_embedding,
)
from tests.models import randomise, tiny_sd1_folder

from .conftest import LIMIT, SHAPE, STEPS, Model, branch, context, finish, noise, relative_error

TIMESTEP = 421.0


class OwnTokenOnly:
    """Self-attention whose map is the identity."""

    def __call__(self, attn, hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return attn.to_out[0](attn.to_v(hidden_states))


class Normalized:
    """Cross-attention steered away from a second context, as the paper's section 3.2 says."""

    def __init__(self, away: np.ndarray, scale: float, tau: float, alpha: float) -> None:
        self.away, self.scale, self.tau, self.alpha = torch.tensor(away), scale, tau, alpha

    def __call__(self, attn, hidden_states, encoder_hidden_states, *_: object, **__: object):
        def attend(text: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for part in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
            )
            return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

        positive, negative = attend(encoder_hidden_states), attend(self.away)
        guided = positive * self.scale - negative * (self.scale - 1)
        before, after = (t.norm(p=1, dim=-1, keepdim=True) for t in (positive, guided))
        guided = guided * torch.clamp(after / before, max=self.tau) / (after / before)
        return attn.to_out[0](guided * self.alpha + positive * (1 - self.alpha))


def reference(model: Model, change: Callable[[UNet2DConditionModel], None]) -> np.ndarray:
    unet = UNet2DConditionModel.from_pretrained(model.folder / "unet").eval()
    change(unet)
    with torch.no_grad():
        return unet(torch.tensor(model.latents), TIMESTEP, torch.tensor(context(0))).sample.numpy()


def predict(model: Model, options: dict[str, int], **inputs: np.ndarray) -> np.ndarray:
    times = np.full(SHAPE[0], TIMESTEP, np.float32)
    given = {"latents": model.latents, "timesteps": times, "context": context(0), **inputs}
    return model.network.run(given, options)["prediction"]


def mask(model: Model, names: list[str]) -> int:
    return sum(1 << model.network.guidance_layers.index(name) for name in names)


CHOICES = [
    ["mid_block.attentions.0"],
    ["down_blocks.0.attentions.1", "up_blocks.1.attentions.0", "up_blocks.1.attentions.2"],
]


def test_layers_are_listed_as_they_are_run(model: Model) -> None:
    assert model.network.guidance_layers == [
        "down_blocks.0.attentions.0",
        "down_blocks.0.attentions.1",
        "mid_block.attentions.0",
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
        "up_blocks.1.attentions.2",
    ]


@pytest.mark.parametrize("names", CHOICES, ids=["mid", "several"])
def test_perturbed_attention(model: Model, names: list[str]) -> None:
    def change(unet: UNet2DConditionModel) -> None:
        for name in names:
            for block in unet.get_submodule(name).transformer_blocks:
                block.attn1.set_processor(OwnTokenOnly())

    expected = reference(model, change)
    assert relative_error(predict(model, {"perturb_layers": mask(model, names)}), expected) <= LIMIT
    assert relative_error(predict(model, {}), expected) > 1e-3


@pytest.mark.parametrize("names", CHOICES, ids=["mid", "several"])
def test_skipped_layers(model: Model, names: list[str]) -> None:
    def change(unet: UNet2DConditionModel) -> None:
        for name in names:
            unet.get_submodule(name).forward = lambda hidden_states, *_, **__: (hidden_states,)

    expected = reference(model, change)
    assert relative_error(predict(model, {"skip_layers": mask(model, names)}), expected) <= LIMIT
    assert relative_error(predict(model, {}), expected) > 1e-3


# The second pair limits most tokens' norms, the first few.
@pytest.mark.parametrize(("scale", "tau", "alpha"), [(4.0, 2.5, 0.5), (11.0, 1.2, 0.9)])
def test_normalized_attention(model: Model, scale: float, tau: float, alpha: float) -> None:
    away = context(1, tokens=7)

    def change(unet: UNet2DConditionModel) -> None:
        processors = {
            name: Normalized(away, scale, tau, alpha) if "attn2" in name else processor
            for name, processor in unet.attn_processors.items()
        }
        unet.set_attn_processor(processors)

    expected = reference(model, change)
    figures = np.tile(np.float32([scale, tau, alpha]), (SHAPE[0], 1))
    assert relative_error(predict(model, {}, nag_context=away, nag=figures), expected) <= LIMIT
    assert relative_error(predict(model, {}), expected) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_run_with_normalized_attention(model: Model, scale: float) -> None:
    """The negative prompt acts without an evaluation of its own."""
    nag = NormalizedAttention(scale=6.0, tau=2.0, alpha=0.4)
    figures = np.tile(np.float32([6.0, 2.0, 0.4]), (SHAPE[0], 1))

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        steered = model.predict(x, sigma, context(0), nag_context=context(1, 7), nag=figures)
        plain = model.predict(x, sigma, context(1, 7))
        return x - sigma * (plain + scale * (steered - plain))

    branches = [branch("positive", 0), branch("negative", 1, tokens=7)]
    run = model.start(branches, Guidance(scale=scale, normalized_attention=nag))
    assert relative_error(finish(run), model.euler(estimate)) <= LIMIT
    assert run.evaluations == (STEPS if scale == 1.0 else 2 * STEPS)


def test_distilled_guidance_together_with_a_negative_prompt(tmp_path: Path) -> None:
    folder = tiny_sd1_folder(tmp_path / "model", seed=8)
    config = UNet2DConditionModel.load_config(folder / "unet")
    unet = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 32})
    randomise(unet, 9)
    unet.eval().save_pretrained(folder / "unet")
    model = Model(folder, sdengine.load(folder).denoiser, noise(*SHAPE))
    embedding = lcm_guidance_embedding([3.0, 8.0], 32)

    def estimate(_: int, x: np.ndarray, sigma: float) -> np.ndarray:
        step = int(np.argmin(np.abs(model.schedule().sigmas - sigma)))
        sample = torch.tensor(x / np.sqrt(sigma**2 + 1), dtype=torch.float32)
        time = torch.tensor(model.schedule().timesteps[step])
        with torch.no_grad():
            positive, negative = (
                unet(
                    sample, time, torch.tensor(context(i)), timestep_cond=torch.tensor(embedding)
                ).sample
                for i in (0, 1)
            )
        return x - sigma * (negative + 2.0 * (positive - negative)).double().numpy()

    branches = [
        _core.Branch(role, {"context": context(i), "guidance_embedding": embedding})
        for i, role in enumerate(("positive", "negative"))
    ]
    found = finish(model.start(branches, Guidance(scale=2.0)))
    assert relative_error(found, model.euler(estimate)) <= LIMIT


def test_layers_that_are_not_there(model: Model) -> None:
    for options in ({"skip_layers": 1 << 6}, {"perturb_layers": -1}):
        with pytest.raises(ParameterError, match="layer"):
            predict(model, options)


def test_steered_attention_checks_its_inputs(model: Model) -> None:
    figures = np.ones((SHAPE[0], 3), np.float32)
    for inputs in (
        {"nag_context": context(1)},
        {"nag_context": context(1, pictures=1), "nag": figures},
        {"nag_context": context(1)[..., :5].copy(), "nag": figures},
        {"nag_context": context(1), "nag": figures[:1]},
        {"nag_context": context(1), "nag": figures[:, :2].copy()},
    ):
        with pytest.raises(ParameterError):
            predict(model, {}, **inputs)


def test_a_network_without_layers(model: Model) -> None:
    """What a network cannot do is refused when the run is made."""
    decoder = sdengine.load(model.folder).vae.decoder
    other = Model(model.folder, decoder, noise(*SHAPE))
    for guidance in (
        Guidance(skip_layers=SkipLayers([0])),
        Guidance(perturbed_attention=PerturbedAttention()),
        Guidance(normalized_attention=NormalizedAttention()),
    ):
        with pytest.raises(ParameterError, match="does not offer"):
            other.start([branch("positive", 0), branch("negative", 1)], guidance)
    assert decoder.guidance_layers == []
