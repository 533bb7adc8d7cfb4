"""Values of odd types and sizes: a typed error for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine.conditioning import Conditioning
from sdengine.errors import OutOfMemoryError, ParameterError

SHORT: dict[str, Any] = {"width": 64, "height": 64, "steps": 3, "seed": 1}
HUGE = 10**400  # no float holds it


@pytest.fixture(scope="module")
def pipe() -> sdengine.Pipeline:
    return sdengine.api.demo_pipeline()


def test_a_numpy_scale_per_step_is_a_list(pipe: sdengine.Pipeline) -> None:
    scales = np.array([1.0, 2.0, 3.0])
    found = pipe.generate("a", guidance_scale=scales, **SHORT)
    expected = pipe.generate("a", guidance_scale=[1.0, 2.0, 3.0], **SHORT)
    assert np.array_equal(found.latents, expected.latents)
    assert found.metadata == expected.metadata


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, HUGE) for name in ("eta", "s_noise", "s_churn", "s_tmin", "s_tmax", "strength")),
        *((name, HUGE) for name in ("variation_strength", "denoising_start", "denoising_end")),
        ("s_tmax", np.array([1.0, 2.0])),
        ("noise", np.array([1.0, 2.0])),
        ("seamless", np.array([1.0, 2.0])),
        ("sizes", [1]),
        ("sizes", np.array([1.0, 2.0])),
        ("negative_sizes", 3),
        ("negative_sizes", "crop_top"),
        ("callback", 3),
        ("refiner", 3),
    ],
)
def test_options_of_odd_types(pipe: sdengine.Pipeline, name: str, value: object) -> None:
    with pytest.raises(ParameterError, match=name):
        pipe.generate("a", **{**SHORT, name: value})


@pytest.mark.parametrize("strength", [1e-9, 5e-324])
def test_a_strength_too_small_for_comfyui(pipe: sdengine.Pipeline, strength: float) -> None:
    image = Image.new("RGB", (64, 64))
    with pytest.raises(ParameterError, match="strength"):
        pipe.generate("a", image=image, strength=strength, compat="comfyui", **SHORT)


@pytest.mark.parametrize("context", [None, [[1.0]], "x", np.zeros((77, 128), np.float32)])
def test_a_conditioning_is_numpy(context: Any) -> None:
    with pytest.raises(ParameterError, match="context"):
        Conditioning(context)


def test_stages_refuse_odd_types(pipe: sdengine.Pipeline) -> None:
    with pytest.raises(ParameterError, match="seed"):
        pipe.encode_image(Image.new("RGB", (64, 64)), seed="x")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="seamless"):
        pipe.decode_latents(np.zeros((1, 4, 8, 8), np.float32), seamless=["x"])  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="controlnets"):
        sdengine.load(sdengine.api.DEMO_MODEL, controlnets=[3])  # type: ignore[list-item]
    with pytest.raises(ParameterError, match="shape"):
        sdengine.random.normal(None, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["x", [1.0, 2.0, 3.0]])
def test_a_distilled_scale_is_one_number(pipe: sdengine.Pipeline, scale: Any) -> None:
    from sdengine.generation import told

    with pytest.raises(ParameterError, match="one number"):
        told(pipe.model, 1, {}, {}, scale)


@pytest.mark.parametrize(
    "change",
    [
        {"x": "x"},
        {"sigmas": "abc"},
        {"sigmas": [HUGE, 0]},
        {"seed": None},
        {"seed": 1.5},
        {"eta": "x"},
        {"s_noise": None},
        {"noise": 3},
        {"brownian": "x"},
        {"order": HUGE},
        {"callback": 3},
        {"denoiser": 5},
    ],
)
def test_sample_refuses_odd_types(change: dict[str, Any]) -> None:
    noise = np.ones((1, 4, 4, 4), np.float32)
    given = {"denoiser": lambda x, sigma: x * 0.5, "x": noise, "sigmas": [3.0, 1.0, 0.0]}
    with pytest.raises(ParameterError):
        sdengine.sampling.sample(**{**given, "sampler": "ipndm", **change})
    sdengine.sampling.sample(**given, seed=np.int64(3))  # type: ignore[arg-type]


def test_a_denoisers_own_error_comes_through() -> None:
    def denoiser(x: np.ndarray, sigma: float) -> np.ndarray:
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        sdengine.sampling.sample(denoiser, np.ones((1, 2), np.float32), [1.0, 0.0])


def test_no_memory_for_a_picture_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("sdengine.images._upright", full)
    with pytest.raises(OutOfMemoryError, match="smaller picture"):
        sdengine.images.open_image(Image.new("RGB", (8, 8)))
