"""The denoisers of SD3 and FLUX.1 against diffusers: relative L2 error.

The issue's bound is 1e-4; what is found in float32 is below 2e-6, and LIMIT holds that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.formats import open_index
from sdengine.keys import flux, mmdit
from tests.renaming_dit import flux_to_bfl, sd3_to_reference

from .conftest import relative_error
from .dit import (
    FLUX,
    SD3,
    SD35,
    config_of,
    json_of,
    located,
    native,
    network_of,
    noise,
    packed,
    position_ids,
    rounded,
    tiny,
    unpacked,
    write_gguf,
)

LIMIT = 5e-6
SD3_TABLES = (mmdit.REFERENCE, mmdit.DIFFUSERS)
FLUX_TABLES = (flux.BFL, flux.DIFFUSERS)


def sd3_inputs(config: dict[str, Any], size: tuple[int, int, int]) -> dict[str, np.ndarray]:
    batch, height, width = size
    return {
        "latents": noise(batch, config["in_channels"], height, width, seed=1),
        "timesteps": np.linspace(371.0, 900.0, batch, dtype=np.float32),
        "context": noise(batch, 7, config["joint_attention_dim"], seed=2),
        "pooled": noise(batch, config["pooled_projection_dim"], seed=3),
    }


def sd3_reference(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> np.ndarray:
    given = {name: torch.tensor(value) for name, value in inputs.items()}
    with torch.no_grad():
        return model(
            hidden_states=given["latents"],
            encoder_hidden_states=given["context"],
            pooled_projections=given["pooled"],
            timestep=given["timesteps"],
        ).sample.numpy()


SD3_VARIANTS = {
    "SD3-Medium": SD3,
    "SD3.5-Medium": SD35,
    "SD3.5-Large": SD3 | {"qk_norm": "rms_norm"},
    "patch-1": SD35 | {"patch_size": 1},
    "head-64": SD35
    | {"attention_head_dim": 64, "num_attention_heads": 2}
    | {"caption_projection_dim": 128},
}


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 6, 10)], ids=["square", "batch"])
@pytest.mark.parametrize("variant", SD3_VARIANTS)
def test_sd3(variant: str, size: tuple[int, int, int], tmp_path: Path) -> None:
    config = SD3_VARIANTS[variant]
    model = tiny(SD3Transformer2DModel, config)
    inputs = sd3_inputs(config, size)
    found = native(model, "mmdit", SD3_TABLES, tmp_path).run(inputs)["prediction"]
    assert relative_error(found, sd3_reference(model, inputs)) <= LIMIT


def flux_inputs(config: dict[str, Any], size: tuple[int, int, int]) -> dict[str, np.ndarray]:
    batch, height, width = size
    inputs = {
        "latents": noise(batch, config["in_channels"] // 4, height, width, seed=1),
        # Halves of 1000: exact in the reference's unit, which is 1.
        "timesteps": np.array([500.0, 250.0], np.float32)[:batch],
        "context": noise(batch, 6, config["joint_attention_dim"], seed=2),
        "pooled": noise(batch, config["pooled_projection_dim"], seed=3),
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = np.array([3.5, 2.0], np.float32)[:batch]
    return inputs


def flux_reference(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> np.ndarray:
    latents = inputs["latents"]
    names = sorted(name for name in inputs if name.startswith("reference"))
    pictures = [latents, *(inputs[name] for name in names)]
    ids = [position_ids(*p.shape[2:], picture=i) for i, p in enumerate(pictures)]
    guidance = inputs.get("guidance")
    with torch.no_grad():
        tokens = model(
            hidden_states=torch.cat([packed(p) for p in pictures], dim=1),
            encoder_hidden_states=torch.tensor(inputs["context"]),
            pooled_projections=torch.tensor(inputs["pooled"]),
            timestep=torch.tensor(inputs["timesteps"] / 1000),
            img_ids=torch.cat(ids),
            txt_ids=torch.zeros(inputs["context"].shape[1], 3),
            guidance=None if guidance is None else torch.tensor(guidance),
        ).sample
    height, width = latents.shape[2:]
    return unpacked(tokens[:, : height * width // 4], height, width)


FLUX_VARIANTS = {
    "dev": FLUX,
    "schnell": FLUX | {"guidance_embeds": False},
    "mini": FLUX | {"num_layers": 1, "num_single_layers": 3},
    "Fill": FLUX | {"in_channels": 96, "out_channels": 16},
    "head-128": FLUX
    | {"attention_head_dim": 128, "num_attention_heads": 1, "axes_dims_rope": [16, 56, 56]},
}


@pytest.mark.parametrize(
    "size", [(1, 8, 8), (2, 6, 10), (2, 46, 48)], ids=["square", "batch", "tokens in groups"]
)
@pytest.mark.parametrize("variant", FLUX_VARIANTS)
def test_flux(variant: str, size: tuple[int, int, int], tmp_path: Path) -> None:
    config = FLUX_VARIANTS[variant]
    model = tiny(FluxTransformer2DModel, config)
    inputs = flux_inputs(config, size)
    found = native(model, "flux", FLUX_TABLES, tmp_path).run(inputs)["prediction"]
    assert relative_error(found, flux_reference(model, inputs)) <= LIMIT


def test_kontext_reads_references(tmp_path: Path) -> None:
    model = tiny(FluxTransformer2DModel, FLUX)
    network = native(model, "flux", FLUX_TABLES, tmp_path)
    inputs = flux_inputs(FLUX, (2, 6, 10))
    alone = network.run(inputs)["prediction"]
    inputs["reference"] = noise(2, 4, 8, 4, seed=5)
    one = network.run(inputs)["prediction"]
    assert relative_error(one, flux_reference(model, inputs)) <= LIMIT
    assert relative_error(one, alone) > 1e-2
    inputs["reference_1"] = noise(2, 4, 2, 6, seed=6)
    two = network.run(inputs)["prediction"]
    assert relative_error(two, flux_reference(model, inputs)) <= LIMIT
    assert relative_error(two, one) > 1e-2
    # More than one operator of ggml joins.
    inputs |= {f"reference_{i}": noise(2, 4, 2, 2 * i, seed=5 + i) for i in range(2, 9)}
    nine = network.run(inputs)["prediction"]
    assert relative_error(nine, flux_reference(model, inputs)) <= LIMIT
    assert relative_error(nine, two) > 1e-2


def test_strong_guidance(tmp_path: Path) -> None:
    """Fill's default is 30. Its sinusoid has angles of 30,000, where float32 knows two digits
    behind the point; reference and ours round them differently."""
    model = tiny(FluxTransformer2DModel, FLUX)
    inputs = flux_inputs(FLUX, (1, 8, 8)) | {"guidance": np.array([30.0], np.float32)}
    found = native(model, "flux", FLUX_TABLES, tmp_path).run(inputs)["prediction"]
    assert relative_error(found, flux_reference(model, inputs)) <= 1e-4


def test_sd3_without_some_blocks(tmp_path: Path) -> None:
    """Skip-layer guidance: the last block may be among those that are left out."""
    model = tiny(SD3Transformer2DModel, SD35)
    network = native(model, "mmdit", SD3_TABLES, tmp_path)
    inputs = sd3_inputs(SD35, (2, 6, 10))
    assert network.guidance_layers == [f"transformer_blocks.{i}" for i in range(3)]
    for skipped in ([1], [0, 2]):
        found = network.run(inputs, {"skip_layers": sum(1 << i for i in skipped)})["prediction"]
        given = {name: torch.tensor(value) for name, value in inputs.items()}
        with torch.no_grad():
            expected = model(
                hidden_states=given["latents"],
                encoder_hidden_states=given["context"],
                pooled_projections=given["pooled"],
                timestep=given["timesteps"],
                skip_layers=skipped,
            ).sample.numpy()
        assert relative_error(found, expected) <= LIMIT
    with pytest.raises(ParameterError, match="'skip_layers' names a layer"):
        network.run(inputs, {"skip_layers": 8})


def test_flux_without_some_blocks(tmp_path: Path) -> None:
    model = tiny(FluxTransformer2DModel, FLUX)
    network = native(model, "flux", FLUX_TABLES, tmp_path)
    inputs = flux_inputs(FLUX, (1, 6, 10))
    assert network.guidance_layers[1:3] == ["transformer_blocks.1", "single_transformer_blocks.0"]
    found = network.run(inputs, {"skip_layers": 0b0101})["prediction"]
    del model.transformer_blocks[0], model.single_transformer_blocks[0]
    assert relative_error(found, flux_reference(model, inputs)) <= LIMIT


# ------------------------------ layouts, types, sizes
@pytest.mark.parametrize("kind", ["mmdit", "flux"])
def test_every_layout_gives_identical_results(kind: str, tmp_path: Path) -> None:
    cls, config, inputs, tables, rename = {
        "mmdit": (SD3Transformer2DModel, SD35, sd3_inputs, SD3_TABLES, sd3_to_reference),
        "flux": (FluxTransformer2DModel, FLUX, flux_inputs, FLUX_TABLES, flux_to_bfl),
    }[kind]
    model = tiny(cls, config)
    given = inputs(config, (1, 6, 4))
    results = []
    for number, change in enumerate((dict, rename)):
        folder = tmp_path / str(number)
        folder.mkdir()
        results.append(native(model, kind, tables, folder, change).run(given)["prediction"])
    assert np.array_equal(*results)


# Rows of whole blocks; heads as wide as the published ones.
WIDE_SD3 = SD35 | {
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "caption_projection_dim": 128,
    "pooled_projection_dim": 64,
}
WIDE_FLUX = FLUX | {
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "axes_dims_rope": [16, 56, 56],
    "pooled_projection_dim": 64,
    "in_channels": 64,
}


@pytest.mark.parametrize("weight_type", ["q8_0", "q4_0"])
@pytest.mark.parametrize("kind", ["mmdit", "flux"])
def test_quantized(kind: str, weight_type: str, tmp_path: Path) -> None:
    """Slices of fused tensors are used in place; the error is that of the weights alone."""
    cls, config, inputs, reference, tables, rename = {
        "mmdit": (
            SD3Transformer2DModel,
            WIDE_SD3,
            sd3_inputs,
            sd3_reference,
            SD3_TABLES,
            sd3_to_reference,
        ),
        "flux": (
            FluxTransformer2DModel,
            WIDE_FLUX,
            flux_inputs,
            flux_reference,
            FLUX_TABLES,
            flux_to_bfl,
        ),
    }[kind]
    model = tiny(cls, config)
    path = tmp_path / "model.gguf"
    write_gguf(rename(dict(model.state_dict())), path, weight_type)
    found = located(open_index(path), kind, tables)
    network, store = network_of(found, config_of(found, json_of(model)))
    given = inputs(config, (2, 6, 4))
    exact = reference(model, given)
    model.load_state_dict(rounded(model.state_dict(), weight_type))
    result = network.run(given)["prediction"]
    assert relative_error(result, reference(model, given)) <= LIMIT
    assert relative_error(result, exact) > 1e-3
    assert store.owned_bytes == 0


@pytest.mark.parametrize("kind", ["mmdit", "flux"])
def test_values_beyond_half_precision(kind: str, tmp_path: Path) -> None:
    """A network that kept activations in f16 (largest value 65504) would give NaN."""
    cls, config, inputs, reference, tables = {
        "mmdit": (SD3Transformer2DModel, SD35, sd3_inputs, sd3_reference, SD3_TABLES),
        "flux": (FluxTransformer2DModel, FLUX, flux_inputs, flux_reference, FLUX_TABLES),
    }[kind]
    model = tiny(cls, config)
    largest = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("net.0.proj.weight", "proj_mlp.weight", "to_v.weight")):
                parameter.mul_(1e6)
    for name, module in model.named_modules():
        if name.endswith(("net.0", "act_mlp")):
            module.register_forward_hook(lambda m, x, y: largest.append(float(y.abs().max())))
    given = inputs(config, (1, 6, 4))
    expected = reference(model, given)
    assert min(largest) > 65504
    found = native(model, kind, tables, tmp_path).run(given)["prediction"]
    assert relative_error(found, expected) <= LIMIT


@pytest.mark.parametrize("kind", ["mmdit", "flux"])
def test_threads_change_nothing_and_memory_is_linear(kind: str, tmp_path: Path) -> None:
    cls, config, inputs, tables = {
        "mmdit": (SD3Transformer2DModel, WIDE_SD3, sd3_inputs, SD3_TABLES),
        "flux": (FluxTransformer2DModel, WIDE_FLUX, flux_inputs, FLUX_TABLES),
    }[kind]
    config = config | {"pos_embed_max_size": 64} if kind == "mmdit" else config
    model = tiny(cls, config)
    one, three = (native(model, kind, tables, tmp_path, threads=n) for n in (1, 3))
    given = inputs(config, (2, 48, 32))
    single = one.run(given)["prediction"]
    small = one.activation_bytes
    assert np.array_equal(three.run(given)["prediction"], single)
    one.release()
    one.run(inputs(config, (2, 96, 64)))
    assert one.activation_bytes < 4.5 * small  # four times the tokens
    first = {name: value[:1] for name, value in given.items()}
    assert relative_error(one.run(first)["prediction"], single[:1]) <= 1e-6


# ------------------------------ what is refused
def test_sd3_refuses_what_does_not_fit(tmp_path: Path) -> None:
    network = native(tiny(SD3Transformer2DModel, SD3), "mmdit", SD3_TABLES, tmp_path)
    good = sd3_inputs(SD3, (2, 8, 8))
    for change, message in (
        ({"latents": noise(2, 5, 8, 8)}, r"'latents' of \[N, 4, .* not \[2, 5, 8, 8\]"),
        ({"latents": noise(2, 4, 7, 8)}, r"multiples of 2, not \[2, 4, 7, 8\]"),
        ({"latents": noise(2, 4, 26, 8)}, "13 x 4 patches .* knows the positions of 12 x 12"),
        ({"latents": noise(4, 8, 8)}, "'latents' .* must have 4 axes"),
        ({"context": noise(2, 7, 33)}, r"context of \[2, tokens, 32\], not \[2, 7, 33\]"),
        ({"context": noise(1, 7, 32)}, r"context of \[2, tokens, 32\], not \[1, 7, 32\]"),
        ({"pooled": noise(2, 47)}, r"'pooled' \[2, 48\], not \[2, 47\]"),
        ({"pooled": None}, "the input 'pooled' is missing"),
        ({"timesteps": noise(1)}, r"'timesteps' \[2\], not \[1\]"),
        ({"guidance": noise(2)}, "no input 'guidance'"),
    ):
        given = {name: value for name, value in (good | change).items() if value is not None}
        with pytest.raises(ParameterError, match=message):
            network.run(given)
    assert network.run(good)["prediction"].shape == (2, 4, 8, 8)


def test_flux_refuses_what_does_not_fit(tmp_path: Path) -> None:
    network = native(tiny(FluxTransformer2DModel, FLUX), "flux", FLUX_TABLES, tmp_path)
    good = flux_inputs(FLUX, (2, 8, 8))
    for change, message in (
        ({"latents": noise(2, 16, 8, 8)}, r"'latents' of \[N, 4, .* not \[2, 16, 8, 8\]"),
        ({"latents": noise(2, 4, 8, 9)}, r"multiples of 2, not \[2, 4, 8, 9\]"),
        ({"context": noise(2, 7, 33)}, r"context of \[2, tokens, 32\], not \[2, 7, 33\]"),
        ({"pooled": None}, "the input 'pooled' is missing"),
        ({"guidance": None}, "the input 'guidance' is missing"),
        ({"guidance": noise(2, 1)}, "'guidance' .* must have 1 axes"),
        ({"reference": noise(2, 5, 8, 8)}, r"'reference' of \[N, 4, .* not \[2, 5, 8, 8\]"),
        ({"reference": noise(1, 4, 8, 8)}, r"'reference' \[1, 4, 8, 8\] must have as many"),
        ({"reference_1": noise(2, 4, 8, 8)}, "no input 'reference_1'"),
    ):
        given = {name: value for name, value in (good | change).items() if value is not None}
        with pytest.raises(ParameterError, match=message):
            network.run(given)
    assert network.run(good)["prediction"].shape == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("mmdit", {"head_dim": 0}, "64 cannot be parted into heads of 0"),
        ("mmdit", {"head_dim": 48}, "64 cannot be parted into heads of 48"),
        ("mmdit", {"patch_size": 3}, "1 or 2 pixels a side, not 3"),
        ("flux", {"head_dim": 24}, "64 cannot be parted into heads of 24"),
        ("flux", {"rope_axes": [4, 4]}, "3 axes"),
        ("flux", {"rope_axes": [4, 5, 7]}, "an even number to each"),
        ("flux", {"rope_axes": [16, -2, 2]}, "an even number to each"),
    ],
)
def test_hostile_configs(kind: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    cls, config, tables = {
        "mmdit": (SD3Transformer2DModel, SD3, SD3_TABLES),
        "flux": (FluxTransformer2DModel, FLUX, FLUX_TABLES),
    }[kind]
    model = tiny(cls, config)
    native(model, kind, tables, tmp_path)
    found = located(open_index(tmp_path / "model.safetensors"), kind, tables)
    good = config_of(found, json_of(model))
    with pytest.raises(ParameterError, match=message):
        _core.parameters(kind, good | change)
