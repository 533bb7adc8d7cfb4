"""One measurement of diffusers with torch on the CPU; a child of ``compare.py``."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import measuring
import shapes

UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": list(shapes.FULL.unet_channels),
    "cross_attention_dim": shapes.FULL.text_width,
    "layers_per_block": shapes.FULL.unet_blocks,
}
VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": list(shapes.FULL.vae_channels),
    "down_block_types": ["DownEncoderBlock2D"] * len(shapes.FULL.vae_channels),
    "up_block_types": ["UpDecoderBlock2D"] * len(shapes.FULL.vae_channels),
    "latent_channels": shapes.FULL.latent_channels,
    "layers_per_block": shapes.FULL.vae_blocks,
}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load, evaluate and decode once in this process, from the checkpoint that the engine reads."""
    import diffusers
    import torch

    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, arguments.dtype)

    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format

    def load(kind: Any, config: dict[str, Any]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
            network = kind.from_single_file(arguments.model, config=folder, torch_dtype=dtype)
        return network.eval().to(memory_format=layout)

    started = time.perf_counter()
    unet = load(diffusers.UNet2DConditionModel, UNET_CONFIG)
    vae = load(diffusers.AutoencoderKL, VAE_CONFIG)
    report: dict[str, Any] = {"load": round(time.perf_counter() - started, 3)}

    noisy, words = measuring.denoiser_inputs(arguments.size)
    latents = torch.from_numpy(noisy).to(dtype, memory_format=layout)
    context = torch.from_numpy(words).to(dtype)
    report["unet"], noise = measuring.timed(
        lambda: unet(latents, measuring.TIMESTEP, context).sample, arguments.steps - 1
    )
    report["unet_probe"] = measuring.probe(noise.float().numpy())
    report["unet_peak_memory"] = measuring.peak_memory()
    if arguments.vae:
        report["vae"], picture = measuring.timed(
            lambda: vae.decode(latents / measuring.LATENT_SCALE).sample, 1, warm_ups=0
        )
        report["vae_probe"] = measuring.probe(picture.float().numpy())
    report["peak_memory"] = measuring.peak_memory()
    return report


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
    parser.add_argument("--model")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--vae", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    print("\n" + json.dumps(facts() if arguments.facts else measure(arguments)))


if __name__ == "__main__":
    main()
