"""What LoRAs do on transformers: over quantized weights, merged for good, with wider inputs and recipes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

import sdengine
from sdengine.errors import UnwiseWarning, WeightsError
from tests.dit_models import tiny_flux_folder, tiny_sd3_folder
from tests.models import component_state_dict
from tests.parity.conftest import relative_error
from tests.parity.dit import json_of
from tests.parity.test_dit_networks import flux_inputs, flux_reference
from tests.parity.test_dit_pipelines import PROMPT, SEED
from tests.renaming_dit import flux_to_bfl

from .files import State, dotted, kohya, pair, randn, write
from .test_dit_against_peft import KOHYA, PEFT, probe

SIZE = {"width": 64, "height": 64}
SHORT: dict[str, Any] = {"steps": 3, "guidance_scale": 3.5, "seed": SEED, **SIZE}


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux_folder(tmp_path_factory.mktemp("flux") / "model")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3_folder(tmp_path_factory.mktemp("sd3") / "model")


@pytest.fixture(scope="module")
def pipe(flux: Path) -> sdengine.Pipeline:
    return sdengine.load(flux)


def layer(weight: torch.Tensor) -> torch.nn.Module:
    module = torch.nn.Linear(weight.shape[1], weight.shape[0])
    module.weight.data = weight
    return module


def whole(folder: Path, rename: Any = None, names: tuple[str, str] = PEFT) -> State:
    """A LoRA over every matrix of the denoiser."""
    state: State = {}
    rename = rename or dotted("transformer.")
    weights = component_state_dict(folder, "transformer")
    for number, (name, weight) in enumerate(weights.items()):
        if weight.dim() == 2 and name.endswith(".weight") and "pos_embed" not in name:
            down, up = pair(layer(weight), 3, 10 * number)
            module = rename(name.removesuffix(".weight"))
            state |= {module + names[0]: down, module + names[1]: up}
    return state


def latents(pipe: sdengine.Pipeline, prompt: str = PROMPT, **options: Any) -> np.ndarray:
    return pipe.generate(prompt, **{**SHORT, **options}).latents


@pytest.mark.parametrize("family", ["flux", "sd3"])
@pytest.mark.parametrize("weight_type", ["q8_0", "q4_0"])
def test_over_quantized_weights(
    family: str, weight_type: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Base (quantized) and the low-rank part in float32: no more is lost than by quantizing the base."""
    folder: Path = request.getfixturevalue(family)
    path = write(tmp_path / "lora.safetensors", whole(folder))
    quantized = sdengine.convert(folder, tmp_path / "small.gguf", weight_type, tokenizer=None)
    assert quantized.histogram[weight_type] > 10
    # The same rounded values in float32, with the change merged in.
    merged = sdengine.convert(quantized.path, tmp_path / "merged.gguf", "f32", loras=[(path, 0.8)])
    expected = latents(sdengine.load(merged.path))
    small = sdengine.load(quantized.path)
    assert relative_error(latents(small, loras=[(path, 0.8)]), expected) <= 1e-3
    assert relative_error(latents(small), expected) > 1e-2


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_convert_merges_for_good(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(family)
    path = write(tmp_path / "lora.safetensors", whole(folder))
    done = sdengine.convert(folder, tmp_path / "merged.gguf", "f32", loras=[(path, 0.8)])
    expected = latents(sdengine.load(folder), loras=[(path, 0.8)])
    assert relative_error(latents(sdengine.load(done.path)), expected) <= 1e-4


# ------------------------------ files that diffusers reads itself
def xlabs(width: int) -> State:
    state: State = {}
    for number, (module, rows, columns) in enumerate(
        (
            ("double_blocks.0.processor.qkv_lora1", 3 * width, width),
            ("double_blocks.0.processor.qkv_lora2", 3 * width, width),
            ("double_blocks.0.processor.proj_lora1", width, width),
            ("double_blocks.0.processor.proj_lora2", width, width),
            ("single_blocks.0.processor.qkv_lora", 3 * width, width),
            ("single_blocks.0.processor.proj_lora", width, 5 * width),
        )
    ):
        state[f"{module}.down.weight"] = randn((2, columns), 2 * number, 0.3)
        state[f"{module}.up.weight"] = randn((rows, 2), 2 * number + 1, 0.3)
    return state


def kohyas(width: int) -> State:
    """What diffusers' converter reads at any width; it loses the last layer's."""
    state: State = {}
    for number, (module, rows, columns) in enumerate(
        (
            ("double_blocks.0.img_attn.qkv", 3 * width, width),
            ("double_blocks.0.txt_attn.qkv", 3 * width, width),
            ("double_blocks.0.img_mod.lin", 6 * width, width),
            ("double_blocks.0.txt_mlp.2", width, 4 * width),
            ("single_blocks.0.modulation.lin", 3 * width, width),
            ("single_blocks.0.linear2", width, 5 * width),
        )
    ):
        name = kohya("lora_unet_")(module)
        state[name + KOHYA[0]] = randn((2, columns), 2 * number, 0.3)
        state[name + KOHYA[1]] = randn((rows, 2), 2 * number + 1, 0.3)
        state[f"{name}.alpha"] = torch.tensor(1.0)
    return state


@pytest.mark.parametrize("naming", ["XLabs", "kohya"])
def test_as_diffusers_reads_it(
    naming: str, flux: Path, pipe: sdengine.Pipeline, tmp_path: Path
) -> None:
    from diffusers import FluxPipeline

    state = {"XLabs": xlabs, "kohya": kohyas}[naming](32)
    path = write(tmp_path / "lora.safetensors", state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = FluxPipeline.from_pretrained(flux)
        reference.load_lora_weights(str(path), adapter_name="it")
        reference.set_adapters(["it"], [0.7])
    inputs = flux_inputs(json_of(reference.transformer), (1, 8, 12))
    expected = flux_reference(reference.transformer, inputs)
    assert relative_error(probe(pipe, inputs), expected) > 1e-3
    pipe.set_loras([(path, 0.7)])
    assert relative_error(probe(pipe, inputs), expected) <= 1e-4
    pipe.set_loras([])


def test_the_t5_part(flux: Path, pipe: sdengine.Pipeline, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    encoder = T5EncoderModel.from_pretrained(flux / "text_encoder_2").eval()
    tokenizer = AutoTokenizer.from_pretrained(flux / "tokenizer_2")
    state: State = {}
    for number, ending in enumerate(("layer.0.SelfAttention.q", "layer.1.DenseReluDense.wo")):
        module = encoder.get_submodule(f"encoder.block.1.{ending}")
        down, up = pair(module, 2, 10 * number)
        name = f"lora_te3_encoder_block_1_{ending.replace('.', '_')}"
        state |= {name + KOHYA[0]: down, name + KOHYA[1]: up}
        module.weight.data += 0.7 * (up @ down)
    ids = tokenizer(PROMPT, padding="max_length", max_length=512, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = encoder(ids).last_hidden_state.numpy()
    assert relative_error(pipe.encode_prompt(PROMPT).context, expected) > 1e-3
    pipe.set_loras([(write(tmp_path / "t5.safetensors", state), 0.7)])
    found = pipe.encode_prompt(PROMPT).context
    pipe.set_loras([])
    assert relative_error(found, expected) <= 1e-4


# ------------------------------ FLUX.1 Canny and Depth as LoRAs
def canny(folder: Path) -> tuple[State, torch.nn.Module]:
    """A LoRA in the layout of FLUX.1-Canny-dev-lora at strength 1, and the model that it makes."""
    plain = component_state_dict(folder, "transformer")
    base = FluxTransformer2DModel.from_pretrained(folder / "transformer")
    wide = {**base.config, "in_channels": 128, "out_channels": 64}
    net = FluxTransformer2DModel.from_config(wide).eval()
    weights = dict(plain)
    weights["x_embedder.weight"] = torch.nn.functional.pad(plain["x_embedder.weight"], (0, 64))
    fused = flux_to_bfl(weights)
    state: State = {}
    for number, (name, weight) in enumerate(list(fused.items())):
        module = name.removesuffix(".weight")
        if name.endswith(".scale"):
            state[name] = fused[name] = 1 + randn(weight.shape, number, 0.2)
        elif name.endswith(".weight") and weight.dim() == 2:
            down, up = pair(layer(weight), 4, 10 * number)
            bias = randn((weight.shape[0],), 10 * number + 5, 0.1)
            state |= {module + PEFT[0]: down, module + PEFT[1]: up, f"{module}.lora_B.bias": bias}
            fused[name] = weight + up @ down
            fused[f"{module}.bias"] = fused[f"{module}.bias"] + bias
    from diffusers.loaders.single_file_utils import (
        convert_flux_transformer_checkpoint_to_diffusers as from_bfl,
    )

    net.load_state_dict({**net.state_dict(), **from_bfl_tiny(fused, from_bfl)})
    return state, net


def from_bfl_tiny(fused: State, convert: Any) -> State:
    """BFL's names back to diffusers', at a width that its converter does not know."""
    width = fused["img_in.weight"].shape[0]
    single = {n: t for n, t in fused.items() if ".linear1." not in n}
    for name, tensor in fused.items():
        if ".linear1." in name:  # the converter cuts at 3072; put its cuts together again
            single[name] = torch.cat(
                [
                    torch.nn.functional.pad(
                        part, (0, 0) * (part.dim() - 1) + (0, rows - part.shape[0])
                    )
                    for part, rows in zip(
                        tensor.split([width, width, width, 4 * width]),
                        (3072, 3072, 3072, 12288),
                        strict=True,
                    )
                ]
            )
    made = convert(dict(single))
    cut = {"to_q": width, "to_k": width, "to_v": width, "proj_mlp": 4 * width}
    return {
        name: tensor[: cut[name.split(".")[-2]]]
        if name.startswith("single") and name.split(".")[-2] in cut
        else tensor
        for name, tensor in made.items()
    }


def test_a_lora_that_widens_the_input(flux: Path, tmp_path: Path) -> None:
    state, net = canny(flux)
    path = write(tmp_path / "flux1-canny-dev-lora.safetensors", state)
    inputs = flux_inputs(json_of(net), (1, 8, 12))
    expected = flux_reference(net, inputs)
    pipe = sdengine.load(flux, loras=[path])
    assert (pipe.model.title, pipe.model.task) == ("FLUX.1 Canny or Depth", "control")
    assert relative_error(probe(pipe, inputs), expected) <= 1e-4
    with pytest.raises(WeightsError, match="when the model is loaded"):
        sdengine.load(flux).set_loras([path])
    done = sdengine.convert(flux, tmp_path / "canny.gguf", "f32", loras=[path])
    assert relative_error(probe(sdengine.load(done.path), inputs), expected) <= 1e-4


def test_it_follows_a_picture(flux: Path, tmp_path: Path) -> None:
    from diffusers import FluxControlPipeline, FluxPipeline

    state, net = canny(flux)
    path = write(tmp_path / "flux1-canny-dev-lora.safetensors", state)
    picture = Image.fromarray(
        np.random.default_rng(3).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = FluxPipeline.from_pretrained(flux)
        names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
        parts = {name: getattr(base, name) for name in names}
        reference = FluxControlPipeline(transformer=net, **parts)
        reference.set_progress_bar_config(disable=True)
        tokens = reference(
            PROMPT,
            control_image=picture,
            num_inference_steps=3,
            guidance_scale=3.5,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **SIZE,
        ).images
    scale = reference.vae_scale_factor
    expected = reference._unpack_latents(tokens, 64, 64, scale).numpy()
    pipe = sdengine.load(flux, loras=[path])
    assert relative_error(latents(pipe, control_images=[picture]), expected) <= 1e-3
    other = latents(pipe, control_images=[picture.rotate(90)])
    assert relative_error(other, expected) > 1e-2


def test_a_wider_input_of_a_quantized_model(flux: Path, tmp_path: Path) -> None:
    state, _ = canny(flux)
    path = write(tmp_path / "lora.safetensors", state)
    small = sdengine.convert(flux, tmp_path / "q8.gguf", "q8_0", {"*x_embedder*": "q8_0"}).path
    inputs = flux_inputs(
        {"in_channels": 128, "joint_attention_dim": 32, "pooled_projection_dim": 768}
        | {"guidance_embeds": True},
        (1, 8, 12),
    )
    merged = sdengine.convert(small, tmp_path / "f32.gguf", "f32", loras=[path]).path
    found = probe(sdengine.load(small, loras=[path]), inputs)
    assert relative_error(found, probe(sdengine.load(merged), inputs)) <= 1e-3


# ------------------------------ recipes
@pytest.mark.parametrize(
    ("family", "name", "steps", "guidance", "strength"),
    [
        ("flux", "Hyper-FLUX.1-dev-8steps-lora", 8, 3.5, 0.125),
        ("flux", "FLUX.1-Turbo-Alpha", 8, 3.5, 1.0),
        ("sd3", "Hyper-SD3-4steps-CFG-lora", 4, 3.0, 0.125),
        ("sd3", "sd3.5-large-turbo-lora", 4, 1.0, 1.0),
    ],
)
def test_recipes_apply_themselves(
    family: str,
    name: str,
    steps: int,
    guidance: float,
    strength: float,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder: Path = request.getfixturevalue(family)
    pipe = sdengine.load(folder)
    path = write(tmp_path / f"{name}.safetensors", whole(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnwiseWarning)
        run = pipe.start(PROMPT, loras=[path], seed=SEED, **SIZE)
    told = run.parameters.distilled_guidance
    assert run.parameters.steps == steps
    assert (run.parameters.guidance.scale if told is None else told) == guidance
    assert run.result().metadata[0]["applied_loras"] == f"{path.stem}:{strength:g}"
