"""Tiny random diffusion transformers of diffusers, and the native networks over the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from sdengine import _core
from sdengine.families import SD1, Component
from sdengine.formats import TensorIndex, open_index
from sdengine.keys import KeyTable
from sdengine.loading.bind import bind
from sdengine.loading.locate import Located, locate
from sdengine.loading.networks import NETWORKS, Shapes
from tests.models import randomise

State = dict[str, torch.Tensor]

SD3: dict[str, Any] = {
    "sample_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "caption_projection_dim": 64,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 48,
    "pos_embed_max_size": 12,
}
SD35 = SD3 | {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}
FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 48,
    "axes_dims_rope": [4, 4, 8],
    "guidance_embeds": True,
}


def tiny(cls: type[torch.nn.Module], config: Mapping[str, Any], seed: int = 1) -> torch.nn.Module:
    """An instance with random parameters and buffers."""
    torch.manual_seed(seed)
    model = cls(**config).eval()
    randomise(model, seed)
    for buffer in model.buffers():
        buffer.add_(torch.randn(buffer.shape) * 0.3)
    return model


def component(kind: str, tables: tuple[KeyTable, ...]) -> Component:
    return Component(
        name="transformer",
        title="a transformer",
        kind=kind,
        prefixes=("model.diffusion_model.", ""),
        tables=tables,
        argument="model",
        written=("", tables[-1].name),
    )


def located(index: TensorIndex, kind: str, tables: tuple[KeyTable, ...]) -> Located:
    found = locate(index, component(kind, tables))
    assert found is not None
    return found


def config_of(found: Located, json: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The hyper-parameters as the loader finds them."""
    network = NETWORKS[found.component.kind]
    shapes = Shapes({name: source.shape for name, source in found.sources.items()})
    config = network.from_shapes(shapes, SD1)  # neither network asks its family for anything
    if json is not None:
        config = network.refine(config, json)
    network.check(config)
    return config


def network_of(
    found: Located, config: Mapping[str, Any], threads: int = 1
) -> tuple[_core.Network, _core.WeightStore]:
    """The native network over the tensors of a file."""
    kind = found.component.kind
    bindings, left = bind(found, _core.parameters(kind, dict(config)))
    assert left == ()
    store = _core.WeightStore()
    for b in bindings:
        e = b.entry
        store.add(b.name, e.dtype, list(e.shape), str(e.path), e.offset, e.nbytes, e.strides)
    return _core.Network(kind, dict(config), store, _core.Device.cpu(threads)), store


def json_of(model: torch.nn.Module) -> dict[str, Any]:
    """The model's config.json."""
    items = dict(model.config).items()  # type: ignore[arg-type]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}


def native(
    model: torch.nn.Module,
    kind: str,
    tables: tuple[KeyTable, ...],
    folder: Path,
    rename: Callable[[State], State] = dict,
    threads: int = 1,
) -> _core.Network:
    """The native network over the tensors of a diffusers model, saved under other names."""
    path = folder / "model.safetensors"
    state = rename(dict(model.state_dict()))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    found = located(open_index(path), kind, tables)
    return network_of(found, config_of(found, json_of(model)), threads)[0]


# ------------------------------ quantized files
def _quant(tensor: torch.Tensor, weight_type: str) -> gguf.GGMLQuantizationType:
    """The type that a file keeps the tensor in: matrices of whole blocks are quantized."""
    whole = tensor.ndim in (2, 3) and tensor.shape[-1] % 32 == 0
    return gguf.GGMLQuantizationType[weight_type.upper() if whole else "F32"]


def rounded(state: Mapping[str, torch.Tensor], weight_type: str) -> State:
    """The values that are left after quantization."""
    result = {}
    for name, tensor in state.items():
        kind = _quant(tensor, weight_type)
        values = gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind)
        result[name] = torch.tensor(values.reshape(tensor.shape))
    return result


def write_gguf(state: Mapping[str, torch.Tensor], path: Path, weight_type: str) -> None:
    writer = gguf.GGUFWriter(str(path), "pig")  # an architecture that says nothing
    for name, tensor in state.items():
        kind = _quant(tensor, weight_type)
        data = gguf.quants.quantize(np.ascontiguousarray(tensor.numpy()), kind)
        writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def packed(latents: np.ndarray) -> torch.Tensor:
    """[N, C, H, W] -> [N, H W / 4, 4 C] as diffusers' FluxPipeline packs them."""
    n, c, h, w = latents.shape
    x = torch.tensor(latents).view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, h * w // 4, 4 * c)


def unpacked(tokens: torch.Tensor, height: int, width: int) -> np.ndarray:
    n, _, channels = tokens.shape
    x = tokens.view(n, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(n, channels // 4, height, width).numpy()


def position_ids(height: int, width: int, picture: int = 0) -> torch.Tensor:
    """One (picture, row, column) per token."""
    rows, columns = torch.meshgrid(
        torch.arange(height // 2), torch.arange(width // 2), indexing="ij"
    )
    ids = torch.stack([torch.full_like(rows, picture), rows, columns], dim=-1)
    return ids.reshape(-1, 3).float()
