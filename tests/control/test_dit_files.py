"""Transformers' ControlNets of published sizes, on the meta device: every tensor maps, none is left."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from sdengine import _core
from sdengine.errors import WeightsError
from sdengine.families.control import CONTROL
from sdengine.keys import NameMap
from sdengine.loading.bind import bind
from sdengine.loading.locate import locate
from sdengine.loading.networks import NETWORKS
from tests.inventories import index_of, with_prefix
from tests.parity.dit import config_of

from .dit_models import State, to_stability, to_xlabs

_SD3: dict[str, Any] = {
    "sample_size": 128,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_LARGE: dict[str, Any] = {
    "num_layers": 19,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "joint_attention_dim": None,
    "caption_projection_dim": 2048,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": None,
    "pos_embed_type": None,
    "use_pos_embed": False,
    "force_zeros_for_pooled_projection": False,
}
_XLABS: dict[str, Any] = {
    "patch_size": 2,
    "num_layers": 2,
    "num_single_layers": 0,
    "guidance_embeds": True,
    "conditioning_embedding_channels": 16,
}
# Of the published diffusers folders, and what each must be told to be.
NETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SD3 InstantX": (
        {**_SD3, "num_layers": 6},
        {"layers": 6, "width": 1536, "context_width": 4096, "zero_pooled": True},
    ),
    "SD3.5 Large Stability AI": (
        _LARGE,
        {"layers": 19, "width": 2432, "context_width": 0, "zero_pooled": False, "patches": False},
    ),
    "FLUX InstantX Canny": (
        {"num_layers": 5, "num_single_layers": 10, "guidance_embeds": True},
        {"layers": 5, "single_layers": 10, "tasks": 0, "guidance": True},
    ),
    "FLUX Union-Pro": (
        {"num_layers": 5, "num_single_layers": 10, "guidance_embeds": True, "num_mode": 10},
        {"layers": 5, "single_layers": 10, "tasks": 10},
    ),
    "FLUX Union-Pro-2.0": (
        {"num_layers": 6, "num_single_layers": 0, "guidance_embeds": True},
        {"layers": 6, "single_layers": 0, "tasks": 0},
    ),
    "FLUX XLabs": (_XLABS, {"layers": 2, "hint_block_channels": [16] * 4, "guidance": True}),
}


@cache
def full_size(name: str) -> State:
    from diffusers import FluxControlNetModel, SD3ControlNetModel

    cls = SD3ControlNetModel if name.startswith("SD3") else FluxControlNetModel
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore", FutureWarning)
        return dict(cls(**NETS[name][0]).state_dict())


CASES: list[tuple[str, Callable[[State], State], str]] = [
    *((name, dict, "") for name in NETS),
    ("FLUX Union-Pro", lambda state: with_prefix("controlnet.", state), ""),
    ("SD3.5 Large Stability AI", lambda state: to_stability(state, 1), "Stability"),
    ("FLUX XLabs", to_xlabs, "XLabs"),
]


@pytest.mark.parametrize(("name", "rename", "table"), CASES)
def test_published_sizes(name: str, rename: Callable[[State], State], table: str) -> None:
    index = index_of(rename(full_size(name)))
    found = locate(index, CONTROL)
    assert found is not None
    kind = "mmdit_controlnet" if name.startswith("SD3") else "flux_controlnet"
    assert found.component.kind == kind
    assert found.table.name.startswith(table or "diffusers")
    json = {"guidance_embeds": False, "num_mode": None, **NETS[name][0]}
    config = NETWORKS[kind].refine(config_of(found), json)
    assert {key: config[key] for key in NETS[name][1]} == NETS[name][1]
    bindings, left = bind(found, _core.parameters(kind, config))
    assert left == ()
    assert sum(b.entry.elements for b in bindings) == sum(
        t.numel() for t in full_size(name).values()
    )
    # Writing: the table with its numbering from the config gives the same names.
    names = NameMap.of_network(found.table, config)
    canonical = full_size(name)
    written = {m.name for n in canonical for m in names.to_file(n)}
    assert written == set(found.entries)


def test_relatives_are_not_taken_for_them() -> None:
    """ControlNets of Qwen-Image and MistoLine's for FLUX.1 have other first layers."""
    state = full_size("FLUX InstantX Canny")
    qwen = {
        n.replace("x_embedder", "img_in") if n.startswith("x_") else n: t for n, t in state.items()
    }
    misto = {n.replace("blocks.0.weight", "blocks.0.linear.weight"): t for n, t in state.items()}
    for other in (qwen, misto):
        assert locate(index_of(other), CONTROL) is None


@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        ("mmdit_controlnet", "SD3 InstantX", {"num_layers": 12}, "num_layers"),
        ("mmdit_controlnet", "SD3 InstantX", {"pooled_projection_dim": 7}, "pooled"),
        ("flux_controlnet", "FLUX XLabs", {"num_single_layers": 3}, "num_single_layers"),
        ("flux_controlnet", "FLUX Union-Pro", {"num_mode": 7}, "num_mode"),
    ],
)
def test_a_config_that_contradicts_the_file(
    kind: str, name: str, change: dict[str, Any], message: str
) -> None:
    found = locate(index_of(full_size(name)), CONTROL)
    assert found is not None
    with pytest.raises(WeightsError, match=message):
        NETWORKS[kind].refine(config_of(found), {**NETS[name][0], **change})


def test_impossible_configs() -> None:
    for kind, name, change in (
        ("mmdit_controlnet", "SD3 InstantX", {"layers": 0}),
        ("mmdit_controlnet", "SD3 InstantX", {"patch_size": 3}),
        ("mmdit_controlnet", "SD3 InstantX", {"head_dim": 7}),
        ("flux_controlnet", "FLUX XLabs", {"in_channels": 0}),
        ("flux_controlnet", "FLUX XLabs", {"rope_axes": [1, 2]}),
    ):
        found = locate(index_of(full_size(name)), CONTROL)
        assert found is not None
        with pytest.raises(WeightsError, match=r"layers|blocks|patch|head_dim|channel|axes"):
            NETWORKS[kind].check({**config_of(found), **change})
