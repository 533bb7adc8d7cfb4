"""PixArt-alpha and PixArt-sigma against diffusers: their denoiser and whole pipelines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel

import sdengine
from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.keys import pixart
from tests.parity.conftest import relative_error
from tests.parity.dit import native, noise, tiny

from .pixart_models import ALPHA, BETAS, CONTEXT, SIGMA, tiny_pixart_folder

LIMIT = 5e-6
TABLES = (pixart.ORIGINAL, pixart.DIFFUSERS)
PROMPT, NEGATIVE = "A red circle on a blue background ", "blurry, Low quality"
SIZE = {"width": 64, "height": 96}
SEED = 7

VARIANTS: dict[str, dict[str, Any]] = {
    "sigma-512": SIGMA,
    "sigma-1024": SIGMA | {"sample_size": 128},
    "sigma-256": SIGMA | {"sample_size": 32, "interpolation_scale": 0.5},
    "alpha-1024": ALPHA,
    "alpha-256": SIGMA | {"sample_size": 32},
    "no-variances": SIGMA | {"out_channels": 4},
}


def inputs(batch: int = 2, tokens: int = 7, height: int = 6, width: int = 10) -> dict[str, Any]:
    return {
        "latents": noise(batch, 4, height, width, seed=1),
        "timesteps": np.array([999.0, 250.0], np.float32)[:batch],
        "context": noise(batch, tokens, CONTEXT, seed=2),
    }


def reference(
    model: torch.nn.Module, given: dict[str, Any], lengths: Sequence[int] | None = None
) -> np.ndarray:
    """The noise that diffusers' network predicts, told the size as its pipeline does."""
    batch, channels, height, width = given["latents"].shape
    tokens = given["context"].shape[1]
    mask = [[i < n for i in range(tokens)] for n in lengths or [tokens] * batch]
    told: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if model.use_additional_conditions:
        size = [[8.0 * height, 8.0 * width]] * batch
        told = {
            "resolution": torch.tensor(size),
            "aspect_ratio": torch.tensor([[height / width]] * batch),
        }
    with torch.no_grad():
        return (
            model(
                torch.tensor(given["latents"]),
                encoder_hidden_states=torch.tensor(given["context"]),
                timestep=torch.tensor(given["timesteps"]),
                added_cond_kwargs=told,
                encoder_attention_mask=torch.tensor(mask),
            )
            .sample[:, :channels]
            .numpy()
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_denoiser(variant: str, tmp_path: Path) -> None:
    model = tiny(PixArtTransformer2DModel, VARIANTS[variant])
    network = native(model, "pixart", TABLES, tmp_path)
    for given in (inputs(), inputs(batch=1, tokens=1, height=8, width=4)):
        found = network.run(given)["prediction"]
        assert relative_error(found, reference(model, given)) <= LIMIT


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny(PixArtTransformer2DModel, ALPHA)


@pytest.fixture(scope="module")
def network(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> _core.Network:
    return native(model, "pixart", TABLES, tmp_path_factory.mktemp("pixart"))


def test_without_some_blocks(model: torch.nn.Module, network: _core.Network) -> None:
    assert network.guidance_layers == ["transformer_blocks.0", "transformer_blocks.1"]
    found = network.run(inputs(), {"skip_layers": 0b10})["prediction"]
    block = model.transformer_blocks.pop(1)
    try:
        assert relative_error(found, reference(model, inputs())) <= LIMIT
    finally:
        model.transformer_blocks.append(block)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("latents", (2, 16, 6, 10), "'latents' of"),
        ("latents", (2, 4, 6, 9), "multiples of 2"),
        ("timesteps", (3,), "'timesteps'"),
        ("context", (2, 7, 31), "context of"),
        ("context", (1, 7, CONTEXT), "context of"),
    ],
)
def test_odd_inputs(
    network: _core.Network, name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        network.run({**inputs(), name: noise(*shape)})


# ------------------------------------------------------------------------------------ pipelines
MODELS = {
    "alpha": (ALPHA, "PixArtAlphaPipeline"),
    "alpha-512": (SIGMA, "PixArtAlphaPipeline"),
    "sigma": (SIGMA | {"sample_size": 128}, "PixArtSigmaPipeline"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pixart")
    return {name: tiny_pixart_folder(root / name, *of) for name, of in MODELS.items()}


def of_diffusers(folder: Path, pipeline: str, prompt: Any, negative: Any) -> np.ndarray:
    import diffusers

    many = isinstance(prompt, list)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, pipeline).from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        result = pipe(
            prompt,
            negative_prompt=negative,
            generator=generators if many else generators[0],
            num_inference_steps=4,
            guidance_scale=4.5,
            use_resolution_binning=False,
            clean_caption=False,
            output_type="latent",
            **SIZE,
        )
    return np.asarray(result.images)


@pytest.mark.parametrize("name", MODELS)
def test_text_to_image(folders: dict[str, Path], name: str) -> None:
    expected = of_diffusers(folders[name], MODELS[name][1], PROMPT, NEGATIVE)
    pipe = sdengine.load(folders[name])
    assert pipe.model.family.name == f"pixart_{name[:5]}"
    assert pipe.model.latents.scale == (0.13025 if name == "sigma" else 0.18215)
    found = pipe.generate(PROMPT, NEGATIVE, steps=4, seed=SEED, **SIZE)
    assert relative_error(found.latents, expected) <= 1e-3
    assert found.image.size == (64, 96)


def test_texts_of_unequal_length(folders: dict[str, Path]) -> None:
    """What padding is masked out of in diffusers is not there here."""
    prompts, negatives = [PROMPT, "two squares"], [NEGATIVE, "a dog"]
    expected = of_diffusers(folders["sigma"], "PixArtSigmaPipeline", prompts, negatives)
    pipe = sdengine.load(folders["sigma"])
    cond = pipe.encode_prompt(prompts, negatives)
    assert cond.lengths is not None
    assert cond.negative_lengths is not None
    for given in ({"prompt": prompts, "negative_prompt": negatives}, {"conditioning": cond}):
        found = pipe.generate(steps=4, seed=SEED, **given, **SIZE)
        assert relative_error(found.latents, expected) <= 1e-3


def test_one_step_of_a_distilled_model(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its name is its recipe: timestep 400, no guidance, and the estimate is the picture."""
    from diffusers import DDPMScheduler, PixArtAlphaPipeline

    folder = tmp_path / "PixArt-Alpha-DMD-XL-2-512x512"
    folder.symlink_to(folders["alpha-512"])
    pipe = PixArtAlphaPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDPMScheduler(**BETAS, clip_sample=False)
    expected = pipe(
        PROMPT,
        timesteps=[400],
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(SEED),
        use_resolution_binning=False,
        clean_caption=False,
        output_type="latent",
        **SIZE,
    )
    found = sdengine.load(folder).generate(PROMPT, seed=SEED, **SIZE)
    assert relative_error(found.latents, np.asarray(expected.images)) <= 1e-3


def test_image_to_image(folders: dict[str, Path]) -> None:
    pipe = sdengine.load(folders["sigma"])
    given = np.random.default_rng(0).random((96, 64, 3)).astype(np.float32)
    run = pipe.start(PROMPT, image=given, strength=0.5, steps=4, seed=SEED)
    while not run.done:
        run.step()
    assert run.evaluations == 4  # two steps, each with and without the prompt
    assert run.result().image.size == (64, 96)
