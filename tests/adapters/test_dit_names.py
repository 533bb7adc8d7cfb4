"""Key dumps of LoRAs for transformers: full-size names and shapes, written from the published rules.

What each naming means is checked against diffusers' own converters where there is one. All files are of rank 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as oracle

from sdengine import _core
from sdengine.adapters import Targets, read_adapter
from sdengine.adapters.loras import Lora
from sdengine.adapters.widening import widened
from sdengine.errors import WeightsError
from sdengine.keys import KeyTable
from sdengine.loading import ComponentPlan, ModelPlan, plan_model
from sdengine.loading.bind import bind
from tests.dit_models import tiny_flux_folder, tiny_sd3_folder
from tests.inventories import index_of
from tests.keys.test_dit_inventories import MODELS, RENAME, TABLES, full_size
from tests.parity.dit import config_of, located

from .files import State, dotted, kohya, write

KOHYA = (".lora_down.weight", ".lora_up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")


def matrices(state: State) -> dict[str, tuple[int, int]]:
    """Module -> rows and columns of the layers that LoRAs change."""
    return {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in state.items()
        if name.endswith(".weight") and tensor.dim() == 2
    }


def pairs(
    modules: dict[str, tuple[int, int]],
    rename: Callable[[str], str],
    names: tuple[str, str],
    alpha: bool = False,
) -> State:
    state: State = {}
    for module, (rows, columns) in modules.items():
        state[rename(module) + names[0]] = torch.zeros(1, columns, dtype=torch.float16)
        state[rename(module) + names[1]] = torch.zeros(rows, 1, dtype=torch.float16)
        if alpha:
            state[f"{rename(module)}.alpha"] = torch.tensor(1.0)
    return state


def replaced_denoiser(tiny: ModelPlan, state: State, tables: tuple[KeyTable, ...]) -> ModelPlan:
    """The plan of a tiny model with a published denoiser in place of its own; no weight is there."""
    kind = tiny.components["transformer"].kind
    found = located(index_of(state), kind, tables)
    config = config_of(found)
    bindings, _ = bind(found, _core.parameters(kind, config))
    part = ComponentPlan("transformer", kind, config, bindings, found.index.path, found.table.name)
    return replace(tiny, components={**tiny.components, "transformer": part})


def full_size_plan(tiny: ModelPlan, model: str) -> ModelPlan:
    return replaced_denoiser(tiny, full_size(model), TABLES[MODELS[model][0]])


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> ModelPlan:
    tiny = plan_model(tiny_flux_folder(tmp_path_factory.mktemp("flux") / "model"))
    return full_size_plan(tiny, "FLUX.1-dev")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> ModelPlan:
    tiny = plan_model(tiny_sd3_folder(tmp_path_factory.mktemp("sd3") / "model"))
    return full_size_plan(tiny, "SD3.5-Medium")


HALVES = ("norm_out.linear", "transformer_blocks.23.norm1_context.linear")


def canonical(names: Iterable[str], last: str = HALVES[1]) -> set[str]:
    """Canonical parameters of modules under diffusers' names; modulations of two chunks are two."""
    found = set()
    for name in names:
        halves = ("_scale", "_shift") if name in (HALVES[0], last) else ("",)
        found |= {f"{name}{half}.weight" for half in halves}
    return found


def converted(state: State, convert: Callable[[State], State] | None) -> set[str]:
    """The modules that diffusers makes of a file."""
    names = convert(dict(state)) if convert is not None else state
    return {
        name.removeprefix("transformer.").removesuffix(".lora_A.weight")
        for name in names
        if name.endswith(".lora_A.weight")
    }


def check(plan: ModelPlan, path: Path, state: State, expected: set[str]) -> None:
    file = read_adapter(write(path, state), Targets(plan))
    assert file.unused == ()
    assert set(file.used) == set(state)
    assert set(file.networks["transformer"].parameters) == expected


def bfl() -> dict[str, tuple[int, int]]:
    return matrices(RENAME["flux"](full_size("FLUX.1-dev")))


def fal() -> State:
    """fal's trainers leave the embedders alone."""
    parts = ("double_blocks.", "single_blocks.", "final_layer.linear")
    modules = {name: shape for name, shape in bfl().items() if name.startswith(parts)}
    return pairs(modules, dotted("base_model.model."), PEFT)


FLUX: dict[str, tuple[Callable[[], State], Callable[[State], State] | None]] = {
    "kohya": (
        lambda: pairs(bfl(), kohya("lora_unet_"), KOHYA, alpha=True),
        oracle._convert_kohya_flux_lora_to_diffusers,
    ),
    "diffusers": (
        lambda: pairs(matrices(full_size("FLUX.1-dev")), dotted("transformer."), PEFT),
        None,
    ),
    "fal": (fal, oracle._convert_fal_kontext_lora_to_diffusers),
}


@pytest.mark.parametrize("naming", FLUX)
def test_flux_against_diffusers_converter(naming: str, flux: ModelPlan, tmp_path: Path) -> None:
    make, convert = FLUX[naming]
    state = make()
    expected = converted(state, convert)
    assert len(expected) > 400
    check(flux, tmp_path / "a.safetensors", state, canonical(expected, last=""))


OTHERS: dict[str, Callable[[], State]] = {
    "ComfyUI": lambda: pairs(bfl(), dotted("diffusion_model."), PEFT),
    "ComfyUI, kohya's suffixes": lambda: pairs(bfl(), dotted("diffusion_model."), KOHYA, True),
    "BFL names in diffusers": lambda: pairs(bfl(), dotted("transformer."), PEFT),
    "bare BFL": lambda: pairs(bfl(), dotted(""), PEFT),
    "ai-toolkit": lambda: pairs(
        matrices(full_size("FLUX.1-dev")), dotted("transformer."), PEFT, alpha=True
    ),
    "OneTrainer": lambda: pairs(
        matrices(full_size("FLUX.1-dev")), kohya("lora_transformer_"), KOHYA, alpha=True
    ),
    "SimpleTuner": lambda: pairs(matrices(full_size("FLUX.1-dev")), kohya("lycoris_"), KOHYA, True),
    "raw PEFT": lambda: pairs(
        matrices(full_size("FLUX.1-dev")),
        dotted("base_model.model."),
        (".lora_A.default.weight", ".lora_B.default.weight"),
    ),
    "bare, DiffSynth": lambda: pairs(
        bfl(), dotted(""), (".lora_A.default.weight", ".lora_B.default.weight")
    ),
}


@pytest.mark.parametrize("naming", OTHERS)
def test_flux(naming: str, flux: ModelPlan, tmp_path: Path) -> None:
    expected = canonical(matrices(full_size("FLUX.1-dev")), last="")
    check(flux, tmp_path / "a.safetensors", OTHERS[naming](), expected)


def xlabs(prefix: str) -> State:
    state: State = {}
    modules = [(f"double_blocks.{i}.processor.{name}_lora{n}", name)
               for i in range(19) for name in ("qkv", "proj") for n in (1, 2)]  # fmt: skip
    modules += [
        (f"single_blocks.{i}.processor.{name}_lora", name)
        for i in range(38)
        for name in ("qkv", "proj")
    ]
    for module, name in modules:
        columns = 5 * 3072 if module.startswith("single") and name == "proj" else 3072
        rows = 3 * 3072 if name == "qkv" else 3072
        state[f"{prefix}{module}.down.weight"] = torch.zeros(1, columns, dtype=torch.float16)
        state[f"{prefix}{module}.up.weight"] = torch.zeros(rows, 1, dtype=torch.float16)
    return state


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_flux_of_xlabs(prefix: str, flux: ModelPlan, tmp_path: Path) -> None:
    state = xlabs(prefix)
    made = oracle._convert_xlabs_flux_lora_to_diffusers(dict(state))
    check(flux, tmp_path / "a.safetensors", state, canonical(converted(made, None), last=""))


def control_lora() -> State:
    """FLUX.1-Canny-dev-lora: pairs with biases over every layer, a wider input, and whole norms."""
    wide = {**bfl(), "img_in": (3072, 128)}
    state = pairs(wide, dotted(""), PEFT)
    state |= {f"{m}.lora_B.bias": torch.zeros(rows) for m, (rows, _) in wide.items()}
    last = "final_layer.adaLN_modulation.1"  # diffusers' converter halves both of its matrices
    state |= {f"{last}.lora_A.weight": torch.zeros(2, 3072)}
    state |= {f"{last}.lora_B.weight": torch.zeros(6144, 2)}
    norms = RENAME["flux"](full_size("FLUX.1-dev"))
    return state | {n: torch.zeros(t.shape) for n, t in norms.items() if n.endswith(".scale")}


def test_flux_control_lora(flux: ModelPlan, tmp_path: Path) -> None:
    state = control_lora()
    made = oracle._convert_bfl_flux_control_lora_to_diffusers(dict(state))
    pairs_of = converted({n: t for n, t in made.items() if n.endswith(".lora_A.weight")}, None)
    expected = canonical(pairs_of, last="")
    expected |= {name.replace(".weight", ".bias") for name in expected}
    expected |= {
        n.removeprefix("transformer.") for n in made if n.endswith("weight") and "lora" not in n
    }
    path = write(tmp_path / "canny.safetensors", state)
    with pytest.raises(WeightsError, match="wider input.*when the model is loaded"):
        read_adapter(path, Targets(flux))
    plan = widened(flux, [Lora(path)])
    assert (plan.title, plan.task) == ("FLUX.1 Canny or Depth", "control")
    assert plan.components["transformer"].config["in_channels"] == 32
    check(plan, path, state, expected)


SD3_NAMES: dict[str, Callable[[], State]] = {
    "kohya": lambda: pairs(sd3_reference(), kohya("lora_unet_"), KOHYA, alpha=True),
    "ComfyUI": lambda: pairs(sd3_reference(), dotted("diffusion_model."), PEFT),
    "diffusers": lambda: pairs(sd3_modules(), dotted("transformer."), PEFT),
    "raw PEFT": lambda: pairs(sd3_modules(), dotted("base_model.model."), PEFT),
    "OneTrainer": lambda: pairs(sd3_modules(), kohya("lora_transformer_"), KOHYA, alpha=True),
    "SimpleTuner": lambda: pairs(sd3_modules(), kohya("lycoris_"), KOHYA, alpha=True),
}


def sd3_modules() -> dict[str, tuple[int, int]]:
    return matrices(full_size("SD3.5-Medium"))


def sd3_reference() -> dict[str, tuple[int, int]]:
    return matrices(RENAME["mmdit"](full_size("SD3.5-Medium")))


@pytest.mark.parametrize("naming", SD3_NAMES)
def test_sd3(naming: str, sd3: ModelPlan, tmp_path: Path) -> None:
    state = SD3_NAMES[naming]()
    check(sd3, tmp_path / "a.safetensors", state, canonical(sd3_modules()))


# ------------------------------ text encoders
CLIP = "text_model.encoder.layers.1.self_attn.q_proj"
T5 = "encoder.block.1.layer.0.SelfAttention.q"
ENCODERS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "kohya": ("flux", {"text_encoder": ("lora_te1_", CLIP), "text_encoder_2": ("lora_te3_", T5)}),
    "OneTrainer": (
        "flux",
        {"text_encoder": ("lora_te1_", CLIP), "text_encoder_2": ("lora_te2_", T5)},
    ),
    "diffusers": (
        "flux",
        {"text_encoder": ("text_encoder.", CLIP), "text_encoder_2": ("text_encoder_2.", T5)},
    ),
    "ComfyUI": (
        "flux",
        {
            "text_encoder": ("text_encoders.clip_l.transformer.", CLIP),
            "text_encoder_2": ("text_encoders.t5xxl.transformer.", T5),
        },
    ),
    "kohya, SD3": (
        "sd3",
        {
            "text_encoder": ("lora_te1_", CLIP),
            "text_encoder_2": ("lora_te2_", CLIP),
            "text_encoder_3": ("lora_te3_", T5),
        },
    ),
    "ComfyUI, SD3": (
        "sd3",
        {
            "text_encoder": ("text_encoders.clip_l.transformer.", CLIP),
            "text_encoder_2": ("text_encoders.clip_g.transformer.", CLIP),
            "text_encoder_3": ("text_encoders.t5xxl.transformer.", T5),
        },
    ),
}


@pytest.mark.parametrize("naming", ENCODERS)
def test_text_encoders(naming: str, flux: ModelPlan, sd3: ModelPlan, tmp_path: Path) -> None:
    family, encoders = ENCODERS[naming]
    plan = {"flux": flux, "sd3": sd3}[family]
    state: State = {}
    for component, (prefix, module) in encoders.items():
        shapes = {b.name: b.entry.shape for b in plan.components[component].bindings}
        flat = kohya(prefix) if prefix.endswith("_") else dotted(prefix)
        state |= pairs({module: shapes[f"{module}.weight"]}, flat, KOHYA, alpha=True)
    file = read_adapter(write(tmp_path / "a.safetensors", state), Targets(plan))
    assert file.unused == ()
    found: dict[str, Any] = {name: net.parameters for name, net in file.networks.items()}
    assert found == {component: [f"{m}.weight"] for component, (_, m) in encoders.items()}


# ------------------------------ what does not fit
SDXL = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
WRONG: dict[str, tuple[str, dict[str, tuple[int, int]], str]] = {
    "SDXL on FLUX": ("flux", {SDXL: (640, 2048)}, "Stable Diffusion XL"),
    "SDXL with its text encoder on FLUX": (
        "flux",
        {SDXL: (640, 2048), f"lora_te1_{CLIP.replace('.', '_')}": (768, 768)},
        "Stable Diffusion XL",
    ),
    "SD1 on SD3": ("sd3", {SDXL: (320, 768)}, "Stable Diffusion 1.x"),
    "FLUX on SD3": (
        "sd3",
        {"transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072)},
        "FLUX",
    ),
    "SD3 on FLUX": (
        "flux",
        {"transformer.transformer_blocks.0.attn.to_q": (1536, 1536)},
        "Stable Diffusion 3",
    ),
    "SD3 of kohya on FLUX": (
        "flux",
        {"lora_unet_joint_blocks_0_x_block_attn_qkv": (4608, 1536)},
        "Stable Diffusion 3",
    ),
    "Qwen-Image on FLUX": (
        "flux",
        {"transformer_blocks.0.img_mlp.net.0.proj": (12288, 3072)},
        "Qwen-Image",
    ),
    "Hunyuan-DiT on SD3": ("sd3", {"lora_unet_blocks_0_attn1_Wqkv": (4224, 1408)}, "Hunyuan-DiT"),
    "Lumina on FLUX": (
        "flux",
        {"diffusion_model.noise_refiner.0.attention.qkv": (3840, 2304)},
        "Lumina",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_family_is_named(
    case: str, flux: ModelPlan, sd3: ModelPlan, tmp_path: Path
) -> None:
    family, modules, title = WRONG[case]
    state = pairs(modules, dotted(""), KOHYA)
    path = write(tmp_path / "a.safetensors", state)
    with pytest.raises(WeightsError, match=rf"seems to be for .*{title}"):
        read_adapter(path, Targets({"flux": flux, "sd3": sd3}[family]))


def test_damaged_files(flux: ModelPlan, tmp_path: Path) -> None:
    good = pairs({"diffusion_model.single_blocks.3.linear1": (21504, 3072)}, dotted(""), PEFT)
    up = "diffusion_model.single_blocks.3.linear1.lora_B.weight"
    cases = [
        ({**good, up: torch.zeros(21503, 1)}, "21503 rows, expected 21504"),
        ({**good, up: torch.zeros(21504, 0)}, "rank is 0"),
        ({n: t for n, t in good.items() if n != up}, "'up'"),
        (
            {
                "diffusion_model.single_blocks.3.linear1.lokr_w1": torch.zeros(2, 2),
                "diffusion_model.single_blocks.3.linear1.lokr_w2": torch.zeros(10752, 1536),
            },
            "kronecker cannot be parted",
        ),
    ]
    for number, (state, message) in enumerate(cases):
        path = write(tmp_path / f"{number}.safetensors", state)
        with pytest.raises(WeightsError, match=message):
            read_adapter(path, Targets(flux))


def test_what_has_no_meaning_is_named(flux: ModelPlan, tmp_path: Path) -> None:
    state = pairs({"single_blocks.3.linear2": (3072, 15360)}, dotted(""), PEFT)
    more = {"single_blocks.99.linear2.lora_A.weight": torch.zeros(1, 15360)}
    more["single_blocks.0.norm.key_norm.scale"] = torch.zeros(64)
    file = read_adapter(write(tmp_path / "a.safetensors", state | more), Targets(flux))
    assert set(file.unused) == set(more)
