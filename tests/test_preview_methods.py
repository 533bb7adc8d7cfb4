"""Previews by every method: what a tiny autoencoder draws is diffusers' picture, and runs offer them step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

import sdengine
from sdengine import Frames, Pipeline
from sdengine.errors import ParameterError
from sdengine.previews import check_method, is_due
from tests.dit_models import tiny_sd3_folder
from tests.models import randomise
from tests.unet_models import tiny_folder

SIZE = {"width": 64, "height": 48, "steps": 5, "seed": 1}


def taesd(folder: Path, **config: object) -> AutoencoderTiny:
    torch.manual_seed(3)
    module = AutoencoderTiny(**config).eval()
    randomise(module, 3)
    module.save_pretrained(folder)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("previews")


@pytest.fixture(scope="module")
def module(folder: Path) -> AutoencoderTiny:
    return taesd(folder / "taesd")


@pytest.fixture(scope="module")
def pipe(folder: Path, module: AutoencoderTiny) -> Pipeline:
    base = tiny_folder(folder / "base", "sdxl")
    return sdengine.load(base, preview_vae=folder / "taesd")


def test_the_tiny_picture_is_diffusers(pipe: Pipeline, module: AutoencoderTiny) -> None:
    latents = np.random.default_rng(0).normal(size=(2, 4, 6, 8)).astype(np.float32)
    with torch.no_grad():
        expected = module.decode(torch.tensor(latents)).sample.numpy()
    assert pipe.preview_vae is not None
    found = pipe.preview_vae.decode(latents)
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
    drawn = np.stack([np.asarray(picture) for picture in pipe.preview(latents)])
    wanted = np.clip((expected.transpose(0, 2, 3, 1) + 1) * 127.5, 0, 255)
    np.testing.assert_allclose(drawn, wanted, atol=1)


def test_methods_of_a_step(pipe: Pipeline) -> None:
    seen: list[int] = []

    def look(event: sdengine.StepEvent) -> None:
        seen.append(event.step)
        for names in (("linear", "proj"), ("tiny", "taesd"), ("full", "vae")):
            first, second = (event.preview(name)[0] for name in names)
            assert first.tobytes() == second.tobytes()
            assert first.size == (64, 48)
        assert event.preview()[0].tobytes() == event.preview("tiny")[0].tobytes()
        full = pipe.decode_latents(event.denoised)[0]
        assert event.preview("full")[0].tobytes() == full.tobytes()

    options = {**SIZE, "steps": 2}
    result = pipe.generate("a cat", callback=look, sampler="euler", **options)
    assert seen == [1, 2]
    assert pipe.preview(result.latents, "full")[0].tobytes() == result.image.tobytes()
    assert pipe.generate("a cat", sampler="euler", **options).image.tobytes() == (
        result.image.tobytes()
    )


def test_a_kept_step_shows_itself(pipe: Pipeline) -> None:
    events: list[sdengine.StepEvent] = []
    drawn: list[bytes] = []

    def keep(event: sdengine.StepEvent) -> None:
        events.append(event)
        drawn.extend(event.preview("linear", noisy=noisy)[0].tobytes() for noisy in (False, True))

    pipe.generate("a cat", callback=keep, **SIZE)
    later = [
        e.preview("linear", noisy=noisy)[0].tobytes() for e in events for noisy in (False, True)
    ]
    assert later == drawn
    assert len(set(drawn)) > len(events)


def test_the_noisy_state_has_the_spread_of_latents(pipe: Pipeline) -> None:
    run = pipe.start("a cat", **SIZE)
    noise = run.preview("linear", noisy=True)[0]
    scaled = run.latents / np.sqrt(run.sigma**2 + 1)
    assert run.sigma > 5
    assert noise.tobytes() == pipe.preview(scaled.astype(np.float32), "linear")[0].tobytes()
    while not run.done:
        run.step()
    last = [run.preview("linear", noisy=noisy)[0].tobytes() for noisy in (False, True)]
    assert last[1] == pipe.preview(run.latents, "linear")[0].tobytes()


def test_frames_of_a_run(pipe: Pipeline) -> None:
    frames = Frames(2, method="linear", index=1)
    pipe.generate("a cat", callback=frames, batch_size=2, **SIZE)
    assert frames.steps == [2, 4, 5]
    assert [picture.size for picture in frames.images] == [(64, 48)] * 3
    assert frames.images[0].tobytes() != frames.images[2].tobytes()
    assert [step for step in range(1, 8) if is_due(step, 7, 3)] == [3, 6, 7]


def test_what_does_not_fit_is_told(pipe: Pipeline, folder: Path) -> None:
    latents = np.zeros((1, 4, 8, 8), np.float32)
    with pytest.raises(ParameterError, match="choose one of linear, tiny, full"):
        check_method("x-ray")
    with pytest.raises(ParameterError, match="'x', 'y', 'xy'"):
        pipe.preview(latents, seamless="z")
    plain = sdengine.load(folder / "base")
    with pytest.raises(ParameterError, match="preview_vae="):
        plain.preview(latents, "tiny")
    with pytest.raises(ParameterError, match="no tiny autoencoder"):
        sdengine.load(folder / "base", preview_vae=folder / "base")
    taesd(folder / "sixteen", latent_channels=16)
    with pytest.raises(ParameterError, match=r"16 channels and 1/8 .* makes 4 channels"):
        sdengine.load(folder / "base", preview_vae=folder / "sixteen")
    for given in (0, 1.5, True):
        with pytest.raises(ParameterError, match="every must be"):
            Frames(given)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="index must be"):
        Frames(index=-1)
    with pytest.raises(ParameterError, match="index is 1; a batch of 1"):
        pipe.generate("a cat", callback=Frames(index=1), **SIZE)


def test_latents_of_sixteen_channels(tmp_path: Path) -> None:
    model = tiny_sd3_folder(tmp_path / "sd3")
    factor = sdengine.load(model).model.latents.factor
    stages = factor.bit_length()
    small = {"latent_channels": 16, "encoder_block_out_channels": (32,) * stages}
    small |= {"decoder_block_out_channels": (32,) * stages}
    small |= {"num_encoder_blocks": (1,) * stages, "num_decoder_blocks": (1,) * stages}
    module = taesd(tmp_path / "taesd3", **small)
    pipe = sdengine.load(model, preview_vae=tmp_path / "taesd3")
    latents = np.random.default_rng(1).normal(size=(1, 16, 4, 4)).astype(np.float32)
    with torch.no_grad():
        expected = module.decode(torch.tensor(latents)).sample.numpy()[0]
    wanted = np.clip((expected.transpose(1, 2, 0) + 1) * 127.5, 0, 255)
    np.testing.assert_allclose(np.asarray(pipe.preview(latents)[0]), wanted, atol=1)
    assert pipe.preview(latents, "linear")[0].size == (32, 32)
