"""Key dumps of every naming, written from the converters' published rules, map with nothing left over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import sdengine
from sdengine.adapters import Targets, read_adapter
from sdengine.adapters.names import split_name
from tests.parity.conftest import relative_error
from tests.renaming import unet_to_ldm
from tests.unet_models import build_unet, tiny_folder

from .files import ATTENTION, CONVOLUTIONS, State, dotted, kohya, lora, randn, write

MODULES = (*ATTENTION, *CONVOLUTIONS, "linear_1", "linear_2", "conv_out")
LATENTS = np.random.default_rng(5).standard_normal((1, 4, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def unet(family: str) -> torch.nn.Module:
    return build_unet(family, 3)


@pytest.fixture(scope="module")
def pipe(family: str, tmp_path_factory: pytest.TempPathFactory) -> sdengine.Pipeline:
    return sdengine.load(tiny_folder(tmp_path_factory.mktemp(family) / "model", family, seed=3))


@pytest.fixture(scope="module")
def targets(pipe: sdengine.Pipeline) -> Targets:
    return Targets(pipe.model)


@pytest.fixture(scope="module")
def ldm(unet: torch.nn.Module) -> Callable[[str], str]:
    """The LDM name of a module of the UNet."""
    own = dict(unet.named_parameters())
    there = {id(tensor): name for name, tensor in unet_to_ldm(own).items()}
    names = {
        name.removesuffix(".weight"): there[id(tensor)].removesuffix(".weight")
        for name, tensor in own.items()
    }
    return lambda name: names[name]


DOWN_UP = {
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "PEFT": (".lora_A.weight", ".lora_B.weight"),
    "PEFT, named": (".lora_A.default.weight", ".lora_B.default.weight"),
    "plain": (".lora_A", ".lora_B"),
    "old": ("_lora.down.weight", "_lora.up.weight"),
    "old 2": (".lora.down.weight", ".lora.up.weight"),
}
DIALECTS: dict[str, tuple[Callable[[str], str], str]] = {
    "kohya, diffusers names": (kohya("lora_unet_"), "kohya"),
    "LyCORIS of SimpleTuner": (kohya("lycoris_"), "kohya"),
    "OneTrainer": (kohya("lora_transformer_"), "kohya"),
    "diffusers": (dotted("unet."), "PEFT"),
    "diffusers, named": (dotted("unet."), "PEFT, named"),
    "diffusers, old": (dotted("unet."), "old 2"),
    "raw PEFT": (dotted("base_model.model."), "PEFT"),
    "raw PEFT in a UNet": (dotted("unet.base_model.model."), "PEFT"),
    "mochi's": (dotted("unet."), "plain"),
    "bare": (dotted(""), "kohya"),
    "ComfyUI, diffusers names": (dotted("diffusion_model."), "PEFT"),
}


def probe(pipe: sdengine.Pipeline) -> np.ndarray:
    width = pipe.config["unet"]["cross_attention_dim"]
    context = np.random.default_rng(6).standard_normal((1, 77, width)).astype(np.float32)
    pooled = None if width == 64 else np.ones((1, 128), np.float32)
    return pipe.predict(LATENTS, 501, sdengine.Conditioning(context, context, pooled, pooled))


@pytest.fixture(scope="module")
def changed(
    pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> np.ndarray:
    """The output with the LoRA that every dialect spells."""
    state = lora(unet, MODULES, kohya("lora_unet_"), alpha=4)
    pipe.set_loras(write(tmp_path_factory.mktemp("reference") / "a.safetensors", state))
    return probe(pipe)


def check(pipe: sdengine.Pipeline, changed: np.ndarray, path: Path, state: State) -> None:
    file = read_adapter(write(path, state), Targets(pipe.model))
    assert file.unused == ()
    assert set(file.used) == set(state)
    pipe.set_loras([path])
    assert relative_error(probe(pipe), changed) <= 1e-6


@pytest.mark.parametrize("dialect", DIALECTS)
def test_denoiser(
    dialect: str,
    pipe: sdengine.Pipeline,
    unet: torch.nn.Module,
    changed: np.ndarray,
    tmp_path: Path,
) -> None:
    rename, names = DIALECTS[dialect]
    state = lora(unet, MODULES, rename, names=DOWN_UP[names], alpha=4 if names == "kohya" else None)
    check(pipe, changed, tmp_path / "a.safetensors", state)


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model.", "model.diffusion_model."])
def test_denoiser_in_ldm_names(
    prefix: str,
    pipe: sdengine.Pipeline,
    unet: torch.nn.Module,
    ldm: Callable[[str], str],
    changed: np.ndarray,
    tmp_path: Path,
) -> None:
    spelling = kohya(prefix) if prefix.endswith("_") else dotted(prefix)
    state = lora(unet, MODULES, lambda name: spelling(ldm(name)))
    check(pipe, changed, tmp_path / "a.safetensors", state)


def test_attention_processors_of_old_diffusers(
    pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path
) -> None:
    def old(name: str) -> str:
        module, _, projection = name.replace(".to_out.0", ".to_out").rpartition(".")
        return f"unet.{module}.processor.{projection}"

    projections = ("to_q", "to_k", "to_v", "to_out.0")
    plain = lora(unet, projections, dotted("unet."))
    pipe.set_loras(write(tmp_path / "plain.safetensors", plain))
    expected = probe(pipe)
    state = lora(unet, projections, old, names=DOWN_UP["old"])
    check(pipe, expected, tmp_path / "old.safetensors", state)


LAYER = "text_model.encoder.layers.{}.self_attn.{}_proj"
ENCODERS: dict[str, tuple[str, tuple[str, str]]] = {
    "kohya": ("lora_te{n}_text_model_encoder_layers_{i}_self_attn_{p}_proj", DOWN_UP["kohya"]),
    "diffusers": ("{c}.text_model.encoder.layers.{i}.self_attn.{p}_proj", DOWN_UP["PEFT"]),
    "transformers 5": ("{c}.encoder.layers.{i}.self_attn.{p}_proj", DOWN_UP["PEFT"]),
    "old transformers": (
        "{c}.text_model.encoder.layers.{i}.self_attn.{p}_proj",
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ),
    "oldest": ("{c}.text_model.encoder.layers.{i}.self_attn.to_{p}", DOWN_UP["old"]),
    "ComfyUI": (
        "text_encoders.clip_{l}.transformer.text_model.encoder.layers.{i}.self_attn.{p}_proj",
        DOWN_UP["kohya"],
    ),
}


@pytest.mark.parametrize("dialect", ENCODERS)
def test_text_encoders(dialect: str, pipe: sdengine.Pipeline, tmp_path: Path) -> None:
    pattern, (down, up) = ENCODERS[dialect]
    state: State = {}
    components = [use.component for use in pipe.model.family.text]
    for number, component in enumerate(components):
        width = pipe.config[component]["hidden_size"]
        for layer in range(3):
            for projection in "qkv":
                n = number + 1 if len(components) == 2 else ""
                letter = "lg"[number]
                name = pattern.format(n=n, i=layer, p=projection, c=component, l=letter)
                state[name + down] = randn((2, width), 3 * layer)
                state[name + up] = randn((width, 2), 3 * layer + 1)
    file = read_adapter(write(tmp_path / "a.safetensors", state), Targets(pipe.model))
    assert file.unused == ()
    assert set(file.networks) == set(components)
    for component in components:
        expected = {f"{LAYER.format(i, p)}.weight" for i in range(3) for p in "qkv"}
        assert set(file.networks[component].parameters) == expected


def test_a_fused_projection_is_parted(pipe: sdengine.Pipeline, tmp_path: Path) -> None:
    # OpenCLIP fuses the three projections of an attention.
    component = pipe.model.family.text[-1].component
    width = pipe.config[component]["hidden_size"]
    down, up = randn((2, width), 1), randn((3 * width, 2), 2)
    if component == "text_encoder":
        fused, whole = "lora_te_transformer_resblocks_0_attn_in_proj", "lora_te_text_model"
    else:
        fused, whole = "lora_te2_transformer_resblocks_0_attn_in_proj", "lora_te2_text_model"
    state = {f"{fused}.lora_down.weight": down, f"{fused}.lora_up.weight": up}
    parted: State = {}
    for index, projection in enumerate("qkv"):
        name = f"{whole}_encoder_layers_0_self_attn_{projection}_proj"
        parted[f"{name}.lora_down.weight"] = down
        parted[f"{name}.lora_up.weight"] = up[index * width : (index + 1) * width]
    contexts = []
    for number, tensors in enumerate((state, parted, {})):
        pipe.set_loras([write(tmp_path / f"{number}.safetensors", tensors)] if tensors else [])
        contexts.append(pipe.encode_prompt("a red circle").context)
    assert relative_error(contexts[0], contexts[1]) <= 1e-6
    assert relative_error(contexts[0], contexts[2]) > 1e-3


def test_peft_says_alpha_in_its_config(
    pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path
) -> None:
    import json

    state = lora(unet, ATTENTION, dotted("base_model.model."), names=DOWN_UP["PEFT"], rank=4)
    folder = tmp_path / "adapter"
    folder.mkdir()
    write(folder / "adapter_model.safetensors", state)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "r": 4}), "utf-8")
    pipe.set_loras([folder])
    found = probe(pipe)
    pipe.set_loras([(folder / "adapter_model.safetensors", 0.5)])
    assert relative_error(found, probe(pipe)) <= 1e-6


@pytest.mark.parametrize(
    ("name", "module", "kind", "part"),
    [
        ("lora_unet_x.lora_up.weight", "lora_unet_x", "low_rank", "up"),
        ("x.to_q.lora_B.style.weight", "x.to_q", "low_rank", "up"),
        ("x.lora_B.bias", "x", "low_rank", "bias"),
        ("x.lora_magnitude_vector.default.weight", "x", "shared", "row_magnitude"),
        ("x.dora_scale", "x", "shared", "magnitude"),
        ("x.lokr_w2_a", "x", "kronecker", "w2_a"),
        ("x.diff_b", "x", "add", "bias"),
        ("x.oft_R.default.weight", "x", "rotate_columns", "skew"),
        ("x.oft_blocks", "x", "rotate_rows", "blocks"),
        ("x.processor.qkv_lora1.up.weight", "x.processor.qkv_lora1", "low_rank", "up"),
        ("x.w_norm", "x", "add", "weight"),
    ],
)
def test_roles(name: str, module: str, kind: str, part: str) -> None:
    assert split_name(name) == (module, (kind, part))


@pytest.mark.parametrize("name", ["x.weight", ".alpha", "bundle_emb.x.string_to_param.*", ""])
def test_other_tensors_have_no_role(name: str) -> None:
    assert split_name(name) is None
