"""What does not change between steps is computed once, and never shows in a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine import Lora, _core
from sdengine.errors import Cancelled
from tests.adapters.files import ATTENTION, kohya, lora, write
from tests.control.models import controlnet_folder
from tests.dit.lumina_models import tiny_lumina_folder
from tests.dit_models import tiny_flux_folder, tiny_sd3_folder
from tests.qwen_models import tiny_qwen_folder
from tests.unet_models import build_unet, tiny_folder

Arrays = Mapping[str, np.ndarray]
Models = Callable[[str], Path]
VARYING = ("latents", "timesteps")
SHORT: dict[str, Any] = {"width": 64, "height": 64, "seed": 3, "steps": 4, "guidance_scale": 3.0}
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "sd1": lambda path: tiny_folder(path, "sd1", seed=4),
    "sdxl": lambda path: tiny_folder(path, "sdxl", seed=4),
    "sd3": tiny_sd3_folder,
    "flux": tiny_flux_folder,
    "lumina": tiny_lumina_folder,
    "qwen": tiny_qwen_folder,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("steady")
    return cache(lambda name: BUILDERS[name](root / name))


@pytest.fixture(scope="module")
def files(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA and a ControlNet for ``sd1``."""
    root = tmp_path_factory.mktemp("beside")
    layers = lora(build_unet("sd1", 4), ATTENTION, kohya("lora_unet_"), seed=1)
    write(root / "ink.safetensors", layers)
    controlnet_folder(root / "control", "sd1", 0)
    return root


def steady_inputs(pipe: sdengine.Pipeline, prompt: str) -> dict[str, np.ndarray]:
    """What the denoiser reads of a prompt."""
    run = pipe.start(prompt, width=64, height=64, steps=1, control_scales=0)
    return dict(run._inputs.phases[0][1][0].inputs)


def varying_inputs(pipe: sdengine.Pipeline, seed: int) -> dict[str, np.ndarray]:
    latents = pipe.model.latents
    random, side = np.random.default_rng(seed), 64 // latents.factor
    noise = random.standard_normal((1, latents.channels, side, side)).astype(np.float32)
    return {"latents": noise, "timesteps": np.full(1, 100.0 + 300.0 * seed, np.float32)}


class Counted:
    """Evaluations of a network, and how many operators each of them ran."""

    def __init__(self, network: _core.Network) -> None:
        self.network, self.profile = network, _core.Profile()
        network.set_profile(self.profile)

    def __call__(self, inputs: Arrays, *steady: str) -> tuple[Arrays, int]:
        found = self.network.run(inputs, {}, None, steady)
        return found, len(self.profile.take())


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_network(models: Models, name: str) -> None:
    """Texts that come, stay, go and come back, at steps that differ: bit for bit what is computed anew."""
    pipe = sdengine.load(models(name), threads=1)
    texts = {prompt: steady_inputs(pipe, prompt) for prompt in ("a cat", "two dogs")}
    run, counts = Counted(pipe.denoiser), []
    for step, prompt in enumerate(("a cat", "a cat", "a cat", "two dogs", "two dogs", "a cat")):
        inputs = {**texts[prompt], **varying_inputs(pipe, step)}
        expected, all_of_them = run(inputs)
        found, count = run(inputs, *texts[prompt])
        assert same(found, expected), step
        counts.append(count - all_of_them)
    less = counts[1]
    assert less < 0
    assert counts == [0, less, less, 0, less, 0]


def test_pictures_of_a_control_network(models: Models, files: Path) -> None:
    pipe = sdengine.load(models("sd1"), threads=1, controlnets=files / "control")
    network = pipe.controls[0].network
    run = Counted(network)
    hints = [np.random.default_rng(i).random((1, 3, 64, 64)).astype(np.float32) for i in (0, 1)]
    text = steady_inputs(pipe, "a cat")
    for step, (hint, fresh) in enumerate(((0, False), (0, True), (1, False), (0, False))):
        inputs = {**text, **varying_inputs(pipe, step), "hint": hints[hint]}
        expected, all_of_them = run(inputs)
        found, count = run(inputs, "hint", *text)
        assert same(found, expected)
        assert (count < all_of_them) == fresh


def test_memory_is_planned_and_given_back(models: Models) -> None:
    pipe = sdengine.load(models("sd1"), threads=1)
    text = steady_inputs(pipe, "a cat")
    inputs = {**text, **varying_inputs(pipe, 0)}
    shapes = {name: list(array.shape) for name, array in inputs.items()}
    expected = pipe.denoiser.run(inputs, {}, None, list(text))
    planned = pipe.denoiser.planned_bytes(shapes, {}, list(text))
    assert pipe.denoiser.activation_bytes == planned
    assert planned > pipe.denoiser.planned_bytes(shapes)
    pipe.denoiser.release_activations()
    assert same(pipe.denoiser.run(inputs, {}, None, list(text)), expected)


def test_a_run_that_was_stopped_keeps_nothing(models: Models) -> None:
    pipe = sdengine.load(models("sd1"), threads=1)
    text = steady_inputs(pipe, "a cat")
    inputs = {**text, **varying_inputs(pipe, 0)}
    expected, token = pipe.denoiser.run(inputs), _core.CancelToken()
    token.cancel()
    for cancel in (token, None, token, None):
        if cancel:
            with pytest.raises(Cancelled):
                pipe.denoiser.run(inputs, {}, cancel, list(text))
        else:
            assert same(pipe.denoiser.run(inputs, {}, None, list(text)), expected)


def stepped(pipe: sdengine.Pipeline, prompt: str, anew: bool, **options: Any) -> np.ndarray:
    """Final latents; `anew` with graphs that are built for every step, so that nothing is kept."""
    run = pipe.start(prompt, **{**SHORT, **options})
    while not run.done:
        if anew:
            pipe.denoiser.release()
            for control in pipe.controls:
                control.network.release()
        run.step()
    return run.latents


def cases(files: Path) -> dict[str, dict[str, Any]]:
    ink, picture = files / "ink.safetensors", np.full((64, 64, 3), 90, np.uint8)
    return {
        "phases": {"prompt": "a [cat:dog:2]"},
        "alternating": {"prompt": "a [cat|dog]"},
        "two texts": {"prompt": "a cat AND a dog"},
        "a LoRA whose strength changes": {"loras": Lora(ink, (0.2, 0.4, 0.4, 0.8))},
        "a LoRA for a part": {"loras": Lora(ink, 0.7, 0.25, 0.75)},
        "a batch": {"batch_size": 2},
        "control": {"control_images": picture},
        "tiles": {"width": 96, "tiled_diffusion": 8},
        "second order": {"sampler": "heun"},
    }


@pytest.mark.parametrize("name", cases(Path()))
def test_runs(models: Models, files: Path, name: str) -> None:
    options = {"prompt": "a cat", **cases(files)[name]}
    control = [files / "control"] * ("control_images" in options)
    pipe = sdengine.load(models("sd1"), threads=1, controlnets=control)
    expected = stepped(pipe, anew=True, **options)
    assert np.array_equal(stepped(pipe, anew=False, **options), expected)


def test_runs_that_take_turns(models: Models, files: Path) -> None:
    pipe = sdengine.load(models("sd1"), threads=1)
    ink = files / "ink.safetensors"
    options: list[dict[str, Any]] = [
        {"prompt": "a cat"},
        {"prompt": "a dog", "loras": Lora(ink, (0.1, 0.9, 0.9, 0.3))},
        {"prompt": "a cat", "loras": Lora(ink, 0.5)},
        {"prompt": "a dog", "guidance_scale": 1.0},
    ]
    expected = [stepped(pipe, anew=True, **each) for each in options]
    runs = [pipe.start(**{**SHORT, **each}) for each in options]
    for _ in range(2):
        for run in runs:
            run.step()
    runs += [run.fork() for run in runs]
    while not runs[-1].done:
        for run in runs:
            run.step()
    for run, latents in zip(runs, expected + expected, strict=True):
        assert np.array_equal(run.latents, latents)


def test_with_threads(models: Models) -> None:
    one, two = (sdengine.load(models("sd1"), threads=count) for count in (1, 2))
    assert np.array_equal(stepped(one, "a cat", True), stepped(two, "a cat", False))
