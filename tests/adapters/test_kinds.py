"""Every kind of change against its closed form in torch, on the parameters of a tiny SD1 model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import sdengine
from sdengine import _core
from tests.parity.conftest import relative_error
from tests.unet_models import build_unet, tiny_folder

from .files import ATTENTION, State, lora, modules_of, randn, write

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # [64, 64]
WIDE = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"  # [64, 256]
CONV = "down_blocks.0.resnets.0.conv1"  # [64, 64, 3, 3]
ONE = "down_blocks.1.resnets.0.conv_shortcut"  # [128, 64, 1, 1]
Formula = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("sd1") / "model", "sd1", seed=3)


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return build_unet("sd1", 3)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> sdengine.Pipeline:
    return sdengine.load(folder)


RNG = np.random.default_rng(5)
LATENTS = RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)
CONTEXT = RNG.standard_normal((1, 77, 64)).astype(np.float32)


def predicted(pipe: sdengine.Pipeline) -> np.ndarray:
    return pipe.predict(LATENTS, 501, sdengine.Conditioning(CONTEXT))


def expected(unet: torch.nn.Module, changes: dict[str, torch.Tensor]) -> np.ndarray:
    """The reference's output with these parameters in place of its own."""
    with torch.no_grad():
        output = torch.func.functional_call(
            unet, changes, (torch.tensor(LATENTS), 501, torch.tensor(CONTEXT))
        )
    return output.sample.numpy()


def check(
    pipe: sdengine.Pipeline,
    unet: torch.nn.Module,
    path: Path,
    state: State,
    changes: dict[str, Formula],
    scale: float = 0.7,
) -> None:
    """The model with the file gives what the reference gives with W + scale * change(W)."""
    parameters = dict(unet.named_parameters())
    changed = {}
    for name, change in changes.items():
        weight = parameters[name].detach()
        changed[name] = weight + scale * change(weight).reshape(weight.shape)
    reference = expected(unet, changed)
    assert relative_error(expected(unet, {}), reference) > 1e-3, (
        "the change is too small to be seen"
    )
    pipe.set_loras([(write(path, state), scale)])
    assert relative_error(predicted(pipe), reference) <= 1e-4
    pipe.set_loras([])


def name_of(module: str) -> str:
    return "lora_unet_" + module.replace(".", "_")


def weight_of(unet: torch.nn.Module, module: str) -> torch.Tensor:
    return unet.get_parameter(f"{module}.weight").detach()


def test_tucker_core_of_a_convolution(
    pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path
) -> None:
    out, inner, rank = 64, 64, 3
    up, mid, down = (
        randn((out, rank, 1, 1), 1),
        randn((rank, rank, 3, 3), 2, 0.2),
        randn((rank, inner, 1, 1), 3, 0.2),
    )
    key = name_of(CONV)
    state = {
        f"{key}.lora_up.weight": up,
        f"{key}.lora_mid.weight": mid,
        f"{key}.lora_down.weight": down,
        f"{key}.alpha": torch.tensor(1.5),
    }
    delta = torch.einsum("or,rqhw,qi->oihw", up[..., 0, 0], mid, down[..., 0, 0]) * 0.5
    check(pipe, unet, tmp_path / "a.safetensors", state, {f"{CONV}.weight": lambda w: delta})


@pytest.mark.parametrize("module", [LINEAR, CONV, ONE])
def test_loha(module: str, pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path) -> None:
    shape = weight_of(unet, module).shape
    out, rest, rank = shape[0], shape[1:].numel(), 3
    a1, a2 = randn((out, rank), 1), randn((out, rank), 2)
    b1, b2 = randn((rank, rest), 3, 0.2), randn((rank, rest), 4, 0.2)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    state = {f"{name_of(module)}.{part}": value for part, value in parts.items()}
    state[f"{name_of(module)}.alpha"] = torch.tensor(2.0)
    delta = (a1 @ b1) * (a2 @ b2) * (2 / rank)
    check(pipe, unet, tmp_path / "a.safetensors", state, {f"{module}.weight": lambda w: delta})


def test_loha_with_cores(pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path) -> None:
    rank = 3
    t1, t2 = randn((rank, rank, 3, 3), 1, 0.4), randn((rank, rank, 3, 3), 2, 0.4)
    a1, a2 = randn((rank, 64), 3, 0.5), randn((rank, 64), 4, 0.5)
    b1, b2 = randn((rank, 64), 5, 0.5), randn((rank, 64), 6, 0.5)
    parts = {
        **{"hada_t1": t1, "hada_t2": t2, "hada_w1_a": a1, "hada_w2_a": a2},
        **{"hada_w1_b": b1, "hada_w2_b": b2},
    }
    state = {f"{name_of(CONV)}.{part}": value for part, value in parts.items()}
    rebuild = "ijhw,ip,jr->prhw"
    delta = torch.einsum(rebuild, t1, a1, b1) * torch.einsum(rebuild, t2, a2, b2)
    check(pipe, unet, tmp_path / "a.safetensors", state, {f"{CONV}.weight": lambda w: delta})


@pytest.mark.parametrize("factored", ["none", "first", "second", "both"])
@pytest.mark.parametrize("module", [LINEAR, CONV])
def test_lokr(
    factored: str, module: str, pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path
) -> None:
    shape = weight_of(unet, module).shape
    pixels = shape[2:]
    first = randn((4, 8), 1)
    second = randn((shape[0] // 4, shape[1] // 8, *pixels), 2, 0.1)
    parts: State = {}
    alpha_over_rank = 1.0
    if factored in ("first", "both"):
        a, b = randn((4, 2), 3), randn((2, 8), 4)
        parts |= {"lokr_w1_a": a, "lokr_w1_b": b}
        first, alpha_over_rank = a @ b, 1.5 / 2
    else:
        parts["lokr_w1"] = first
    if factored in ("second", "both"):
        a = randn((shape[0] // 4, 3), 5, 0.3)
        b = randn((3, second[0].numel()), 6, 0.3)
        parts |= {"lokr_w2_a": a, "lokr_w2_b": b}
        second, alpha_over_rank = (a @ b).reshape(second.shape), 1.5 / 3
    else:
        parts["lokr_w2"] = second
    state = {f"{name_of(module)}.{part}": value for part, value in parts.items()}
    state[f"{name_of(module)}.alpha"] = torch.tensor(1.5)
    left = first.reshape(4, 8, *([1] * len(pixels)))
    delta = torch.kron(left, second) * alpha_over_rank
    check(pipe, unet, tmp_path / "a.safetensors", state, {f"{module}.weight": lambda w: delta})


def test_lokr_with_a_core(pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path) -> None:
    w1, t2 = randn((4, 8), 1), randn((3, 3, 3, 3), 2, 0.4)
    a, b = randn((3, 16), 3, 0.5), randn((3, 8), 4, 0.5)
    parts = {"lokr_w1": w1, "lokr_t2": t2, "lokr_w2_a": a, "lokr_w2_b": b}
    state = {f"{name_of(CONV)}.{part}": value for part, value in parts.items()}
    second = torch.einsum("ijhw,ip,jr->prhw", t2, a, b)
    delta = torch.kron(w1[:, :, None, None], second.contiguous())
    check(pipe, unet, tmp_path / "a.safetensors", state, {f"{CONV}.weight": lambda w: delta})


@pytest.mark.parametrize("old", [False, True])
def test_glora(old: bool, pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path) -> None:
    a1, a2 = randn((256, 3), 1, 0.1), randn((3, 256), 2, 0.3)
    b1, b2 = randn((64, 3), 3, 0.1), randn((3, 256), 4, 0.3)
    named = (
        {"a1": a2, "a2": a1, "b1": b2, "b2": b1}
        if old
        else {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
    )
    state = {f"{name_of(WIDE)}.{part}.weight": value for part, value in named.items()}
    state[f"{name_of(WIDE)}.alpha"] = torch.tensor(1.5)

    def change(weight: torch.Tensor) -> torch.Tensor:
        return (weight @ a1 @ a2 + b1 @ b2) * 0.5

    check(pipe, unet, tmp_path / "a.safetensors", state, {f"{WIDE}.weight": change})


@pytest.mark.parametrize("axis", ["rows", "columns", "peft"])
@pytest.mark.parametrize("module", [LINEAR, CONV, WIDE])
def test_dora(
    axis: str, module: str, pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path
) -> None:
    weight = weight_of(unet, module)
    ones = [1] * (weight.ndim - 2)
    rows = axis != "columns"
    count = weight.shape[0] if rows else weight.shape[1]
    magnitude = 0.5 + randn((count,), 9).abs()
    magnitude = magnitude.reshape((count, 1, *ones) if rows else (1, count, *ones))
    # PEFT keeps one length per row too, along the second axis for convolutions.
    kept = magnitude.transpose(0, 1) if ones else magnitude.flatten()
    down, up = randn((2, *weight.shape[1:]), 1, 0.1), randn((weight.shape[0], 2, *ones), 2, 0.3)
    key = name_of(module)
    state = {
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
    }
    if axis == "peft":
        state[f"{key}.lora_magnitude_vector.weight"] = kept
    else:
        state[f"{key}.dora_scale"] = magnitude

    def change(w: torch.Tensor) -> torch.Tensor:
        moved = w + (up.flatten(1) @ down.flatten(1)).reshape(w.shape)
        over = [d for d in range(w.ndim) if d != (0 if rows else 1)]
        return magnitude * moved / torch.linalg.vector_norm(moved, dim=over, keepdim=True) - w

    check(pipe, unet, tmp_path / "a.safetensors", state, {f"{module}.weight": change})


def test_differences_biases_norms_and_replacements(
    pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path
) -> None:
    norm, values = "down_blocks.0.resnets.0.norm1", {}
    parameters = dict(unet.named_parameters())
    for number, name in enumerate(
        (f"{CONV}.weight", f"{CONV}.bias", f"{norm}.weight", f"{norm}.bias", f"{LINEAR}.weight")
    ):
        values[name] = randn(parameters[name].shape, number, 0.2)
    state = {
        f"{name_of(CONV)}.diff": values[f"{CONV}.weight"],
        f"{name_of(CONV)}.diff_b": values[f"{CONV}.bias"],
        f"{name_of(norm)}.w_norm": values[f"{norm}.weight"],
        f"{name_of(norm)}.b_norm": values[f"{norm}.bias"],
        f"{name_of(LINEAR)}.set_weight": values[f"{LINEAR}.weight"],
    }
    changes: dict[str, Formula] = {n: (lambda w, v=v: v) for n, v in values.items()}
    changes[f"{LINEAR}.weight"] = lambda w: values[f"{LINEAR}.weight"] - w
    check(pipe, unet, tmp_path / "a.safetensors", state, changes)


@pytest.mark.parametrize("rank", [4, 60], ids=["beside the weight", "merged"])
@pytest.mark.parametrize("weight_type", ["q4_0", "q8_0"])
def test_on_quantized_weights(
    rank: int, weight_type: str, folder: Path, unet: torch.nn.Module, tmp_path: Path
) -> None:
    state = lora(unet, (*ATTENTION, "conv1"), name_of, rank=rank, alpha=rank / 2)
    path = write(tmp_path / "style.safetensors", state)
    pipe = sdengine.load(folder, weight_type=weight_type)
    base = dict(build_unet("sd1", 3).state_dict())
    # What the file's weights have become, without an adapter.
    converted = tmp_path / "model.gguf"
    sdengine.convert(folder, converted, weight_type)
    quantized = sdengine.load(converted)
    assert relative_error(predicted(pipe), predicted(quantized)) <= 1e-5
    for name, value in stored(quantized).items():
        base[name] = value
    for name, module in modules_of(unet, (*ATTENTION, "conv1")).items():
        key = name_of(name)
        up, down = state[f"{key}.lora_up.weight"], state[f"{key}.lora_down.weight"]
        delta = 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
        base[f"{name}.weight"] = base[f"{name}.weight"] + 0.8 * delta
    pipe.set_loras([(path, 0.8)])
    assert relative_error(predicted(pipe), expected(unet, base)) <= 1e-3


def stored(pipe: sdengine.Pipeline) -> State:
    """The denoiser's parameters as float32."""
    values = {}
    for b in pipe.model.components["unet"].bindings:
        entry = b.entry
        raw = np.fromfile(entry.path, np.uint8, entry.nbytes, offset=entry.offset)
        flat = _core.kernels.dequantize(raw, entry.dtype, entry.elements)
        values[b.name] = torch.tensor(np.asarray(flat)).reshape(entry.shape)
    return values
