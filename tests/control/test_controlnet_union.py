"""ControlNet-Union against diffusers: one condition by itself, whole pipelines, several types at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetUnionModel
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel

import sdengine
from sdengine.control import LoadedControl
from sdengine.errors import ParameterError
from sdengine.loading import plan_model
from tests.parity.test_unet_families import native_inputs
from tests.unet_models import write_gguf, write_safetensors

from .conftest import Folders, control_network, device, noise, relative_error
from .models import build_union
from .test_controlnet import inputs_of
from .test_pipelines import FIRST, LIMIT, SECOND, generate, reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("union") / "union"
    build_union("sdxl").save_pretrained(path)
    return path


@pytest.mark.parametrize("task", [0, 3, 5])
def test_residuals(folders: Folders, folder: Path, task: int) -> None:
    inputs = inputs_of("sdxl", 1)
    given = {n: torch.tensor(a) for n, a in inputs.items()}
    types = torch.zeros(1, 6)
    types[0, task] = 1
    with torch.no_grad():
        down, mid = ControlNetUnionModel.from_pretrained(folder).eval()(
            given["latents"],
            given["timesteps"],
            given["context"],
            [given["hint"]],
            control_type=types,
            control_type_idx=[task],
            added_cond_kwargs={"text_embeds": given["pooled"], "time_ids": given["sizes"]},
            return_dict=False,
        )
    name = {0: "openpose", 3: "canny", 5: "segmentation"}[task]
    net = LoadedControl(
        sdengine.ControlNet(folder, type=name), plan_model(folders["sdxl"]), device()
    )
    found = net.network.run({**native_inputs(inputs), **net._told_task()})
    for i, expected in enumerate(down):
        assert relative_error(found[f"control_{i}"], expected.numpy()) <= 1e-4
    assert relative_error(found["control_mid"], mid.numpy()) <= 1e-4


def test_pipeline(folders: Folders, folder: Path) -> None:
    expected = reference(
        "StableDiffusionXLControlNetUnionPipeline",
        folders["sdxl"],
        parts={"controlnet": ControlNetUnionModel.from_pretrained(folder)},
        control_image=[FIRST],
        control_mode=[3],
        guidance_scale=5.0,
        controlnet_conditioning_scale=0.8,
    )
    net = sdengine.ControlNet(folder, type="canny")
    pipe = sdengine.load(folders["sdxl"], controlnets=net)
    found = generate(pipe, 5.0, control_images=FIRST, control_scales=0.8)
    assert relative_error(found, expected) <= LIMIT
    other = sdengine.load(folders["sdxl"], controlnets=sdengine.ControlNet(folder, type="depth"))
    assert relative_error(generate(other, 5.0, control_images=FIRST), expected) > LIMIT


def test_several_types(folders: Folders, folder: Path) -> None:
    net = ControlNetUnionModel.from_pretrained(folder)
    expected = reference(
        "StableDiffusionXLControlNetUnionPipeline",
        folders["sdxl"],
        parts={"controlnet": MultiControlNetUnionModel([net, net])},
        control_image=[FIRST, SECOND],
        control_mode=[1, 4],
        guidance_scale=5.0,
        controlnet_conditioning_scale=[0.5, 0.7],
    )
    nets = [sdengine.ControlNet(folder, type=name) for name in ("depth", "normal")]
    pipe = sdengine.load(folders["sdxl"], controlnets=nets)
    found = generate(pipe, 5.0, control_images=[FIRST, SECOND], control_scales=[0.5, 0.7])
    assert relative_error(found, expected) <= LIMIT
    batch = generate(pipe, 5.0, control_images=[[FIRST, SECOND], SECOND], batch_size=2)
    single = generate(pipe, 5.0, control_images=[FIRST, SECOND])
    assert np.array_equal(batch[:1], single)


def test_files(folders: Folders, folder: Path, tmp_path: Path) -> None:
    state = build_union("sdxl").state_dict()
    inputs = {
        **native_inputs(inputs_of("sdxl", 1)),
        "task": np.zeros((1, 1), np.int32),
        "task_embedding": noise(1, 6 * 256),
    }
    expected = control_network(folder, folders["sdxl"]).run(inputs)
    for path in (
        write_safetensors(state, tmp_path / "union.safetensors"),
        write_gguf(state, tmp_path / "union.gguf"),
    ):
        found = control_network(path, folders["sdxl"]).run(inputs)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_bad_input(folders: Folders, folder: Path) -> None:
    for given, message in (
        (folder, "6 tasks: give it as"),
        (sdengine.ControlNet(folder, type="tile"), "openpose, depth, .*, not 'tile'"),
        (sdengine.ControlNet(folder, type="edges"), "not 'edges'"),
    ):
        with pytest.raises(ParameterError, match=message):
            sdengine.load(folders["sdxl"], controlnets=given)
    with pytest.raises(ParameterError, match="no ControlNet-Union"):
        net = sdengine.ControlNet(folders["sd1-control"], type="canny")
        sdengine.load(folders["sd1"], controlnets=net)
    with pytest.raises(ParameterError, match="made for Stable Diffusion 1"):
        sdengine.load(folders["sd1"], controlnets=sdengine.ControlNet(folder, type="canny"))
    inputs = native_inputs(inputs_of("sdxl", 1))
    network = control_network(folder, folders["sdxl"])
    for task in (6, -1):
        given = {"task": np.full((1, 1), task, np.int32), "task_embedding": noise(1, 6 * 256)}
        with pytest.raises(ParameterError):
            network.run({**inputs, **given})
