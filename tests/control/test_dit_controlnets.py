"""ControlNets of diffusion transformers against diffusers' classes, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.keys import dit_controlnet, flux, mmdit
from tests.parity import dit
from tests.parity.dit import noise, packed, position_ids

from .conftest import relative_error
from .dit_models import FLUX, LARGE, SD3, XLABS, build, to_stability, to_xlabs

LIMIT = 1e-4
HEIGHT, WIDTH, TOKENS = 8, 12, 5
SMALL_SD3 = {**SD3, **dit.SD3, "sample_size": 8}
SMALL_FLUX = {**FLUX, **dit.FLUX, "in_channels": 64}
TABLES = {
    "mmdit_controlnet": (dit_controlnet.STABILITY, dit_controlnet.MMDIT),
    "flux_controlnet": (dit_controlnet.XLABS, dit_controlnet.FLUX),
}


def sd3_inputs(config: dict[str, Any], count: int = 2) -> dict[str, np.ndarray]:
    channels, more = config["in_channels"], config.get("extra_conditioning_channels", 0)
    inputs = {
        "latents": noise(count, channels, HEIGHT, WIDTH, seed=1),
        "hint": noise(count, channels + more, HEIGHT, WIDTH, seed=2),
        "timesteps": np.linspace(900, 120, count, dtype=np.float32),
        "pooled": noise(count, config["pooled_projection_dim"], seed=3),
    }
    if config["joint_attention_dim"]:
        inputs["context"] = noise(count, TOKENS, config["joint_attention_dim"], seed=4)
    return inputs


def sd3_expected(net: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    given = {name: torch.tensor(array) for name, array in inputs.items()}
    with torch.no_grad():
        samples = net(
            given["latents"],
            given["hint"],
            encoder_hidden_states=given.get("context"),
            pooled_projections=given["pooled"],
            timestep=given["timesteps"],
        ).controlnet_block_samples
    return {f"control_{i}_of_{len(samples)}": s.numpy() for i, s in enumerate(samples)}


SD3_CASES: dict[str, dict[str, Any]] = {
    "InstantX": SMALL_SD3,
    "3.5 Medium": {**SMALL_SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "inpainting": {**SMALL_SD3, "extra_conditioning_channels": 1},
    "without positions": {**SMALL_SD3, "pos_embed_type": None},
    "one block": {**SMALL_SD3, "num_layers": 1},
}


@pytest.mark.parametrize("name", SD3_CASES)
def test_stable_diffusion_3(name: str, tmp_path: Path) -> None:
    config = SD3_CASES[name]
    net = build(config)
    network = dit.native(net, "mmdit_controlnet", TABLES["mmdit_controlnet"], tmp_path)
    inputs = sd3_inputs(config)
    found, expected = network.run(inputs), sd3_expected(net, inputs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert relative_error(found[key], value) <= LIMIT, key


@pytest.mark.parametrize("rename", [dict, to_stability])
def test_stable_diffusion_35_large(rename: Any, tmp_path: Path) -> None:
    """Without text, and with the first layer of the denoiser."""
    config = {**LARGE, **{k: SMALL_SD3[k] for k in ("in_channels", "pooled_projection_dim")}}
    net = build(config)
    state = rename(dict(net.state_dict()))
    from diffusers import SD3Transformer2DModel

    base = dit.tiny(
        SD3Transformer2DModel,
        {
            **dit.SD35,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "caption_projection_dim": 128,
        },
    )
    net.pos_embed = net._get_pos_embed_from_transformer(base)
    first = {n: t for n, t in base.state_dict().items() if n.startswith("pos_embed.")}
    path = tmp_path / "net.safetensors"
    save_file({n: t.contiguous() for n, t in {**state, **first}.items()}, path)
    found = dit.located(dit.open_index(path), "mmdit_controlnet", TABLES["mmdit_controlnet"])
    network, _store = dit.network_of(found, dit.config_of(found))
    inputs = sd3_inputs(config)
    got, expected = network.run(inputs), sd3_expected(net, inputs)
    assert len(expected) == 2
    for key, value in expected.items():
        assert relative_error(got[key], value) <= LIMIT, key


# ------------------------------ FLUX.1
def flux_inputs(config: dict[str, Any], count: int = 2) -> dict[str, np.ndarray]:
    channels = config["in_channels"] // 4
    read = channels + config.get("mask", 0)
    hint = (
        (count, 3, 8 * HEIGHT, 8 * WIDTH) if "conditioning_embedding_channels" in config else None
    )
    inputs = {
        "latents": noise(count, channels, HEIGHT, WIDTH, seed=1),
        "hint": noise(*(hint or (count, read, HEIGHT, WIDTH)), seed=2),
        "timesteps": np.linspace(900, 120, count, dtype=np.float32),
        "pooled": noise(count, config["pooled_projection_dim"], seed=3),
        "context": noise(count, TOKENS, config["joint_attention_dim"], seed=4),
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = np.linspace(1.5, 4, count, dtype=np.float32)
    if config.get("num_mode"):
        inputs["task"] = np.full((count, 1), 2, np.int32)
    return inputs


def flux_expected(net: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    given = {name: torch.tensor(array) for name, array in inputs.items()}
    pixels = net.input_hint_block is not None
    with torch.no_grad():
        made = net(
            packed(inputs["latents"]),
            given["hint"] if pixels else packed(inputs["hint"]),
            controlnet_mode=given["task"].long() if "task" in given else None,
            encoder_hidden_states=given["context"],
            pooled_projections=given["pooled"],
            timestep=given["timesteps"] / 1000,
            guidance=given.get("guidance"),
            img_ids=position_ids(HEIGHT, WIDTH),
            txt_ids=torch.zeros(TOKENS, 3),
        )
    double, single = made.controlnet_block_samples, made.controlnet_single_block_samples or ()
    order = "every" if pixels else "of"
    return {
        **{f"control_{i}_{order}_{len(double)}": s.numpy() for i, s in enumerate(double)},
        **{f"control_single_{i}_of_{len(single)}": s.numpy() for i, s in enumerate(single)},
    }


FLUX_CASES: dict[str, dict[str, Any]] = {
    "InstantX": SMALL_FLUX,
    "union": {**SMALL_FLUX, "num_mode": 5, "guidance_embeds": False},
    "inpainting": {**SMALL_FLUX, "mask": 1},
    "no single blocks": {**SMALL_FLUX, "num_single_layers": 0},
    "XLabs": XLABS,
}


@pytest.mark.parametrize("name", FLUX_CASES)
def test_flux(name: str, tmp_path: Path) -> None:
    config = FLUX_CASES[name]
    net = build(config)
    network = dit.native(net, "flux_controlnet", TABLES["flux_controlnet"], tmp_path)
    inputs = flux_inputs(config)
    found, expected = network.run(inputs), flux_expected(net, inputs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert relative_error(found[key], value) <= LIMIT, key


def test_xlabs_names_and_pictures_that_are_read_once(tmp_path: Path) -> None:
    net = build(XLABS)
    tables = TABLES["flux_controlnet"]
    (tmp_path / "own").mkdir()
    original = dit.native(net, "flux_controlnet", tables, tmp_path / "own", rename=to_xlabs)
    expected = dit.native(net, "flux_controlnet", tables, tmp_path).run(flux_inputs(XLABS))
    inputs = flux_inputs(XLABS)
    features = original.run({"hint": inputs.pop("hint")}, {"hint_only": 1})
    assert list(features) == ["hint_features"]
    found = original.run({**inputs, **features})
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


# ------------------------------ what the denoisers make of the residuals
def residuals(prefix: str, count: int, width: int, order: str = "of") -> dict[str, np.ndarray]:
    tokens = HEIGHT * WIDTH // 4
    return {
        f"{prefix}{i}_{order}_{count}": noise(2, tokens, width, seed=20 + i) for i in range(count)
    }


def tensors(arrays: dict[str, np.ndarray]) -> list[torch.Tensor]:
    return [torch.tensor(array) for array in arrays.values()]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_sd3_adds_residuals(count: int, tmp_path: Path) -> None:
    from diffusers import SD3Transformer2DModel

    config = {**dit.SD35, "num_layers": 5}
    model = dit.tiny(SD3Transformer2DModel, config)
    network = dit.native(model, "mmdit", (mmdit.DIFFUSERS,), tmp_path)
    inputs = sd3_inputs(config)
    del inputs["hint"]
    control = residuals("control_", count, 64)
    given = {name: torch.tensor(array) for name, array in inputs.items()}
    with torch.no_grad():
        expected = model(
            given["latents"],
            given["context"],
            given["pooled"],
            given["timesteps"],
            block_controlnet_hidden_states=tensors(control),
        ).sample.numpy()
        skipping = model(
            given["latents"],
            given["context"],
            given["pooled"],
            given["timesteps"],
            block_controlnet_hidden_states=tensors(control),
            skip_layers=[1],
        ).sample.numpy()
    found = network.run({**inputs, **control})["prediction"]
    assert relative_error(found, expected) <= LIMIT
    assert relative_error(found, network.run(inputs)["prediction"]) > 0.01
    # A block that guidance leaves out still passes its residual on.
    found = network.run({**inputs, **control}, {"skip_layers": 0b10})["prediction"]
    assert relative_error(found, skipping) <= LIMIT


@pytest.mark.parametrize(
    ("double", "single", "order"), [(2, 1, "of"), (3, 2, "of"), (5, 0, "of"), (2, 0, "every")]
)
def test_flux_adds_residuals(double: int, single: int, order: str, tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    config = {**dit.FLUX, "num_layers": 5, "num_single_layers": 3}
    model = dit.tiny(FluxTransformer2DModel, config)
    network = dit.native(model, "flux", (flux.DIFFUSERS,), tmp_path)
    inputs = flux_inputs(config)
    del inputs["hint"]
    ours = residuals("control_", double, 64, order)
    ours_single = residuals("control_single_", single, 64)
    given = {name: torch.tensor(array) for name, array in inputs.items()}
    with torch.no_grad():
        tokens = model(
            packed(inputs["latents"]),
            given["context"],
            given["pooled"],
            given["timesteps"] / 1000,
            position_ids(HEIGHT, WIDTH),
            torch.zeros(TOKENS, 3),
            given["guidance"],
            controlnet_block_samples=tensors(ours),
            controlnet_single_block_samples=tensors(ours_single) or None,
            controlnet_blocks_repeat=order == "every",
        ).sample
    found = network.run({**inputs, **ours, **ours_single})["prediction"]
    assert relative_error(found, dit.unpacked(tokens, HEIGHT, WIDTH)) <= LIMIT
    assert relative_error(found, network.run(inputs)["prediction"]) > 0.01
    # Of two networks of unlike depth each is spread by itself; reference pictures get nothing.
    more = {**inputs, **ours, "control_0_of_1": noise(2, HEIGHT * WIDTH // 4, 64, seed=40)}
    assert relative_error(network.run(more)["prediction"], found) > 0.01
    reference = {"reference": noise(2, config["in_channels"] // 4, 4, 8, seed=5)}
    with_reference = network.run({**inputs, **ours, **ours_single, **reference})["prediction"]
    assert relative_error(with_reference, network.run({**inputs, **reference})["prediction"]) > 0.01


def test_shapes_are_checked(tmp_path: Path) -> None:
    network = dit.native(build(SMALL_SD3), "mmdit_controlnet", TABLES["mmdit_controlnet"], tmp_path)
    inputs = sd3_inputs(SMALL_SD3)
    with pytest.raises(ParameterError, match="'hint'"):
        network.run({**inputs, "hint": inputs["hint"][:, :, :4]})
    with pytest.raises(ParameterError, match="multiples of 2"):
        network.run({**inputs, "latents": inputs["latents"][:, :, :7]})
    with pytest.raises(ParameterError, match="'context'"):
        network.run({name: array for name, array in inputs.items() if name != "context"})
    config = {**SMALL_FLUX, "num_mode": 2}
    union = dit.native(build(config), "flux_controlnet", TABLES["flux_controlnet"], tmp_path)
    inputs = flux_inputs(config)
    with pytest.raises(ParameterError, match="0 to 1"):
        union.run(inputs)
    with pytest.raises(ParameterError, match="'task'"):
        union.run({name: array for name, array in inputs.items() if name != "task"})
    with pytest.raises(ParameterError, match="no pixels"):
        union.run({"hint": noise(1, 3, 64, 64)}, {"hint_only": 1})


def test_residuals_of_another_family_are_refused(tmp_path: Path) -> None:
    from diffusers import SD3Transformer2DModel

    model = dit.tiny(SD3Transformer2DModel, dit.SD3)
    network = dit.native(model, "mmdit", (mmdit.DIFFUSERS,), tmp_path)
    inputs = sd3_inputs(dit.SD3)
    del inputs["hint"]
    with pytest.raises(ParameterError, match="another family"):
        network.run({**inputs, "control_0_of_2": noise(2, 24, 32)})
    for name in ("control_mid", "control_0", "control_2_of_2", "control_0_of_0"):
        with pytest.raises(ParameterError, match=f"no input '{name}'"):
            network.run({**inputs, name: noise(2, 24, 64)})


def test_without_its_base_model(tmp_path: Path) -> None:
    net = build(LARGE)
    path = tmp_path / "net.safetensors"
    save_file(dict(net.state_dict()), path)
    found = dit.located(dit.open_index(path), "mmdit_controlnet", TABLES["mmdit_controlnet"])
    config = dit.config_of(found, dit.json_of(net))
    assert not any(
        name.startswith("pos_embed.") for name, _ in _core.parameters("mmdit_controlnet", config)
    )
    network, _store = dit.network_of(found, config)
    with pytest.raises(ParameterError, match="base model's first layer"):
        network.run(sd3_inputs(LARGE))
