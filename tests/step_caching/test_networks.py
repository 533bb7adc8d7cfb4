"""Networks in parts, against diffusers' networks with hooks at the same places: relative L2 error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.keys import hunyuan_dit, unet
from tests.dit import test_hunyuan as hunyuan
from tests.dit import test_lumina as lumina
from tests.dit import test_pixart as pixart
from tests.models import UNET_CONFIG
from tests.parity import test_dit_networks as joint
from tests.parity import test_qwen_networks as qwen
from tests.parity.conftest import relative_error
from tests.parity.dit import FLUX, SD35, native, noise, tiny

LIMIT = 5e-6
KEEPING, SHALLOW, FIRST, REST, LAST = 1, 2, 3, 4, 5
SIZE = (2, 6, 10)
Inputs = dict[str, np.ndarray]


# ------------------------------ transformers
@dataclass(frozen=True)
class Kind:
    """A kind of transformer, and how diffusers' network is read."""

    cls: type[torch.nn.Module]
    config: Mapping[str, Any]
    tables: Any
    inputs: Callable[[], Inputs]
    predict: Callable[[torch.nn.Module, Inputs], np.ndarray]
    blocks: str = "transformer_blocks"
    stream: int | None = 1
    """Which of the first block's results holds the picture; None where there is one."""
    text: int = 0
    """Tokens of the text in front of the picture's."""


HUNYUAN = hunyuan.VARIANTS["1.1"]
KINDS = {
    "mmdit": Kind(
        *(SD3Transformer2DModel, SD35, joint.SD3_TABLES),
        lambda: joint.sd3_inputs(SD35, SIZE),
        joint.sd3_reference,
    ),
    "flux": Kind(
        *(FluxTransformer2DModel, FLUX, joint.FLUX_TABLES),
        lambda: joint.flux_inputs(FLUX, SIZE) | {"reference": noise(2, 4, 4, 8, seed=9)},
        joint.flux_reference,
    ),
    "qwen_image": Kind(
        *(QwenImageTransformer2DModel, qwen.QWEN, qwen.TABLES),
        lambda: qwen.inputs_of(SIZE, references=2),
        qwen.reference,
    ),
    "lumina2": Kind(
        *(Lumina2Transformer2DModel, lumina.DENOISER, lumina.TABLES, lumina.inputs),
        *(lumina.reference, "layers", None, 7),
    ),
    "pixart": Kind(
        *(PixArtTransformer2DModel, pixart.ALPHA, pixart.TABLES, pixart.inputs),
        *(pixart.reference, "transformer_blocks", None),
    ),
    "hunyuan_dit": Kind(
        *(HunyuanDiT2DModel, HUNYUAN, (hunyuan_dit.ORIGINAL, hunyuan_dit.DIFFUSERS)),
        lambda: hunyuan.inputs(HUNYUAN),
        *(hunyuan.reference, "blocks", None),
    ),
}


class Watched:
    """A network of diffusers whose first block and end can be read, and the end replaced."""

    def __init__(self, kind: Kind, seed: int = 1) -> None:
        self.kind = kind
        self.model = tiny(kind.cls, kind.config, seed)
        self.residual: torch.Tensor | None = None
        first = getattr(self.model, kind.blocks)[0]
        first.register_forward_pre_hook(self._before, with_kwargs=True)
        first.register_forward_hook(self._behind)
        self.model.norm_out.register_forward_pre_hook(self._end, with_kwargs=True)

    def _picture(self, stream: torch.Tensor) -> torch.Tensor:
        tokens = SIZE[1] * SIZE[2] // 4
        return stream[:, self.kind.text : self.kind.text + tokens]

    def _before(self, _: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        self.before = self._picture(given["hidden_states"] if "hidden_states" in given else args[0])

    def _behind(self, _: Any, args: tuple[Any, ...], made: Any) -> None:
        self.behind = self._picture(made if self.kind.stream is None else made[self.kind.stream])

    def _end(self, _: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        self.end = self._picture(args[0])
        if self.residual is None:
            return None
        replaced = args[0].clone()
        self._picture(replaced).copy_(self.behind + self.residual)
        return (replaced, *args[1:]), given

    def predict(self, inputs: Inputs, residual: torch.Tensor | None = None) -> np.ndarray:
        self.residual = residual
        return self.kind.predict(self.model, inputs)


def later(inputs: Inputs) -> Inputs:
    """The same a step later."""
    moved = inputs["latents"] + 0.2 * noise(*inputs["latents"].shape, seed=77)
    return {**inputs, "latents": moved, "timesteps": inputs["timesteps"] - np.float32(62.5)}


def hidden(outputs: Mapping[str, np.ndarray]) -> Inputs:
    return {name: array for name, array in outputs.items() if name.startswith("hidden_")}


@pytest.mark.parametrize("name", KINDS)
def test_a_transformer_in_parts(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    watched = Watched(kind)
    network = native(watched.model, name, kind.tables, tmp_path)
    assert network.reuse == "first_block"

    now = kind.inputs()
    first = network.run(now, {"part": FIRST})
    rest = network.run({**now, **hidden(first)}, {"part": REST})
    expected = watched.predict(now)
    change, kept = watched.behind - watched.before, watched.end - watched.behind
    assert relative_error(first["change"], change.numpy()) <= LIMIT
    assert relative_error(rest["residual"], kept.numpy()) <= LIMIT
    assert relative_error(rest["prediction"], expected) <= LIMIT
    np.testing.assert_array_equal(rest["prediction"], network.run(now)["prediction"])

    then = later(now)
    first = network.run(then, {"part": FIRST})
    given = {**then, **hidden(first), "residual": rest["residual"]}
    found = network.run(given, {"part": LAST})["prediction"]
    assert relative_error(found, watched.predict(then, kept)) <= LIMIT
    assert relative_error(found, network.run(then)["prediction"]) > 1e-3


@pytest.mark.parametrize("name", ["mmdit", "flux"])
def test_control_residuals_come_behind_the_cut(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    network = native(tiny(kind.cls, kind.config), name, kind.tables, tmp_path)
    inputs = {k: v for k, v in kind.inputs().items() if not k.startswith("reference")}
    tokens, width = SIZE[1] * SIZE[2] // 4, 64
    controls = {f"control_{i}_of_2": noise(2, tokens, width, seed=20 + i) for i in range(2)}
    if name == "flux":
        controls["control_single_0_of_1"] = noise(2, tokens, width, seed=23)
    first = network.run(inputs, {"part": FIRST})
    found = network.run({**inputs, **hidden(first), **controls}, {"part": REST})["prediction"]
    expected = network.run({**inputs, **controls})["prediction"]
    np.testing.assert_array_equal(found, expected)
    assert relative_error(found, network.run(inputs)["prediction"]) > 1e-3


def test_blocks_left_out_stay_left_out(tmp_path: Path) -> None:
    kind = KINDS["mmdit"]
    network = native(tiny(kind.cls, kind.config), "mmdit", kind.tables, tmp_path)
    for mask in (0b1, 0b10, 0b101):
        options = {"skip_layers": mask}
        first = network.run(kind.inputs(), {**options, "part": FIRST})
        assert bool(first["change"].any()) == (mask & 1 == 0)
        given = {**kind.inputs(), **hidden(first)}
        found = network.run(given, {**options, "part": REST})["prediction"]
        np.testing.assert_array_equal(found, network.run(kind.inputs(), options)["prediction"])


# ------------------------------ UNets
UNETS: dict[str, dict[str, Any]] = {
    "attention-last": {"in_channels": 4, **UNET_CONFIG},
    "no-attention-last": {
        **{"in_channels": 4, **UNET_CONFIG},
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
}
FULL = {"latents": (2, 4, 6, 10), "context": (2, 5, UNET_CONFIG["cross_attention_dim"])}


def unet_inputs() -> Inputs:
    made = {name: noise(*shape, seed=i) for i, (name, shape) in enumerate(FULL.items())}
    return {**made, "timesteps": np.array([601.0, 250.0], np.float32)}


class WatchedUNet:
    """diffusers' UNet whose last resnet is given the kept features of another evaluation."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.model = tiny(UNet2DConditionModel, config)
        self.kept: torch.Tensor | None = None
        last = self.model.up_blocks[-1].resnets[-1]
        self.width = last.in_channels - self.model.conv_in.out_channels
        last.register_forward_pre_hook(self._read)

    def _read(self, _: Any, args: tuple[torch.Tensor, ...]) -> Any:
        self.features = args[0][:, : self.width]
        if self.kept is None:
            return None
        return (torch.cat([self.kept, args[0][:, self.width :]], dim=1), *args[1:])

    def predict(self, inputs: Inputs, kept: torch.Tensor | None = None) -> np.ndarray:
        self.kept = kept
        given = {name: torch.tensor(array) for name, array in inputs.items()}
        with torch.no_grad():
            return self.model(given["latents"], given["timesteps"], given["context"]).sample.numpy()


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_in_parts(name: str, tmp_path: Path) -> None:
    watched = WatchedUNet(UNETS[name])
    network = native(watched.model, "unet", (unet.DIFFUSERS,), tmp_path)
    assert network.reuse == "features"

    now = unet_inputs()
    full = network.run(now, {"part": KEEPING})
    assert relative_error(full["prediction"], watched.predict(now)) <= LIMIT
    kept = watched.features
    tokens = kept.flatten(2).transpose(1, 2).numpy()
    assert relative_error(full["features"], tokens) <= LIMIT
    np.testing.assert_array_equal(full["prediction"], network.run(now)["prediction"])

    then = later(now)
    given = {**then, "features": full["features"]}
    found = network.run(given, {"part": SHALLOW})["prediction"]
    assert relative_error(found, watched.predict(then, kept)) <= LIMIT
    assert relative_error(found, network.run(then)["prediction"]) > 1e-3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> _core.Network:
    model = tiny(UNet2DConditionModel, UNETS["attention-last"])
    return native(model, "unet", (unet.DIFFUSERS,), tmp_path_factory.mktemp("unet"))


def test_a_shallow_part_keeps_guidance_and_controls(small: _core.Network) -> None:
    """With the features of the same inputs it gives what the whole gives."""
    layers = len(small.guidance_layers)
    last, others = 1 << (layers - 1), (1 << (layers - 1)) - 1
    steered = {
        "nag_context": noise(2, 5, UNET_CONFIG["cross_attention_dim"], seed=8),
        "nag": np.array([[4.0, 2.5, 0.5]] * 2, np.float32),
    }
    control = {"control_0": noise(2, 32, 6, 10, seed=9)}
    variants: list[tuple[dict[str, int], Inputs]] = [
        ({"skip_layers": last}, {}),
        ({"perturb_layers": last}, {}),
        ({"skip_layers": others}, {}),
        ({}, steered),
        ({}, control),
        ({"circular": 3}, {}),
    ]
    plain = small.run(unet_inputs())["prediction"]
    for options, more in variants:
        given = {**unet_inputs(), **more}
        full = small.run(given, {**options, "part": KEEPING})
        assert relative_error(full["prediction"], plain) > 1e-3
        given["features"] = full["features"]
        found = small.run(given, {**options, "part": SHALLOW})["prediction"]
        np.testing.assert_array_equal(found, full["prediction"])


def test_parts_check_what_they_are_given(small: _core.Network, tmp_path: Path) -> None:
    for part in (-1, FIRST, LAST, 6):
        with pytest.raises(ParameterError, match=f"no part {part} for step caching"):
            small.run(unet_inputs(), {"part": part})
    with pytest.raises(ParameterError, match="'features' is missing"):
        small.run(unet_inputs(), {"part": SHALLOW})
    given = {**unet_inputs(), "features": noise(2, 59, 64)}
    with pytest.raises(ParameterError, match=r"'features' has shape .* expected \[2, 60, 32\]"):
        small.run(given, {"part": SHALLOW})

    kind = KINDS["mmdit"]
    network = native(tiny(kind.cls, kind.config), "mmdit", kind.tables, tmp_path)
    with pytest.raises(ParameterError, match="no part 1"):
        network.run(kind.inputs(), {"part": KEEPING})
    with pytest.raises(ParameterError, match="'hidden_0' is missing"):
        network.run(kind.inputs(), {"part": REST})
    given = {**kind.inputs(), "hidden_0": noise(2, 15, 60), "hidden_1": noise(2, 7, 64)}
    with pytest.raises(ParameterError, match="'hidden_0' has shape"):
        network.run(given, {"part": REST})
