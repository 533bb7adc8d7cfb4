"""LoRAs for Lumina-Image 2.0 and PixArt: names as published, and numbers against diffusers with PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import lora_conversion_utils as oracle

import sdengine
from sdengine.loading import ModelPlan, plan_model
from tests.dit import test_lumina, test_pixart
from tests.dit import test_lumina_pixart_files as files
from tests.dit.lumina_models import tiny_lumina_folder
from tests.dit.pixart_models import ALPHA, SIGMA, tiny_pixart_folder
from tests.parity.conftest import relative_error

from .files import State, dotted, kohya, lora, pair, write
from .test_dit_names import KOHYA, PEFT, check, matrices, pairs, replaced_denoiser

LUMINA, SIGMA_1024, ALPHA_1024 = "Lumina-Image 2.0", "PixArt-sigma", "PixArt-alpha"
FOLDERS: dict[str, Callable[[Path], Path]] = {
    LUMINA: tiny_lumina_folder,
    SIGMA_1024: lambda path: tiny_pixart_folder(path, SIGMA, "PixArtSigmaPipeline"),
    ALPHA_1024: lambda path: tiny_pixart_folder(path, ALPHA, "PixArtAlphaPipeline"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapted")
    return {name: make(root / name) for name, make in FOLDERS.items()}


@pytest.fixture(scope="module")
def plans(folders: dict[str, Path]) -> dict[str, ModelPlan]:
    """The tiny models' plans, with published denoisers."""
    return {
        name: replaced_denoiser(
            plan_model(folder), files.full_size(name), files.TABLES[files.MODELS[name][0]]
        )
        for name, folder in folders.items()
    }


def canonical(modules: Any) -> set[str]:
    return {f"{module}.weight" for module in modules}


# ------------------------------ names
DIFFUSERS: dict[str, tuple[Callable[[str], str], tuple[str, str], bool]] = {
    "diffusers": (dotted("transformer."), PEFT, False),
    "raw PEFT": (dotted("base_model.model."), PEFT, False),
    "OneTrainer": (kohya("lora_transformer_"), KOHYA, True),
    "SimpleTuner": (kohya("lycoris_"), KOHYA, True),
}
ORIGINAL: dict[str, tuple[Callable[[str], str], tuple[str, str], bool]] = {
    "ComfyUI": (dotted("diffusion_model."), PEFT, False),
    "kohya": (kohya("lora_unet_"), KOHYA, True),
    "bare": (dotted(""), KOHYA, True),
}


@pytest.mark.parametrize("naming", DIFFUSERS)
@pytest.mark.parametrize("model", FOLDERS)
def test_names_of_diffusers(
    model: str, naming: str, plans: dict[str, ModelPlan], tmp_path: Path
) -> None:
    modules = matrices(files.full_size(model))
    state = pairs(modules, *DIFFUSERS[naming])
    check(plans[model], tmp_path / "a.safetensors", state, canonical(modules))


@pytest.mark.parametrize("naming", ORIGINAL)
@pytest.mark.parametrize("model", FOLDERS)
def test_names_of_the_publisher(
    model: str, naming: str, plans: dict[str, ModelPlan], tmp_path: Path
) -> None:
    """Fused matrices too: one pair of the file is three matrices of the model, or two."""
    spare = ("y_embedder.y_embedding", "pos_embed", "final_layer.scale_shift_table")
    tensors = {n: t for n, t in files.original(model).items() if n not in spare}
    state = pairs(matrices(tensors), *ORIGINAL[naming])
    expected = canonical(matrices(files.full_size(model)))
    check(plans[model], tmp_path / "a.safetensors", state, expected)


def test_lumina_against_diffusers_converter(plans: dict[str, ModelPlan], tmp_path: Path) -> None:
    blocks = ("layers.", "noise_refiner.", "context_refiner.")
    named = matrices(files.original(LUMINA))
    modules = {name: shape for name, shape in named.items() if name.startswith(blocks)}
    state = pairs(modules, dotted("diffusion_model."), PEFT)
    made = oracle._convert_non_diffusers_lumina2_lora_to_diffusers(dict(state))
    expected = {
        n.removeprefix("transformer.").removesuffix(PEFT[0]) for n in made if n.endswith(PEFT[0])
    }
    check(plans[LUMINA], tmp_path / "a.safetensors", state, canonical(expected))


# ------------------------------ numbers
EVERY = {
    LUMINA: (
        *("to_q", "to_k", "to_v", "to_out.0", "linear_1", "linear_2", "linear_3"),
        *("norm1.linear", "x_embedder", "caption_embedder.1"),
    ),
    SIGMA_1024: (
        *("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "linear"),
        *("linear_1", "linear_2", "proj_out"),
    ),
}
EVERY[ALPHA_1024] = EVERY[SIGMA_1024]
MODULES: dict[str, Any] = {LUMINA: test_lumina, SIGMA_1024: test_pixart, ALPHA_1024: test_pixart}


def reference(folder: Path, name: str) -> torch.nn.Module:
    classes = {"lumina2": "Lumina2Transformer2DModel", "pixart": "PixArtTransformer2DModel"}
    import diffusers

    cls = getattr(diffusers, classes[files.MODELS[name][0]])
    model: torch.nn.Module = cls.from_pretrained(folder / "transformer").eval()
    return model


def found(pipe: sdengine.Pipeline, given: dict[str, np.ndarray]) -> np.ndarray:
    cond = sdengine.Conditioning(given["context"], given["context"], None, None)
    return pipe.predict(given["latents"], given["timesteps"].tolist(), cond)


class Adapted:
    """diffusers' denoiser with LoRAs of PEFT's; diffusers itself reads none for PixArt."""

    def __init__(self, model: torch.nn.Module, states: dict[str, State], ranks: dict[str, int]):
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        self.model, self.wrapped = model, None
        for name, state in states.items():
            modules = [n.removesuffix(PEFT[0]) for n in state if n.endswith(PEFT[0])]
            config = LoraConfig(r=ranks[name], lora_alpha=ranks[name], target_modules=modules)
            if self.wrapped is None:
                self.wrapped = get_peft_model(model, config, adapter_name=name)
            else:
                self.wrapped.add_adapter(name, config)
            told = {f"base_model.model.{key}": tensor for key, tensor in state.items()}
            missing = set_peft_model_state_dict(self.wrapped, told, adapter_name=name)
            assert not missing.unexpected_keys

    def set(self, scales: dict[str, float]) -> None:
        assert self.wrapped is not None
        self.wrapped.base_model.set_adapter(list(scales))
        for module in self.model.modules():
            for name, scale in scales.items():
                if name in getattr(module, "scaling", {}):
                    module.set_scale(name, scale)


@pytest.mark.parametrize("name", FOLDERS)
def test_against_peft(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model, pipe = reference(folders[name], name), sdengine.load(folders[name])
    ranks = {"one": 4, "two": 2}
    states = {
        adapter: lora(model, EVERY[name], dotted(""), rank=rank, names=PEFT, seed=rank)
        for adapter, rank in ranks.items()
    }
    paths = {
        adapter: write(
            tmp_path / f"{adapter}.safetensors",
            {f"base_model.model.{key}": tensor for key, tensor in state.items()},
        )
        for adapter, state in states.items()
    }
    adapted = Adapted(model, states, ranks)
    given = MODULES[name].inputs(height=8, width=12)
    for scales in ({"one": 0.5}, {"one": 1.5}, {"one": 0.7, "two": -0.6}):
        adapted.set(scales)
        expected = MODULES[name].reference(model, given)
        pipe.set_loras([(paths[adapter], scale) for adapter, scale in scales.items()])
        assert relative_error(found(pipe, given), expected) <= 1e-4, scales
    pipe.set_loras(None)
    assert relative_error(found(pipe, given), expected) > 1e-2


FUSED = {
    # 48 rows of queries, 16 of keys and 16 of values.
    LUMINA: ("diffusion_model.layers.1.attention.qkv", "layers.1.attn.to_", "qkv"),
    SIGMA_1024: ("diffusion_model.blocks.1.attn.qkv", "transformer_blocks.1.attn1.to_", "qkv"),
    ALPHA_1024: (
        "diffusion_model.blocks.1.cross_attn.kv_linear",
        "transformer_blocks.1.attn2.to_",
        "kv",
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_matrices(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Rows of the file's one matrix go to the heads that they belong to, of which there are unequal numbers."""
    target, prefix, letters = FUSED[name]
    model, pipe = reference(folders[name], name), sdengine.load(folders[name])
    layers = [model.get_submodule(prefix + letter) for letter in letters]
    heights = [len(layer.weight) for layer in layers]
    assert (len(set(heights)) > 1) == (name == LUMINA)
    joined: Any = torch.nn.Linear(layers[0].weight.shape[1], sum(heights))
    joined.weight.data = torch.cat([layer.weight.data for layer in layers])
    down, up = pair(joined, 4, 3)
    state: State = {f"{target}.lora_A.weight": down, f"{target}.lora_B.weight": up}
    given = MODULES[name].inputs(height=8, width=12)
    plain = MODULES[name].reference(model, given)
    for layer, change in zip(layers, (up @ down).split(heights), strict=True):
        layer.weight.data += 0.7 * change
    expected = MODULES[name].reference(model, given)
    pipe.set_loras([(write(tmp_path / "fused.safetensors", state), 0.7)])
    assert relative_error(found(pipe, given), expected) <= 1e-5
    assert relative_error(plain, expected) > 1e-3
