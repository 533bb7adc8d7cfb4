"""What LoRAs cost on a full-size synthetic Stable Diffusion 1.5: a step, a switch, memory.

``python bench/lora.py --size 512 --weight-type q8_0 --threads 1``

Evaluations with and without adapters take turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import struct
import time
from pathlib import Path

import measuring
import numpy as np
import synthetic

# The modules that kohya's trainer changes by default: every projection of the transformers.
PROJECTIONS = (
    *("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"),
    *("ff.net.0.proj.weight", "ff.net.2.weight", "proj_in.weight", "proj_out.weight"),
)


def write_lora(path: Path, shapes: dict[str, tuple[int, ...]], rank: int, seed: int) -> Path:
    """Write a float16 LoRA in kohya's names over the transformers of a UNet of these parameters."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if "transformer_blocks" not in name and "proj_" not in name:
            continue
        if not name.endswith(PROJECTIONS):
            continue
        module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        inner = math.prod(shape[1:])
        down = rng.standard_normal((rank, inner), np.float32) / math.sqrt(inner)
        up = rng.standard_normal((shape[0], rank), np.float32) * (0.2 / math.sqrt(rank * inner))
        tensors[f"{module}.lora_down.weight"] = down.astype(np.float16)
        tensors[f"{module}.lora_up.weight"] = up.astype(np.float16)
        tensors[f"{module}.alpha"] = np.float16(rank).reshape(())
    header, end = {}, 0
    for name, values in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": "F16", "shape": values.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(values.tobytes())
    return path


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Steps with and without the adapters, and what switching takes."""
    import sdengine

    model = synthetic.model(arguments.weight_type)
    measuring.warm(model)
    plain, adapted = (sdengine.load(model, threads=arguments.threads) for _ in range(2))
    part = adapted.model.components["unet"]
    shapes = {binding.name: binding.entry.shape for binding in part.bindings}
    folder = synthetic.cache_folder()
    files = [
        write_lora(folder / f"lora-{arguments.rank}-{i}.safetensors", shapes, arguments.rank, i)
        for i in range(arguments.loras + 1)
    ]
    loras = [(file, 0.7) for file in files[:-1]]
    report: dict[str, object] = {"bytes_of_a_file": files[0].stat().st_size}

    def timed(action: object, *given: object) -> float:
        started = time.perf_counter()
        action(*given)  # type: ignore[operator]
        return round(time.perf_counter() - started, 4)

    report["first_set"] = timed(adapted.set_loras, loras)
    report["same_shapes"] = timed(adapted.set_loras, [(files[-1], 0.7), *loras[1:]])
    report["scales_only"] = timed(adapted.set_loras, [(files[-1], 0.5), *loras[1:]])
    report["off"] = timed(adapted.set_loras, [])
    report["one"] = timed(adapted.set_loras, loras[:1])
    report["on_again"] = timed(adapted.set_loras, loras)
    report["adapter_bytes"] = adapted.denoiser.adapter_bytes

    latents, context = measuring.denoiser_inputs(arguments.size)
    cond = sdengine.Conditioning(context)
    times: dict[str, list[float]] = {"plain": [], "adapted": []}
    for repeat in range(arguments.repeats + 1):
        for name, pipe in (("plain", plain), ("adapted", adapted)):
            seconds = timed(pipe.predict, latents, measuring.TIMESTEP, cond)
            if repeat:  # the first builds the graph
                times[name].append(seconds)
    ratios = [b / a for a, b in zip(times["plain"], times["adapted"], strict=True)]
    report |= times
    report["slower"] = round(statistics.median(ratios) - 1, 4)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--weight-type", default="q8_0")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--loras", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
