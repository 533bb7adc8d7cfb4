"""What goes with ControlNets of Stable Diffusion 3 and FLUX.1, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sdengine
from sdengine import ControlNet
from sdengine.control import LoadedControl, parse_control
from sdengine.errors import ParameterError, UnsupportedModelError
from sdengine.loading import plan_model
from sdengine.loading.control import plan_control

from .conftest import Folders, device, noise, picture, relative_error
from .dit_models import (
    FLUX,
    PROMPT,
    SD3,
    SEED,
    SIZE,
    STEPS,
    Made,
    build,
    generate,
)

LIMIT = 5e-5
FIRST = Image.fromarray(picture(64, 96, 1))
SECOND = Image.fromarray(picture(64, 96, 2))


# ------------------------------ what goes with control
def test_a_run_goes_on_elsewhere(made: Made) -> None:
    pipe = sdengine.load(made.flux, controlnets=made("flux"))
    run = pipe.start(PROMPT, control_images=FIRST, steps=STEPS, seed=SEED, **SIZE)
    run.step()
    copy = pickle.loads(pickle.dumps(run))
    for one in (run, copy):
        while not one.done:
            one.step()
    assert np.array_equal(run.latents, copy.latents)


@pytest.mark.parametrize(("model", "net"), [("sd3", "sd3"), ("flux", "xlabs")])
def test_tiles_and_hires(made: Made, model: str, net: str) -> None:
    pipe = sdengine.load(getattr(made, model), controlnets=made(net))
    options = {"tiled_diffusion": sdengine.TiledDiffusion(size=64, overlap=16)}
    tiled = generate(pipe, control_images=FIRST, **options)
    assert tiled.shape == (1, 16, 12, 8)
    assert relative_error(tiled, generate(pipe, control_scales=0.0, **options)) > LIMIT
    larger = generate(pipe, control_images=FIRST, hires_scale=1.5, hires_strength=0.5)
    assert larger.shape[2:] == (18, 12)


def test_modes(made: Made) -> None:
    pipe = sdengine.load(made.sd3, controlnets=made("sd3-3"))
    found = {
        mode: generate(pipe, control_images=FIRST, control_mode=mode)
        for mode in ("balanced", "prompt", "control")
    }
    assert relative_error(found["prompt"], found["balanced"]) > LIMIT
    assert relative_error(found["control"], found["prompt"]) > LIMIT
    with pytest.raises(ParameterError, match=r"guess_mode is for .* XL"):
        generate(pipe, control_images=FIRST, guess_mode=True)


@pytest.mark.parametrize(
    ("model", "net", "weight_type"),
    [("sd3", "large", "q8_0"), ("flux", "xlabs", "q8_0"), ("flux", "flux-union", "f32")],
)
def test_converted(made: Made, model: str, net: str, weight_type: str, tmp_path: Path) -> None:
    folder = getattr(made, model)
    done = sdengine.convert(made(net), tmp_path / "control.gguf", weight_type)
    kind = "tile" if "union" in net else None
    found, expected = (
        generate(
            sdengine.load(folder, controlnets=ControlNet(path, type=kind)), control_images=FIRST
        )
        for path in (done.path, made(net))
    )
    if weight_type == "f32":
        assert np.array_equal(found, expected)
    else:
        assert done.histogram["q8_0"] > 10
        assert 0 < relative_error(found, expected) <= 0.05


def test_quantized_while_loading(made: Made, tmp_path: Path) -> None:
    """The types are those that `convert` writes."""
    done = sdengine.convert(made("flux"), tmp_path / "control.gguf", "q8_0")
    plan = plan_model(made.flux)
    inputs = {
        "latents": noise(1, 16, 4, 4),
        "hint": noise(1, 16, 4, 4, seed=1),
        "timesteps": np.array([500], np.float32),
        "context": noise(1, 3, 32, seed=2),
        "pooled": noise(1, 768, seed=3),
        "guidance": np.array([3.5], np.float32),
    }
    found = LoadedControl(made("flux"), plan, device(), "q8_0").network.run(inputs)
    expected = LoadedControl(done.path, plan, device()).network.run(inputs)
    assert found.keys() == expected.keys() == {"control_0_of_1", "control_single_0_of_1"}
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_edges_survive_conversion(made: Made, tmp_path: Path) -> None:
    done = sdengine.convert(made("large-canny"), tmp_path / "c.gguf", "f16")
    loaded = LoadedControl(done.path, plan_model(made.sd3), device())
    assert loaded._dit is not None
    assert loaded._dit.edges


# ------------------------------ refused
def test_networks_of_other_families(made: Made, folders: Folders, tmp_path: Path) -> None:
    cases = [
        (made.flux, folders["sdxl-control"], r"a ControlNet, made for .*XL.* cannot steer FLUX"),
        (made.flux, made("sd3"), r"Stable Diffusion 3, and cannot steer FLUX"),
        (made.sd3, made("flux"), r"made for FLUX\.1, and cannot steer Stable Diffusion 3"),
        (folders["sd1"], made("flux"), r"made for FLUX\.1, and cannot steer .*: give a ControlNet"),
    ]
    for model, net, message in cases:
        with pytest.raises(ParameterError, match=message):
            sdengine.load(model, controlnets=net)
    plan = plan_model(made.flux)
    qwen = replace(plan.components["transformer"], kind="qwen_image")
    without = replace(plan, components={**plan.components, "transformer": qwen})
    with pytest.raises(ParameterError, match="no control networks are supported for it"):
        plan_control(made("flux"), without)
    small = build({**SD3, "num_attention_heads": 1, "caption_projection_dim": 64})
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ParameterError, match=r"the width of its tokens is 64, expected 128"):
        sdengine.load(made.sd3, controlnets=tmp_path / "small")
    other = build({**FLUX, "joint_attention_dim": 48})
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ParameterError, match=r"the width of the text is 48, expected 32"):
        sdengine.load(made.flux, controlnets=tmp_path / "other")


@pytest.mark.parametrize("name", ["sd3", "large", "flux", "xlabs"])
def test_loading_one_as_a_model_says_how_to_give_it(made: Made, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="controlnets="):
        sdengine.load(made(name))


def test_types(made: Made) -> None:
    with pytest.raises(ParameterError, match=r"one of canny, tile, .*not None"):
        sdengine.load(made.flux, controlnets=made("flux-union"))
    with pytest.raises(ParameterError, match="not 'mlsd'"):
        sdengine.load(made.flux, controlnets=ControlNet(made("flux-union"), type="mlsd"))
    with pytest.raises(ParameterError, match="leave its type out$"):
        sdengine.load(made.flux, controlnets=ControlNet(made("flux"), type="canny"))
    with pytest.raises(ParameterError, match="or give one of blur, canny, depth"):
        sdengine.load(made.sd3, controlnets=ControlNet(made("large"), type="pose"))
    with pytest.raises(ParameterError, match="leave pooled out"):
        sdengine.load(made.sd3, controlnets=ControlNet(made("sd3"), pooled=True))


def test_unknown_and_damaged_networks(made: Made, tmp_path: Path) -> None:
    state = dict(made.reference("flux").state_dict())
    state["controlnet_x_embedder.weight"] = torch.zeros(32, 72)
    save_file(state, tmp_path / "unknown.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"reads 18 channels .* the 16 of latents"):
        sdengine.load(made.flux, controlnets=tmp_path / "unknown.safetensors")
    state = dict(made.reference("flux").state_dict())
    del state["controlnet_blocks.0.bias"]
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(sdengine.WeightsError, match=r"controlnet_blocks\.0\.bias"):
        sdengine.load(made.flux, controlnets=tmp_path / "net.safetensors")


def test_types_on_the_command_line() -> None:
    assert parse_control("a:b/union.gguf:depth") == ControlNet("a:b/union.gguf", type="depth")
    assert parse_control("net.gguf:lq") == ControlNet("net.gguf", type="lq")
    for path in ("net.gguf", "C:net.gguf", "net:1.0", ":canny"):
        assert parse_control(path) == path


def test_numbers_of_pictures(made: Made) -> None:
    pipe = sdengine.load(made.flux, controlnets=made("flux"))
    with pytest.raises(ParameterError, match="2 pictures were given for a batch of 3"):
        generate(pipe, control_images=[[FIRST, SECOND]], batch_size=3)
