"""Published sizes on the meta device: every tensor of every layout maps; what cannot be used is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sdengine
from sdengine import _core
from sdengine.errors import ParameterError, UnsupportedModelError
from sdengine.families import SD1, SDXL, Family
from sdengine.keys import NameMap
from sdengine.keys.controlnet import DIFFUSERS, LDM, UNION
from sdengine.keys.image_prompt import attention_table
from sdengine.keys.t2i_adapter import TENCENT, TENCENT_LIGHT
from sdengine.loading.networks import NETWORKS, Shapes
from tests.unet_models import write_safetensors

from .conftest import Folders
from .models import adapter_to_tencent, controlnet_to_ldm

XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}


def meta_state(name: str) -> dict[str, torch.Tensor]:
    from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter

    build: dict[str, Callable[[], torch.nn.Module]] = {
        "SD1.5": lambda: ControlNetModel(cross_attention_dim=768),
        "SD2": lambda: ControlNetModel(**SD2),
        "SDXL": lambda: ControlNetModel(**XL),
        "SDXL small": lambda: ControlNetModel(
            **{**XL, "down_block_types": ("DownBlock2D",) * 3, "transformer_layers_per_block": 1}
        ),
        "union": lambda: ControlNetUnionModel(
            **XL, conditioning_embedding_out_channels=(48, 96, 192, 384)
        ),
        "T2I": lambda: T2IAdapter(3, [320, 640, 1280, 1280], 2, 8, "full_adapter"),
        "T2I, XL": lambda: T2IAdapter(3, [320, 640, 1280, 1280], 2, 16, "full_adapter_xl"),
        "T2I, light": lambda: T2IAdapter(3, [320, 640, 1280], 4, 8, "light_adapter"),
    }
    with torch.device("meta"):
        return build[name]().state_dict()


CASES = {
    "SD1.5": ("controlnet", SD1, DIFFUSERS, LDM),
    "SD2": ("controlnet", SD1, DIFFUSERS, LDM),
    "SDXL": ("controlnet", SDXL, DIFFUSERS, LDM),
    "SDXL small": ("controlnet", SDXL, DIFFUSERS, LDM),
    "union": ("controlnet_union", SDXL, UNION, None),
    "T2I": ("t2i_adapter", SD1, None, TENCENT),
    "T2I, XL": ("t2i_adapter", SDXL, None, TENCENT),
    "T2I, light": ("t2i_adapter", SD1, None, TENCENT_LIGHT),
}


@pytest.mark.parametrize("name", CASES)
def test_published_sizes(name: str) -> None:
    kind, family, canonical, other = CASES[name]
    state = meta_state(name)
    shapes = {n: tuple(t.shape) for n, t in state.items()}
    if canonical is not None:
        names = NameMap.of_file(canonical, shapes)
        shapes = {
            m.name: (s[0] // m.part[1], *s[1:]) if m.part and m.part[1] else s
            for n, s in shapes.items()
            for m in names.to_canonical(n)
        }
    config = _config(kind, family, shapes)
    expected = dict(_core.parameters(kind, config))
    assert expected == shapes
    if other is None:
        return
    renamed = (controlnet_to_ldm if other is LDM else adapter_to_tencent)(state)
    for names in (NameMap.of_file(other, renamed), NameMap.of_network(other, config)):
        found = {m.name: tuple(t.shape) for n, t in renamed.items() for m in names.to_canonical(n)}
        assert found == expected


def _config(kind: str, family: Family, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    network = NETWORKS[kind]
    config = network.from_shapes(Shapes(shapes), family)
    network.check(config)
    return config


def test_ip_adapters_count_as_published() -> None:
    """16 cross-attentions of Stable Diffusion 1.5, 70 of SDXL; the last numbers are the middle's."""
    sd1 = {
        "down_transformer_layers": [[1, 1]] * 3 + [[0, 0]],
        "up_transformer_layers": [[0] * 3] + [[1] * 3] * 3,
        "mid_transformer_layers": 1,
        "mid_block": "cross_attention",
    }
    sdxl = {
        "down_transformer_layers": [[0, 0], [2, 2], [10, 10]],
        "up_transformer_layers": [[10] * 3, [2] * 3, [0] * 3],
        "mid_transformer_layers": 10,
        "mid_block": "cross_attention",
    }
    for config, count in ((sd1, 16), (sdxl, 70)):
        rules = attention_table(config).rules
        assert len(rules) == 2 * count
        assert rules[0].file == "1.to_k_ip."
        assert rules[-1].file == f"{2 * count - 1}.to_v_ip."
        assert rules[-1].canonical.startswith("mid_block.")


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        ("lora_controlnet", sdengine.WeightsError, "incomplete|has no|is missing"),
        ("controlnet_blocks.0.weight", ParameterError, "this is a ControlNet"),
        ("x.lora_up.weight", ParameterError, "this is a LoRA"),
    ],
)
def test_refused(
    folders: Folders, tmp_path: Path, tensor: str, error: type[Exception], message: str
) -> None:
    path = write_safetensors({tensor: torch.zeros(2, 2)}, tmp_path / "control.safetensors")
    with pytest.raises(error, match=message):
        sdengine.load(folders["sd1"], controlnets=path)


def test_a_damaged_controlnet(folders: Folders, tmp_path: Path) -> None:
    from tests.models import component_state_dict

    folder = folders["sd1-control"]
    state = component_state_dict(folder.parent, folder.name)
    del state["controlnet_mid_block.weight"]
    path = write_safetensors(state, tmp_path / "control.safetensors")
    with pytest.raises(sdengine.WeightsError, match="controlnet_mid_block.weight"):
        sdengine.load(folders["sd1"], controlnets=path)


def test_loading_one_as_a_model_says_how_to_give_it(folders: Folders) -> None:
    with pytest.raises(UnsupportedModelError, match="controlnets="):
        sdengine.load(folders["sd1-control"])
