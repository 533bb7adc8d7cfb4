"""Values beyond f16's largest number, 65504, inside T5, FLUX.1 and SD3.

Everything between the layers is float32, whatever type the weights are stored in. In each case the same weights in half
precision give no number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from sdengine.formats import open_index
from sdengine.keys import flux, mmdit
from tests import text_models
from tests.parity.conftest import relative_error
from tests.parity.dit import (
    config_of,
    json_of,
    located,
    network_of,
    rounded,
    tiny,
    write_gguf,
)
from tests.parity.test_dit_networks import (
    WIDE_FLUX,
    WIDE_SD3,
    flux_inputs,
    flux_reference,
    sd3_inputs,
    sd3_reference,
)

HALF_LIMIT = 65504.0
CLOSE = 1e-5
DENOISERS: dict[str, Any] = {
    "mmdit": (
        SD3Transformer2DModel,
        WIDE_SD3,
        sd3_inputs,
        sd3_reference,
        (mmdit.REFERENCE, mmdit.DIFFUSERS),
    ),
    "flux": (
        FluxTransformer2DModel,
        WIDE_FLUX,
        flux_inputs,
        flux_reference,
        (flux.BFL, flux.DIFFUSERS),
    ),
}


def enlarge(model: torch.nn.Module, names: tuple[str, ...], factor: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(names):
                parameter.mul_(factor)
        assert max(p.abs().max().item() for p in model.parameters()) < HALF_LIMIT


def largest(model: torch.nn.Module, run: Callable[[], Any]) -> float:
    """The largest value that a layer of the model puts out in a run."""
    seen: list[float] = []
    hooks = [
        module.register_forward_hook(
            lambda _, __, out: (
                seen.append(float(out.abs().max())) if isinstance(out, torch.Tensor) else None
            )
        )
        for module in model.modules()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return max(seen)


@pytest.mark.parametrize("weight_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("kind", DENOISERS)
def test_denoisers(kind: str, weight_type: str, tmp_path: Path) -> None:
    cls, config, inputs, reference, tables = DENOISERS[kind]
    model = tiny(cls, config)
    # What leaves the feed-forward's first layer, and the stream of the last blocks in FLUX.1.
    enlarge(model, ("net.0.proj.weight", "proj_mlp.weight", "to_v.weight"), 1e5)
    path = tmp_path / "model.gguf"
    write_gguf(dict(model.state_dict()), path, weight_type)
    model.load_state_dict(rounded(model.state_dict(), weight_type))
    given = inputs(config, (1, 6, 4))
    expected = reference(model, given)
    assert largest(model, lambda: reference(model, given)) > 2 * HALF_LIMIT
    found = located(open_index(path), kind, tables)
    network, _ = network_of(found, config_of(found, json_of(model)))
    assert relative_error(network.run(given)["prediction"], expected) <= CLOSE
    half = {n: v.astype(np.float16) for n, v in given.items()}
    assert not np.isfinite(reference(model.half(), half)).all()


@pytest.mark.parametrize("weight_type", ["f32", "f16", "q8_0"])
def test_t5(weight_type: str, tmp_path: Path) -> None:
    model = text_models.t5(d_ff=64, num_heads=32, d_kv=4, d_model=64)
    enlarge(model, ("wi_0.weight", "wi_1.weight"), 200.0)
    ids = np.random.default_rng(3).integers(3, 100, (2, 13), dtype=np.int32)
    path = tmp_path / "m.gguf"
    text_models.write_gguf(path, "t5", text_models.t5_to_gguf(model.state_dict()), weight_type)
    left = rounded(model.state_dict(), weight_type)
    model.load_state_dict(left)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model(torch.from_numpy(ids.astype(np.int64))).last_hidden_state

    assert largest(model, run) > 2 * HALF_LIMIT
    found = text_models.load(path, "t5_text").run(ids)["hidden"]
    assert relative_error(found, run().numpy()) <= CLOSE
    model.half()
    assert not torch.isfinite(run()).all()
