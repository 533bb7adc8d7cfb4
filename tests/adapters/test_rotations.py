"""OFT and BOFT against their closed form in torch and against PEFT, on the parameters of a tiny SD1 model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from sdengine.errors import WeightsError
from tests.parity.conftest import relative_error
from tests.unet_models import build_unet, tiny_folder

from .files import State, randn, write
from .test_kinds import CONTEXT, CONV, LATENTS, LINEAR, check, name_of, predicted, weight_of

WIDE = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"  # [64, 256]


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return build_unet("sd1", 3)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> sdengine.Pipeline:
    return sdengine.load(tiny_folder(tmp_path_factory.mktemp("sd1") / "model", "sd1", seed=3))


def cayley(blocks: torch.Tensor, limit: float = 0.0) -> torch.Tensor:
    """(I + Q) (I - Q)^-1 of blocks whose common length is limited."""
    q = blocks - blocks.transpose(-1, -2)
    if limit and q.norm() > limit:
        q = q * limit / q.norm()
    one = torch.eye(q.shape[-1])
    return (one + q) @ torch.linalg.inv(one - q)


@pytest.mark.parametrize("alpha", [None, 1.0, 0.01])
@pytest.mark.parametrize("module", [LINEAR, CONV])
def test_oft_of_kohya_and_lycoris(
    module: str,
    alpha: float | None,
    pipe: sdengine.Pipeline,
    unet: torch.nn.Module,
    tmp_path: Path,
) -> None:
    weight = weight_of(unet, module)
    blocks = randn((4, 16, 16), 1, 0.3)
    state: State = {f"{name_of(module)}.oft_blocks": blocks}
    if alpha is not None:
        state[f"{name_of(module)}.alpha"] = torch.tensor(alpha)
    r = cayley(blocks, (alpha or 0.0) * len(weight))
    rows = weight.reshape(4, 16, -1)
    turned = torch.einsum("knm,knp->kmp", r, rows).reshape(weight.shape)
    check(pipe, unet, tmp_path / "a.safetensors", state, {f"{module}.weight": lambda w: turned - w})


def test_oft_with_lengths(pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path) -> None:
    weight = weight_of(unet, LINEAR)
    blocks, lengths = randn((8, 8, 8), 1, 0.3), 1 + randn((64, 1), 2, 0.3)
    state: State = {
        f"{name_of(LINEAR)}.oft_blocks": blocks,
        f"{name_of(LINEAR)}.rescale": lengths,
        f"{name_of(LINEAR)}.alpha": torch.tensor(0.0),
    }
    turned = torch.einsum("knm,knp->kmp", cayley(blocks), weight.reshape(8, 8, -1))
    turned = turned.reshape(weight.shape) * lengths
    check(pipe, unet, tmp_path / "a.safetensors", state, {f"{LINEAR}.weight": lambda w: turned - w})


@pytest.mark.parametrize("module", [LINEAR, CONV])
def test_boft(module: str, pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path) -> None:
    weight = weight_of(unet, module)
    stages, size = 3, 8
    blocks = randn((stages, 64 // size, size, size), 1, 0.3)
    turned = weight.reshape(64, -1)
    for stage, r in enumerate(cayley(blocks)):
        k = 2**stage * size // 2
        beside = turned.reshape(-1, 2, k, turned.shape[1]).transpose(1, 2)
        rotated = torch.einsum("bij,bjp->bip", r, beside.reshape(-1, size, turned.shape[1]))
        turned = rotated.reshape(-1, k, 2, turned.shape[1]).transpose(1, 2).reshape(64, -1)
    state: State = {f"{name_of(module)}.oft_blocks": blocks}
    change = {f"{module}.weight": lambda w: turned.reshape(w.shape) - w}
    check(pipe, unet, tmp_path / "a.safetensors", state, change)


@pytest.mark.parametrize(
    "settings",
    [
        {"oft_block_size": 16},
        {"oft_block_size": 16, "block_share": True},
        {"oft_block_size": 32, "use_cayley_neumann": False},
        {"oft_block_size": 16, "num_cayley_neumann_terms": 3},
        {"oft_block_size": 16, "num_cayley_neumann_terms": 7},
    ],
    ids=str,
)
def test_oft_of_peft(settings: dict[str, Any], pipe: sdengine.Pipeline, tmp_path: Path) -> None:
    from peft import OFTConfig, get_peft_model

    reference = build_unet("sd1", 3)
    config = OFTConfig(r=0, target_modules=["to_q", "net.2"], **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed = get_peft_model(reference, config)
        for number, (name, parameter) in enumerate(changed.named_parameters()):
            if "oft_R" in name:
                parameter.data = randn(parameter.shape, number, 0.05)
        changed.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = changed(torch.tensor(LATENTS), 501, torch.tensor(CONTEXT)).sample.numpy()
    assert relative_error(predicted(pipe), expected) > 1e-2
    pipe.set_loras([tmp_path])
    assert relative_error(predicted(pipe), expected) <= 1e-4
    pipe.set_loras([])


def test_strength_goes_from_the_weight_to_the_rotated_one(
    pipe: sdengine.Pipeline, unet: torch.nn.Module, tmp_path: Path
) -> None:
    state = {f"{name_of(WIDE)}.oft_blocks": randn((4, 16, 16), 1, 0.3)}
    path = write(tmp_path / "a.safetensors", state)
    before = predicted(pipe)
    pipe.set_loras([(path, 0.0)])
    assert np.array_equal(predicted(pipe), before)
    pipe.set_loras([])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"oft_blocks": (4, 15, 15)}, "no rotations of 64 rows"),
        ({"oft_blocks": (4, 16)}, "no rotations of 64 rows"),
        ({"oft_blocks": (5, 8, 8, 8)}, "no butterfly"),
        ({"oft_blocks": (4, 16, 16), "rescale": (63,)}, "'rescale' is"),
        ({"rescale": (64,)}, "no 'blocks'"),
        ({"oft_R.weight": (4, 119)}, "no rotations of 64 columns"),
        ({"oft_R.weight": (3, 120)}, "no rotations of 64 columns"),
    ],
)
def test_what_does_not_fit(
    state: dict[str, tuple[int, ...]], message: str, pipe: sdengine.Pipeline, tmp_path: Path
) -> None:
    tensors = {f"{name_of(LINEAR)}.{part}": torch.ones(shape) for part, shape in state.items()}
    with pytest.raises(WeightsError, match=message):
        pipe.set_loras([write(tmp_path / "a.safetensors", tensors)])
