"""One measurement of diffusers with torch on the CPU; a child of ``compare.py``."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cases
import measuring
import shapes
import shapes_dit
import synthetic

VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": list(shapes.FULL.vae_channels),
    "down_block_types": ["DownEncoderBlock2D"] * len(shapes.FULL.vae_channels),
    "up_block_types": ["UpDecoderBlock2D"] * len(shapes.FULL.vae_channels),
    "latent_channels": shapes.FULL.latent_channels,
    "layers_per_block": shapes.FULL.vae_blocks,
}
UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": list(shapes.FULL.unet_channels),
    "cross_attention_dim": shapes.FULL.context_width,
    "layers_per_block": shapes.FULL.unet_blocks,
}
SDXL_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": list(shapes.SDXL.unet_channels),
    "cross_attention_dim": shapes.SDXL.context_width,
    "layers_per_block": shapes.SDXL.unet_blocks,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, *shapes.SDXL.unet_transformers[1:]],
    "attention_head_dim": [channels // 64 for channels in shapes.SDXL.unet_channels],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": shapes.SDXL.label_width,
}
FLUX_CONFIG = {
    "_class_name": "FluxTransformer2DModel",
    "num_layers": shapes_dit.BLOCKS.double_blocks,
    "num_single_layers": shapes_dit.BLOCKS.single_blocks,
    "attention_head_dim": shapes_dit.BLOCKS.head_width,
    "num_attention_heads": shapes_dit.BLOCKS.width // shapes_dit.BLOCKS.head_width,
    "joint_attention_dim": shapes_dit.BLOCKS.context_width,
    "pooled_projection_dim": shapes_dit.BLOCKS.pooled_width,
    "guidance_embeds": True,
}
_DENOISERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("UNet2DConditionModel", UNET_CONFIG),
    "sdxl": ("UNet2DConditionModel", SDXL_CONFIG),
    synthetic.BLOCKS: ("FluxTransformer2DModel", FLUX_CONFIG),
}


def network(case: cases.Case, dtype: Any) -> Any:
    """The network of a case as diffusers reads it from the file that the engine reads."""
    import diffusers

    name, config = _DENOISERS[case.model]
    if case.part == "decoder":
        name, config = "AutoencoderKL", VAE_CONFIG
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        kind = getattr(diffusers, name)
        return kind.from_single_file(str(case.file()), config=folder, torch_dtype=dtype).eval()


def arguments_of(case: cases.Case, size: int | None = None) -> dict[str, Any]:
    """The inputs of a case as the network takes them, float32 tensors by argument."""
    import torch

    given = {name: torch.from_numpy(array) for name, array in case.inputs(size).items()}
    if case.part == "decoder":
        return {"z": given["latents"] / measuring.LATENT_SCALE}
    if case.model == synthetic.BLOCKS:
        return _of_flux(given)
    found = {
        "sample": given["latents"],
        "timestep": torch.tensor([measuring.TIMESTEP]),
        "encoder_hidden_states": given["context"],
    }
    if case.model == "sdxl":
        side = float(size or case.size)
        found["text_embeds"] = given["pooled"]
        found["time_ids"] = torch.tensor([[side, side, 0.0, 0.0, side, side]])
    return found


def _of_flux(given: dict[str, Any]) -> dict[str, Any]:
    """Patches of two by two latents and their positions, as diffusers' pipeline packs them."""
    import torch

    batch, channels, height, width = given["latents"].shape
    patches = given["latents"].view(batch, channels, height // 2, 2, width // 2, 2)
    positions = torch.zeros(height // 2, width // 2, 3)
    positions[..., 1] = torch.arange(height // 2)[:, None]
    positions[..., 2] = torch.arange(width // 2)[None]
    return {
        "hidden_states": patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels),
        "encoder_hidden_states": given["context"],
        "pooled_projections": given["pooled"],
        "timestep": torch.tensor([measuring.TIMESTEP / 1000]),
        "img_ids": positions.view(-1, 3),
        "txt_ids": torch.zeros(given["context"].shape[1], 3),
        "guidance": torch.tensor([cases.GUIDANCE]),
    }


def call(case: cases.Case, network: Any, given: dict[str, Any]) -> Any:
    """One evaluation: the output tensor."""
    if case.part == "decoder":
        return network.decode(given["z"], return_dict=False)[0]
    if case.model == "sdxl":
        given = dict(given)
        added = {name: given.pop(name) for name in ("text_embeds", "time_ids")}
        return network(**given, added_cond_kwargs=added, return_dict=False)[0]
    return network(**given, return_dict=False)[0]


def comparable(case: cases.Case, output: measuring.Array) -> measuring.Array:
    """The output in the engine's order: FLUX's patches laid out as latents."""
    if case.model != synthetic.BLOCKS:
        return output
    batch, patches, width = output.shape
    side = round(patches**0.5)
    latents = output.reshape(batch, side, side, width // 4, 2, 2).transpose(0, 3, 1, 4, 2, 5)
    return latents.reshape(batch, width // 4, 2 * side, 2 * side)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load and evaluate in this process."""
    import torch

    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    case = cases.by_name(arguments.case)
    dtype = getattr(torch, arguments.dtype)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    started = time.perf_counter()
    module = network(case, dtype).to(memory_format=layout)
    load = time.perf_counter() - started
    kept = ("img_ids", "txt_ids", "timestep", "guidance")
    given = {
        name: value if name in kept else value.to(dtype)
        for name, value in arguments_of(case, arguments.size).items()
    }
    for name in ("sample", "z"):
        if name in given:
            given[name] = given[name].to(memory_format=layout)
    loading = measuring.forget_peak()
    report, output = cases.times(lambda: call(case, module, given), case)
    report |= {"load": round(load, 3), **loading, **measuring.evaluating_peak()}
    return {**report, "probe": measuring.probe(comparable(case, output.float().numpy()))}


def facts() -> dict[str, Any]:
    """Versions, and the instruction set that torch chose."""
    import torch

    names = ("diffusers", "torch")
    return {
        **{name: version(name) for name in names},
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", action="store_true", help="print only the versions")
    parser.add_argument("--case", default="unet-512")
    parser.add_argument("--size", type=int, help="other than the case's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--channels-last", action="store_true")
    arguments = parser.parse_args()
    print("\n" + json.dumps(facts() if arguments.facts else measure(arguments)))


if __name__ == "__main__":
    main()
