"""Lumina-Image 2.0 against diffusers: its denoiser and whole pipelines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Lumina2Transformer2DModel

import sdengine
from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.guidance import Guidance
from sdengine.keys import lumina2
from tests.parity.conftest import relative_error
from tests.parity.dit import native, noise, tiny

from .lumina_models import CONTEXT, DENOISER, tiny_lumina_folder, to_original

LIMIT = 5e-6
TABLES = (lumina2.ORIGINAL, lumina2.DIFFUSERS)
PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
SIZE = {"width": 64, "height": 96}
SEED = 7


def inputs(batch: int = 2, tokens: int = 7, height: int = 6, width: int = 10) -> dict[str, Any]:
    return {
        "latents": noise(batch, 16, height, width, seed=1),
        "timesteps": np.array([875.0, 250.0], np.float32)[:batch],
        "context": noise(batch, tokens, CONTEXT, seed=2),
    }


def reference(
    model: torch.nn.Module, given: dict[str, Any], lengths: Sequence[int] | None = None
) -> np.ndarray:
    """The flow to the noise that diffusers' network predicts."""
    tokens = given["context"].shape[1]
    mask = [[i < n for i in range(tokens)] for n in lengths or [tokens] * len(given["latents"])]
    with torch.no_grad():
        return -model(
            hidden_states=torch.tensor(given["latents"]),
            timestep=1 - torch.tensor(given["timesteps"]) / 1000,
            encoder_hidden_states=torch.tensor(given["context"]),
            encoder_attention_mask=torch.tensor(mask),
        ).sample.numpy()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny(Lumina2Transformer2DModel, DENOISER, seed=3)


@pytest.fixture(scope="module")
def network(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> _core.Network:
    return native(model, "lumina2", TABLES, tmp_path_factory.mktemp("lumina"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lumina_folder(tmp_path_factory.mktemp("lumina") / "model")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> sdengine.Pipeline:
    return sdengine.load(folder)


def test_the_denoiser(model: torch.nn.Module, network: _core.Network) -> None:
    for given in (inputs(), inputs(batch=1, tokens=1, height=8, width=4)):
        found = network.run(given)["prediction"]
        assert relative_error(found, reference(model, given)) <= LIMIT


def test_original_names_give_identical_results(
    model: torch.nn.Module, network: _core.Network, tmp_path: Path
) -> None:
    original = native(model, "lumina2", TABLES, tmp_path, to_original)
    assert np.array_equal(original.run(inputs())["prediction"], network.run(inputs())["prediction"])


def test_without_some_layers(model: torch.nn.Module, network: _core.Network) -> None:
    assert network.guidance_layers == ["layers.0", "layers.1"]
    found = network.run(inputs(), {"skip_layers": 0b10})["prediction"]
    layer = model.layers.pop(1)
    try:
        assert relative_error(found, reference(model, inputs())) <= LIMIT
    finally:
        model.layers.append(layer)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("latents", (2, 4, 6, 10), "'latents' of"),
        ("latents", (2, 16, 6, 9), "multiples of 2"),
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


def test_texts_of_unequal_length(pipe: sdengine.Pipeline, folder: Path) -> None:
    """A batch equals diffusers' network under its mask."""
    model = Lumina2Transformer2DModel.from_pretrained(folder / "transformer").eval()
    cond = pipe.encode_prompt(["a red circle", PROMPT])
    assert cond.lengths is not None
    given = {**inputs(height=8, width=12), "context": cond.context}
    found = pipe.predict(given["latents"], given["timesteps"].tolist(), cond)
    assert relative_error(found, reference(model, given, cond.lengths)) <= LIMIT


# ------------------------------------------------------------------------------------ pipelines
def of_diffusers(folder: Path, prompt: Any, negative: Any, **options: Any) -> np.ndarray:
    from diffusers import Lumina2Pipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = Lumina2Pipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        many = isinstance(prompt, list)
        generators = [torch.Generator().manual_seed(SEED + i) for i in range(len(prompt))]
        result = pipe(
            prompt,
            negative_prompt=negative,
            generator=generators if many else generators[0],
            num_inference_steps=4,
            output_type="latent",
            **SIZE,
            **options,
        )
    return np.asarray(result.images)


@pytest.mark.parametrize("normalised", [True, False])
def test_text_to_image(pipe: sdengine.Pipeline, folder: Path, normalised: bool) -> None:
    expected = of_diffusers(
        folder, PROMPT, NEGATIVE, guidance_scale=4.0, cfg_normalization=normalised
    )
    guidance = None if normalised else Guidance(norms="free")
    found = pipe.generate(PROMPT, NEGATIVE, steps=4, guidance=guidance, seed=SEED, **SIZE)
    assert relative_error(found.latents, expected) <= 1e-3
    assert found.image.size == (64, 96)


def test_batches_of_prompts(pipe: sdengine.Pipeline, folder: Path) -> None:
    """The system prompt stands before every prompt, and before no negative one."""
    prompts, negatives = [PROMPT, "two green squares"], [NEGATIVE, "a dog"]
    expected = of_diffusers(folder, prompts, negatives, guidance_scale=4.0)
    cond = pipe.encode_prompt(prompts, negatives)
    assert cond.lengths is not None
    assert cond.negative_lengths is not None
    for given in ({"prompt": prompts, "negative_prompt": negatives}, {"conditioning": cond}):
        found = pipe.generate(steps=4, seed=SEED, **given, **SIZE)
        assert relative_error(found.latents, expected) <= 1e-3


def test_both_sides_of_a_composition_have_the_system_prompt(pipe: sdengine.Pipeline) -> None:
    """AND and schedules are taken apart before the prompt is put behind it."""
    options = {"steps": 2, "seed": SEED, "guidance_scale": 1.0, **SIZE}
    plain = pipe.generate("a dog", **options)
    for same in ("a dog AND a dog :0", "[a dog:a cat:2]", "(a dog:1.2)"):
        assert np.array_equal(pipe.generate(same, **options).latents, plain.latents)


def test_image_to_image(pipe: sdengine.Pipeline) -> None:
    given = np.random.default_rng(0).random((96, 64, 3)).astype(np.float32)
    run = pipe.start(PROMPT, image=given, strength=0.5, steps=4, seed=SEED)
    while not run.done:
        run.step()
    assert run.evaluations == 4  # two steps, each with and without the prompt
    assert run.result().image.size == (64, 96)


def test_guidance_ends_early(pipe: sdengine.Pipeline, folder: Path) -> None:
    """diffusers' ``cfg_trunc_ratio`` is an interval here."""
    expected = of_diffusers(folder, PROMPT, NEGATIVE, guidance_scale=4.0, cfg_trunc_ratio=0.5)
    guidance = Guidance(scale=4.0, interval=(0.0, 0.5))
    run = pipe.start(PROMPT, NEGATIVE, steps=4, guidance=guidance, seed=SEED, **SIZE)
    while not run.done:
        run.step()
    assert run.evaluations == 6
    assert relative_error(run.latents, expected) <= 1e-3
