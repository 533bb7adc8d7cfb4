"""`convert` writes diffusion transformers under the names that other engines read: parameters that
are apart in one dialect are joined in the other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import save_file

import sdengine
from sdengine import _core, conversion
from sdengine.families import SD1
from sdengine.formats import open_index
from sdengine.keys import flux, mmdit
from sdengine.loading.bind import bind
from sdengine.loading.locate import Located
from sdengine.loading.plan import ComponentPlan, ModelPlan, plan_model
from tests.models import tiny_sd1_folder
from tests.parity.conftest import relative_error
from tests.parity.dit import component, config_of, json_of, located, network_of, tiny
from tests.parity.test_dit_networks import WIDE_FLUX, WIDE_SD3, flux_inputs, sd3_inputs
from tests.renaming_dit import flux_to_bfl, sd3_to_reference

CASES: dict[str, Any] = {
    "mmdit": (SD3Transformer2DModel, WIDE_SD3, sd3_inputs, sd3_to_reference),
    "flux": (FluxTransformer2DModel, WIDE_FLUX, flux_inputs, flux_to_bfl),
}
# The first is what is written.
TABLES = {"mmdit": (mmdit.DIFFUSERS, mmdit.REFERENCE), "flux": (flux.DIFFUSERS, flux.BFL)}


def plan_of(template: ModelPlan, found: Located, config: dict[str, Any]) -> ModelPlan:
    """A plan of a model that has this component only."""
    kind = found.component.kind
    bindings, _ = bind(found, _core.parameters(kind, config))
    path = found.index.path
    part = ComponentPlan("transformer", kind, config, bindings, path, found.table.name)
    return replace(
        template,
        family=replace(SD1, denoiser="transformer", components=(found.component,), tokenizers={}),
        components={"transformer": part},
        tokenizers={},
    )


@pytest.mark.parametrize("weight_type", ["f32", "q8_0", "q4_k"])
@pytest.mark.parametrize("kind", CASES)
def test_parts_are_joined(
    kind: str, weight_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, config, inputs, rename = CASES[kind]
    model = tiny(cls, config)
    source, target = tmp_path / "model.safetensors", tmp_path / "model.gguf"
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, source)
    found = located(open_index(source), kind, TABLES[kind])
    hyper = config_of(found, json_of(model))
    plan = plan_of(plan_model(tiny_sd1_folder(tmp_path / "sd1")), found, hyper)
    monkeypatch.setattr(conversion, "plan_model", lambda *_, **__: plan)
    done = sdengine.convert(source, target, weight_type=weight_type)

    written = open_index(target)
    expected = {n: tuple(t.shape) for n, t in rename(model.state_dict()).items()}
    if kind == "mmdit":
        expected["pos_embed"] = expected["pos_embed"][1:]
    assert {name: entry.shape for name, entry in written.tensors.items()} == expected
    assert done.types.keys() == expected.keys()

    given = inputs(config, (1, 6, 4))
    again = located(written, kind, (component(kind, TABLES[kind]).tables[-1],))
    exact = network_of(found, hyper)[0].run(given)["prediction"]
    result = network_of(again, hyper)[0].run(given)["prediction"]
    if weight_type == "f32":
        assert np.array_equal(result, exact)
    else:
        assert 0 < relative_error(result, exact) < {"q8_0": 2e-2, "q4_k": 0.2}[weight_type]


def test_joined_parameters_share_the_better_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, config, _, _ = CASES["flux"]
    model = tiny(cls, config)
    source, target = tmp_path / "model.safetensors", tmp_path / "model.gguf"
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, source)
    found = located(open_index(source), "flux", TABLES["flux"])
    plan = plan_of(
        plan_model(tiny_sd1_folder(tmp_path / "sd1")), found, config_of(found, json_of(model))
    )
    monkeypatch.setattr(conversion, "plan_model", lambda *_, **__: plan)
    events: list[conversion.ConvertEvent] = []
    sdengine.convert(
        source, target, weight_type="q4_0", rules=["*.to_v.*=q8_0"], callback=events.append
    )
    tensors = open_index(target).tensors
    assert tensors["double_blocks.0.img_attn.qkv.weight"].dtype == "q8_0"
    assert tensors["double_blocks.0.img_mlp.0.weight"].dtype == "q4_0"
    assert tensors["img_in.weight"].dtype == "f16"
    assert events[-1].index == events[-1].count == len(plan.components["transformer"].bindings)
    assert events[-1].bytes_done == events[-1].bytes_total
