"""LoRAs for Qwen-Image: names as published, against diffusers' converter, and Lightning's recipe."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.loaders import lora_conversion_utils as oracle

import sdengine
from sdengine.keys import qwen_image
from sdengine.loading import ModelPlan, plan_model
from tests.models import component_state_dict
from tests.parity.conftest import relative_error
from tests.qwen_models import tiny_qwen_folder

from .files import State, dotted, kohya, pair, write
from .test_dit_names import KOHYA, PEFT, canonical, check, matrices, pairs, replaced_denoiser

PROMPT, SIZE, SEED = "a red circle on a blue background", {"width": 64, "height": 96}, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_folder(tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="module")
def published() -> State:
    with torch.device("meta"):
        return dict(QwenImageTransformer2DModel().state_dict())


@pytest.fixture(scope="module")
def plan(folder: Path, published: State) -> ModelPlan:
    return replaced_denoiser(plan_model(folder), published, (qwen_image.DIFFUSERS,))


NAMINGS: dict[str, tuple[Callable[[str], str], tuple[str, str], bool]] = {
    "Lightning": (dotted(""), KOHYA, True),
    "Lightning, named": (
        dotted(""),
        (".lora_A.default.weight", ".lora_B.default.weight"),
        False,
    ),
    "ComfyUI": (dotted("diffusion_model."), KOHYA, True),
    "ai-toolkit": (dotted("diffusion_model."), PEFT, False),
    "kohya": (kohya("lora_unet_"), KOHYA, True),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_names(naming: str, plan: ModelPlan, published: State, tmp_path: Path) -> None:
    rename, names, alpha = NAMINGS[naming]
    modules = {n: s for n, s in matrices(published).items() if n.startswith("transformer_blocks.")}
    state = pairs(modules, rename, names, alpha)
    made = oracle._convert_non_diffusers_qwen_lora_to_diffusers(dict(state))
    expected = {n.removeprefix("transformer.").removesuffix(PEFT[0]) for n in made}
    expected = {name for name in expected if not name.endswith(PEFT[1])}
    assert expected == set(modules)
    check(plan, tmp_path / "a.safetensors", state, canonical(expected))


@pytest.mark.parametrize(
    ("rename", "names"),
    [
        (dotted("transformer."), PEFT),
        (kohya("lora_transformer_"), KOHYA),
        (kohya("lycoris_"), KOHYA),
        (dotted("base_model.model."), PEFT),
    ],
)
def test_every_module(
    rename: Callable[[str], str],
    names: tuple[str, str],
    plan: ModelPlan,
    published: State,
    tmp_path: Path,
) -> None:
    state = pairs(matrices(published), rename, names)
    check(plan, tmp_path / "a.safetensors", state, canonical(matrices(published)))


def lightning(folder: Path) -> State:
    state: State = {}
    for number, (name, weight) in enumerate(component_state_dict(folder, "transformer").items()):
        if weight.dim() == 2 and name.startswith("transformer_blocks."):
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data = weight
            down, up = pair(layer, 4, 10 * number)
            module = name.removesuffix(".weight")
            state |= {module + KOHYA[0]: down, module + KOHYA[1]: up}
            state[f"{module}.alpha"] = torch.tensor(2.0)
    return state


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_lightning_by_its_recipe(scale: float, folder: Path, tmp_path: Path) -> None:
    """Four steps, no guidance, a shift of 3 for every size: generate_with_diffusers.py of ModelTC's repository."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline

    path = write(tmp_path / "Qwen-Image-Lightning-4steps-V1.0.safetensors", lightning(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = QwenImagePipeline.from_pretrained(folder)
        reference.set_progress_bar_config(disable=True)
        reference.load_lora_weights(str(path), adapter_name="it")
        reference.set_adapters(["it"], [scale])
        told = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
        reference.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
            {**reference.scheduler.config, **told}
        )
        tokens = reference(
            prompt=PROMPT,
            true_cfg_scale=1.0,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **SIZE,
        ).images
    unpacked = reference._unpack_latents(tokens, 96, 64, reference.vae_scale_factor)
    expected = unpacked[:, :, 0].numpy()
    pipe = sdengine.load(folder)
    found = pipe.generate(PROMPT, loras=[(path, scale)], seed=SEED, **SIZE).latents
    assert relative_error(found, expected) <= 1e-3
    plain = pipe.generate(PROMPT, steps=4, guidance_scale=1.0, seed=SEED, **SIZE).latents
    assert relative_error(plain, expected) > 1e-2
