"""ControlNets by themselves against diffusers, float32: relative L2 error <= 1e-4; every layout alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.loading import plan_model
from sdengine.loading.control import plan_control
from sdengine.stores import make_store
from tests.models import component_state_dict
from tests.parity.test_unet_families import conditions, native_inputs
from tests.unet_models import dequantized, write_gguf, write_safetensors

from .conftest import Folders, control_network, device, noise, relative_error
from .models import controlnet_to_ldm

LIMIT = 1e-4


def inputs_of(name: str, batch: int = 2, height: int = 8, width: int = 12) -> dict[str, np.ndarray]:
    given = conditions(name, batch, height, width)
    return {**given, "hint": np.abs(noise(batch, 3, 8 * height, 8 * width, seed=9)) % 1.0}


def reference(net: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    given = {n: torch.tensor(a) for n, a in inputs.items()}
    added = None
    if "pooled" in given:
        added = {"text_embeds": given["pooled"], "time_ids": given["sizes"]}
    with torch.no_grad():
        down, mid = net(
            given["latents"],
            given["timesteps"],
            given["context"],
            given["hint"],
            added_cond_kwargs=added,
            return_dict=False,
        )
    return {**{f"control_{i}": d.numpy() for i, d in enumerate(down)}, "control_mid": mid.numpy()}


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "small-sd"])
def test_residuals(folders: Folders, name: str) -> None:
    network = control_network(folders[f"{name}-control"], folders[name])
    net = ControlNetModel.from_pretrained(folders[f"{name}-control"]).eval()
    inputs = inputs_of(name)
    found, expected = network.run(native_inputs(inputs)), reference(net, inputs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert relative_error(found[key], value) <= LIMIT, key


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_the_unet_adds_residuals(folders: Folders, name: str) -> None:
    plan = plan_model(folders[name]).components["unet"]
    unet = _core.Network("unet", dict(plan.config), make_store(plan), device())
    net = ControlNetModel.from_pretrained(folders[f"{name}-control"]).eval()
    inputs = inputs_of(name)
    residuals = reference(net, inputs)
    plain = native_inputs({n: a for n, a in inputs.items() if n != "hint"})
    found = unet.run({**plain, **residuals})["prediction"]
    given = {n: torch.tensor(a) for n, a in {**inputs, **residuals}.items()}
    added = None
    if "pooled" in given:
        added = {"text_embeds": given["pooled"], "time_ids": given["sizes"]}
    with torch.no_grad():
        expected = (
            UNet2DConditionModel.from_pretrained(folders[name] / "unet")
            .eval()(
                given["latents"],
                given["timesteps"],
                given["context"],
                added_cond_kwargs=added,
                down_block_additional_residuals=[
                    given[f"control_{i}"] for i in range(len(residuals) - 1)
                ],
                mid_block_additional_residual=given["control_mid"],
            )
            .sample.numpy()
        )
    assert relative_error(found, expected) <= LIMIT
    assert relative_error(found, unet.run(plain)["prediction"]) > 0.01


# ------------------------------ layouts
def control_state(folder: Path) -> dict[str, torch.Tensor]:
    return component_state_dict(folder.parent, folder.name)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "small-sd"])
@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_layouts_give_identical_results(
    folders: Folders, name: str, prefix: str, tmp_path: Path
) -> None:
    folder = folders[f"{name}-control"]
    renamed = controlnet_to_ldm(control_state(folder))
    state = {prefix + n: t for n, t in renamed.items()}
    path = write_safetensors(state, tmp_path / "control.safetensors")
    inputs = native_inputs(inputs_of(name, 1))
    expected = control_network(folder, folders[name]).run(inputs)
    found = control_network(path, folders[name]).run(inputs)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    plan = plan_control(path, plan_model(folders[name]))
    assert plan.dialect == "LDM"
    assert len(plan.bindings) == len(renamed)


@pytest.mark.parametrize("names", ["LDM", "diffusers"])
def test_quantized(folders: Folders, names: str, tmp_path: Path) -> None:
    state = control_state(folders["sd1-control"])
    if names == "LDM":
        state = {"control_model." + n: t for n, t in controlnet_to_ldm(state).items()}
    path = write_gguf(state, tmp_path / "control.gguf", "q8_0")
    inputs = native_inputs(inputs_of("sd1", 1))
    expected = control_network(
        dequantized(path, tmp_path / "control.safetensors"), folders["sd1"]
    ).run(inputs)
    found = control_network(path, folders["sd1"]).run(inputs)
    for key, value in expected.items():
        assert relative_error(found[key], value) <= LIMIT, key


def test_pictures_are_read_once(folders: Folders) -> None:
    network = control_network(folders["sd1-control"], folders["sd1"])
    inputs = inputs_of("sd1")
    expected = network.run(inputs)
    features = network.run({"hint": inputs.pop("hint")}, {"hint_only": 1})
    assert list(features) == ["hint_features"]
    found = network.run({**inputs, **features})
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_shapes_are_checked(folders: Folders) -> None:
    network = control_network(folders["sd1-control"], folders["sd1"])
    inputs = inputs_of("sd1", 1)
    for hint in (noise(1, 3, 64, 64), noise(2, 3, 64, 96), noise(1, 1, 64, 96)):
        with pytest.raises(ParameterError, match="must be"):
            network.run({**inputs, "hint": hint})
    with pytest.raises(ParameterError, match="multiples of 8"):
        network.run({"hint": noise(1, 3, 60, 64)}, {"hint_only": 1})
    unet = plan_model(folders["sd1"]).components["unet"]
    denoiser = _core.Network("unet", dict(unet.config), make_store(unet), device())
    given = {n: a for n, a in inputs.items() if n != "hint"}
    for name in ("control_mid", "control_0"):
        with pytest.raises(ParameterError, match="made for another family"):
            denoiser.run({**given, name: noise(1, 64, 3, 3)})


@pytest.mark.parametrize("channels", [[], [16] * 100])
def test_impossible_configs(folders: Folders, channels: list[int]) -> None:
    plan = plan_control(folders["sd1-control"], plan_model(folders["sd1"]))
    with pytest.raises(ParameterError, match="hint_block_channels"):
        _core.parameters("controlnet", {**plan.config, "hint_block_channels": channels})
