"""Full-size SD3 and FLUX.1 denoisers in every published naming: every tensor maps, none is left,
none is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)

from sdengine import _core
from sdengine.errors import UnsupportedModelError, WeightsError
from sdengine.keys import KeyTable, NameMap, flux, mmdit
from sdengine.loading.bind import bind
from sdengine.loading.locate import Located
from sdengine.loading.networks import NETWORKS
from tests.inventories import index_of, with_prefix
from tests.parity.dit import SD35, config_of, located, tiny
from tests.renaming_dit import State, flux_to_bfl, sd3_to_reference

# Configs of the published diffusers folders.
SD3M: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
SD35M = SD3M | {
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
SD35L = SD3M | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
DEV: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
SCHNELL = DEV | {"guidance_embeds": False}
FILL = DEV | {"in_channels": 384, "out_channels": 64}
CANNY = DEV | {"in_channels": 128, "out_channels": 64}
MINI = DEV | {"num_layers": 5, "num_single_layers": 10}

MODELS = {
    "SD3-Medium": ("mmdit", SD3M),
    "SD3.5-Medium": ("mmdit", SD35M),
    "SD3.5-Large": ("mmdit", SD35L),
    "FLUX.1-dev": ("flux", DEV),
    "FLUX.1-schnell": ("flux", SCHNELL),
    "FLUX.1-Fill": ("flux", FILL),
    "FLUX.1-Canny": ("flux", CANNY),
    "FLUX-mini": ("flux", MINI),
}
CLASSES = {"mmdit": SD3Transformer2DModel, "flux": FluxTransformer2DModel}
TABLES = {"mmdit": (mmdit.REFERENCE, mmdit.DIFFUSERS), "flux": (flux.BFL, flux.DIFFUSERS)}
RENAME = {"mmdit": sd3_to_reference, "flux": flux_to_bfl}


@cache
def full_size(model: str) -> State:
    """The parameters of a full-size model (diffusers names)."""
    kind, config = MODELS[model]
    with torch.device("meta"):
        return dict(CLASSES[kind](**config).state_dict())


def layouts(model: str) -> dict[str, tuple[KeyTable, State]]:
    """The layouts in which the model is published, and the table that should be found."""
    kind = MODELS[model][0]
    reference, diffusers = TABLES[kind]
    state = full_size(model)
    renamed = RENAME[kind](state)
    found = {
        "diffusers": (diffusers, state),
        "reference": (reference, renamed),
        "all in one": (reference, with_prefix("model.diffusion_model.", renamed)),
    }
    if kind == "flux":
        found["norms called weight"] = (reference, flux_to_bfl(state, norm="weight"))
    else:  # city96's GGUFs hold the table without its first axis
        table = renamed["pos_embed"]
        found["GGUF"] = (reference, renamed | {"pos_embed": table.reshape(table.shape[1:])})
    return found


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_maps(model: str) -> None:
    kind = MODELS[model][0]
    expected = None
    for layout, (table, state) in layouts(model).items():
        found = located(index_of(state), kind, TABLES[kind])
        assert found.table is table, layout
        config = config_of(found)
        expected = expected or config
        assert config == expected, layout
        bindings, left = bind(found, _core.parameters(kind, config))
        assert left == (), layout
        # Every element of the file is some parameter's.
        elements = sum(tensor.numel() for tensor in state.values())
        assert sum(binding.entry.elements for binding in bindings) == elements, layout


def test_figures_are_read_off_the_tensors() -> None:
    def config(model: str) -> dict[str, Any]:
        kind = MODELS[model][0]
        return config_of(located(index_of(full_size(model)), kind, TABLES[kind]))

    medium, large = config("SD3.5-Medium"), config("SD3.5-Large")
    assert (medium["layers"], medium["width"], medium["head_dim"]) == (24, 1536, 64)
    assert (medium["position_side"], medium["dual_attention_layers"]) == (384, list(range(13)))
    assert (large["layers"], large["width"], large["qk_norm"]) == (38, 2432, True)
    assert config("SD3-Medium")["qk_norm"] is False
    dev, fill, mini = config("FLUX.1-dev"), config("FLUX.1-Fill"), config("FLUX-mini")
    assert (dev["layers"], dev["single_layers"], dev["width"]) == (19, 38, 3072)
    assert (dev["rope_axes"], dev["guidance"], dev["in_channels"]) == ([16, 56, 56], True, 16)
    assert (fill["in_channels"], fill["out_channels"]) == (96, 16)
    assert (mini["layers"], mini["single_layers"]) == (5, 10)
    assert config("FLUX.1-schnell")["guidance"] is False


@pytest.mark.parametrize("model", MODELS)
def test_published_configs_agree_with_the_tensors(model: str) -> None:
    kind, json = MODELS[model]
    found = located(index_of(full_size(model)), kind, TABLES[kind])
    as_json = {key: list(v) if isinstance(v, tuple) else v for key, v in json.items()}
    assert config_of(found, as_json) == config_of(found)
    with pytest.raises(WeightsError, match="num_layers = 7, the tensors show"):
        config_of(found, as_json | {"num_layers": 7})


# ------------------------------ the tests' renaming against diffusers' importers
def same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_sd3_names_are_those_that_diffusers_imports() -> None:
    state = tiny(SD3Transformer2DModel, SD35).state_dict()
    same(convert_sd3_transformer_checkpoint_to_diffusers(sd3_to_reference(state)), state)


def test_flux_names_are_those_that_diffusers_imports() -> None:
    # The importer knows the full width only; one column of every matrix is enough for it.
    with torch.device("meta"):
        model = FluxTransformer2DModel(**DEV | {"num_layers": 2, "num_single_layers": 2})
    torch.manual_seed(1)
    state = {
        n: torch.randn(t.shape[0], *(1,) * (t.ndim - 1)) for n, t in model.state_dict().items()
    }
    same(convert_flux_transformer_checkpoint_to_diffusers(flux_to_bfl(state)), state)


@pytest.mark.parametrize("model", ["SD3.5-Medium", "FLUX.1-dev"])
def test_tables_translate_both_ways(model: str) -> None:
    kind = MODELS[model][0]
    found = located(index_of(layouts(model)["reference"][1]), kind, TABLES[kind])
    config = config_of(found)
    names = NameMap.of_network(found.table, config)
    for name, source in found.sources.items():
        target = names.to_file(name)[0]
        assert (target.name, target.part) == (source.name, source.part)


# ------------------------------ what is refused
def spoiled(state: State, name: str, tensor: torch.Tensor | None) -> Located:
    changed = {n: t for n, t in state.items() if n != name}
    if tensor is not None:
        changed[name] = tensor
    return located(index_of(changed), "mmdit", TABLES["mmdit"])


def test_missing_and_misshaped_tensors_are_named() -> None:
    state = full_size("SD3.5-Medium")
    found = spoiled(state, "pos_embed.pos_embed", torch.empty(1, 1000, 1536, device="meta"))
    with pytest.raises(WeightsError, match="1000 positions; expected a square"):
        config_of(found)
    name = "transformer_blocks.3.attn.to_add_out.weight"
    found = spoiled(state, name, None)
    with pytest.raises(WeightsError, match=f"'{name}' .* is missing"):
        bind(found, _core.parameters("mmdit", config_of(found)))
    fused = flux_to_bfl(full_size("FLUX.1-dev"))
    fused["single_blocks.3.linear1.weight"] = torch.empty(21505, 3072, device="meta")
    whole = located(index_of(fused), "flux", TABLES["flux"])
    with pytest.raises(WeightsError, match=r"\[21505, 3072\]; expected \[21504, 3072\]"):
        bind(whole, _core.parameters("flux", config_of(whole)))


def test_other_networks_are_refused() -> None:
    found = located(index_of(full_size("SD3-Medium")), "mmdit", TABLES["mmdit"])
    with pytest.raises(UnsupportedModelError, match="qk_norm = 'layer_norm'"):
        config_of(found, {"qk_norm": "layer_norm"})
    network = NETWORKS["flux"]
    found = located(index_of(full_size("FLUX.1-dev")), "flux", TABLES["flux"])
    good = config_of(found)
    for axes in ([16, 56], [16, 55, 57], [16, 56, 58], "wide"):
        with pytest.raises(WeightsError, match="three even numbers whose sum is 128"):
            network.check({**good, "rope_axes": axes})
    with pytest.raises(WeightsError, match="patch_size = 4"):
        NETWORKS["mmdit"].check({"width": 1536, "head_dim": 64, "layers": 24, "patch_size": 4})
