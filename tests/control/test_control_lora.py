"""ControlNets that change the base model's weights, against diffusers' ControlNet over the changed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdengine
from sdengine.control import LoadedControl
from sdengine.errors import ParameterError
from sdengine.loading import plan_model
from tests.parity.test_unet_families import native_inputs
from tests.unet_models import build_unet

from .conftest import Folders, device, relative_error
from .models import build_controlnet, controlnet_to_ldm
from .test_controlnet import inputs_of
from .test_controlnet import reference as residuals
from .test_pipelines import FIRST, generate, reference

State = dict[str, torch.Tensor]
RANK = 4
WAY_DOWN = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")


def is_changed(name: str, tensor: torch.Tensor) -> bool:
    return name.startswith(WAY_DOWN) and tensor.dim() > 1


def control_lora(family: str) -> tuple[State, torch.nn.Module]:
    """A Control-LoRA in Stability AI's layout, and the ControlNet that it stands for."""
    net = build_controlnet(family, seed=3)
    base = build_unet(family, 4).state_dict()
    generator = torch.Generator().manual_seed(1)
    whole = net.state_dict()
    there = {id(tensor): name for name, tensor in controlnet_to_ldm(whole).items()}
    state: State = {"lora_controlnet": torch.tensor([])}
    for name, tensor in whole.items():
        if not is_changed(name, tensor):
            state[there[id(tensor)]] = tensor
            continue
        shape = tensor.shape
        up = torch.randn((shape[0], RANK), generator=generator) * float(base[name].std())
        down = torch.randn((RANK, *shape[1:]), generator=generator) / shape[1:].numel() ** 0.5
        module = there[id(tensor)].removesuffix(".weight")
        state[f"{module}.up"] = up.reshape(shape[0], RANK, *([1] * (len(shape) - 2)))
        state[f"{module}.down"] = down
        whole[name] = base[name] + (up @ down.flatten(1)).reshape(shape)
    net.load_state_dict(whole)
    return state, net


def difference(family: str) -> tuple[State, torch.nn.Module]:
    """A file of differences in lllyasviel's layout, and the ControlNet that it stands for."""
    net = build_controlnet(family, seed=3)
    base, whole = build_unet(family, 4).state_dict(), net.state_dict()
    changes = {n: t - base[n] if n.startswith(WAY_DOWN) else t for n, t in whole.items()}
    renamed = {f"control_model.{n}": t for n, t in controlnet_to_ldm(changes).items()}
    return {**renamed, "difference": torch.zeros(1)}, net


KINDS = {"Control-LoRA": control_lora, "difference": difference}


def write(path: Path, state: State) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_residuals(kind: str, family: str, folders: Folders, tmp_path: Path) -> None:
    state, net = KINDS[kind](family)
    path = write(tmp_path / "control.safetensors", state)
    loaded = LoadedControl(path, plan_model(folders[family]), device())
    inputs = inputs_of(family)
    found, expected = loaded.network.run(native_inputs(inputs)), residuals(net, inputs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert relative_error(found[key], value) <= 1e-4, key


def test_whole_pipeline(folders: Folders, tmp_path: Path) -> None:
    state, net = control_lora("sdxl")
    expected = reference(
        "StableDiffusionXLControlNetPipeline",
        folders["sdxl"],
        parts={"controlnet": net},
        image=FIRST,
        guidance_scale=5.0,
        controlnet_conditioning_scale=0.7,
    )
    path = write(tmp_path / "control.safetensors", state)
    pipe = sdengine.load(folders["sdxl"], controlnets=[path])
    found = generate(pipe, 5.0, control_images=[FIRST], control_scales=np.array([0.7]))
    assert relative_error(found, expected) <= 1e-3
    assert pipe.graphs_built["control_0"] >= 1
    plain = generate(pipe, 5.0, control_scales=0)
    assert relative_error(plain, expected) > 1e-2


def test_changed_weights_lie_in_the_base_models_file(folders: Folders, tmp_path: Path) -> None:
    state, net = control_lora("sdxl")
    plan = plan_model(folders["sdxl"])
    loaded = LoadedControl(write(tmp_path / "control.safetensors", state), plan, device())
    own = {b.name: b.entry.place for b in plan.components["unet"].bindings}
    shared = {b.name for b in loaded.plan.bindings if b.entry.place == own.get(b.name)}
    assert shared == {name for name, tensor in net.state_dict().items() if is_changed(name, tensor)}


def drop(state: State, ending: str) -> State:
    return {n: t for n, t in state.items() if not n.endswith(ending)}


def cases() -> list[tuple[str, str, Any]]:
    return [
        ("sd1", "another base model", lambda state: state),
        ("sdxl", "'controlnet_mid_block.weight' is missing", lambda s: drop(s, "out.0.weight")),
        ("sdxl", "input_blocks.99", lambda s: {**s, "input_blocks.99.0.up": torch.zeros(2, 2)}),
        ("sdxl", "'down'", lambda s: drop(s, "time_embed.0.down")),
    ]


@pytest.mark.parametrize(("base", "message", "change"), cases())
def test_what_does_not_fit(
    base: str, message: str, change: Any, folders: Folders, tmp_path: Path
) -> None:
    state, _ = control_lora("sdxl")
    path = write(tmp_path / "control.safetensors", change(state))
    with pytest.raises(ParameterError, match=message):
        sdengine.load(folders[base], controlnets=[path])


def test_a_model_without_a_unet(tmp_path: Path) -> None:
    from tests.dit_models import tiny_flux_folder

    path = write(tmp_path / "control.safetensors", {"lora_controlnet": torch.tensor([])})
    with pytest.raises(ParameterError, match="a Control-LoRA for a UNet"):
        sdengine.load(tiny_flux_folder(tmp_path / "flux"), controlnets=[path])
