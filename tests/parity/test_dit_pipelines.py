"""Whole pipelines of Stable Diffusion 3 and FLUX.1 against diffusers': same folder, prompt and seed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from tests.dit_models import tiny_flux_folder, tiny_sd3_folder

from .conftest import relative_error

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
SIZE = {"width": 64, "height": 96}
SEED = 7


def reference(
    folder: Path, pipeline: str, absent: dict[str, Any] | None = None, **options: Any
) -> Any:
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, pipeline).from_pretrained(folder, **(absent or {}))
        pipe.set_progress_bar_config(disable=True)
        result = pipe(
            PROMPT, generator=torch.Generator().manual_seed(SEED), output_type="latent", **options
        )
    return pipe, np.asarray(result.images)


def unpacked(pipe: Any, tokens: np.ndarray) -> np.ndarray:
    """FLUX's tokens as latents."""
    return pipe._unpack_latents(
        torch.from_numpy(tokens), SIZE["height"], SIZE["width"], pipe.vae_scale_factor
    ).numpy()


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3_folder(tmp_path_factory.mktemp("sd3") / "model")


@pytest.mark.parametrize("with_t5", [True, False])
def test_stable_diffusion_3(sd3: Path, with_t5: bool, tmp_path: Path) -> None:
    absent = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    _, expected = reference(
        sd3,
        "StableDiffusion3Pipeline",
        absent,
        negative_prompt=NEGATIVE,
        num_inference_steps=4,
        guidance_scale=4.5,
        **SIZE,
    )
    folder = sd3
    if not with_t5:
        folder = tmp_path / "model"
        folder.mkdir()
        for part in sd3.iterdir():
            if not part.name.endswith("_3"):
                (folder / part.name).symlink_to(part)
    pipe = sdengine.load(folder)
    found = pipe.generate(PROMPT, NEGATIVE, steps=4, guidance_scale=4.5, seed=SEED, **SIZE)
    assert relative_error(found.latents, expected) <= 1e-3


def test_flux_dev(tmp_path: Path) -> None:
    folder = tiny_flux_folder(tmp_path / "model")
    pipe, tokens = reference(
        folder, "FluxPipeline", num_inference_steps=4, guidance_scale=3.5, **SIZE
    )
    run = sdengine.load(folder).start(PROMPT, steps=4, guidance_scale=3.5, seed=SEED, **SIZE)
    while not run.done:
        run.step()
    assert run.evaluations == 4  # guidance is an input
    assert relative_error(run.latents, unpacked(pipe, tokens)) <= 1e-3
    _, tokens = reference(
        folder,
        "FluxPipeline",
        negative_prompt=NEGATIVE,
        true_cfg_scale=2.0,
        num_inference_steps=4,
        guidance_scale=3.5,
        **SIZE,
    )
    found = sdengine.load(folder).generate(
        PROMPT, NEGATIVE, steps=4, guidance_scale=3.5, true_cfg_scale=2.0, seed=SEED, **SIZE
    )
    assert relative_error(found.latents, unpacked(pipe, tokens)) <= 1e-3
    assert found.image.size == (64, 96)


def test_flux_schnell(tmp_path: Path) -> None:
    folder = tiny_flux_folder(tmp_path / "model", guidance=False)
    pipe, tokens = reference(
        folder,
        "FluxPipeline",
        num_inference_steps=4,
        max_sequence_length=256,
        guidance_scale=0.0,
        **SIZE,
    )
    found = sdengine.load(folder).generate(PROMPT, steps=4, seed=SEED, **SIZE)
    assert relative_error(found.latents, unpacked(pipe, tokens)) <= 1e-3


def test_sizes_are_multiples_of_the_patch(sd3: Path) -> None:
    with pytest.raises(sdengine.ParameterError, match="width must be a multiple of 16, not 72"):
        sdengine.load(sd3).generate(PROMPT, width=72, height=64, steps=1)
