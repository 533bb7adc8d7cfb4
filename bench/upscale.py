"""Real-ESRGAN x4plus at full size, synthetic, beside the same network in torch, as spandrel and ComfyUI run it.

``python bench/upscale.py --size 128 --threads 4``

Both take turns in one process on the same cores, weights and picture, so that their ratio carries to other machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import shapes
import synthetic
from step import default_threads

Network = Callable[[Any], Any]


def torch_network(path: Path) -> Network:
    """The peer: a function of float32 ``[1, 3, H, W]``, 0 to 1 (Wang et al. 2018, arXiv 1809.00219)."""
    import torch
    from torch.nn import functional

    from sdengine.formats import open_index

    tensors = {}
    for entry in open_index(path).tensors.values():
        flat = np.fromfile(path, np.float16, entry.nbytes // 2, offset=entry.offset)
        tensors[entry.name] = torch.tensor(flat.astype(np.float32)).reshape(entry.shape)

    def convolved(name: str, x: Any) -> Any:
        return functional.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1)

    def leaky(x: Any) -> Any:
        return functional.leaky_relu(x, 0.2)

    def dense(name: str, x: Any) -> Any:
        seen = [x]
        for number in range(1, 5):
            seen.append(leaky(convolved(f"{name}.conv{number}", torch.cat(seen, 1))))
        return x + 0.2 * convolved(f"{name}.conv5", torch.cat(seen, 1))

    blocks = sum(name.endswith("rdb1.conv1.weight") for name in tensors)

    def network(x: Any) -> Any:
        first = inner = convolved("conv_first", x)
        for block in range(blocks):
            start = inner
            for number in (1, 2, 3):
                inner = dense(f"body.{block}.rdb{number}", inner)
            inner = start + 0.2 * inner
        x = first + convolved("conv_body", inner)
        for name in ("conv_up1", "conv_up2"):
            x = leaky(convolved(name, functional.interpolate(x, scale_factor=2, mode="nearest")))
        return convolved("conv_last", leaky(convolved("conv_hr", x)))

    return network


def measure(path: Path, size: int, threads: int, repeats: int) -> dict[str, Any]:
    """Seconds of both for one picture, in turns, and how far their outputs are apart."""
    import torch

    from sdengine import _core
    from sdengine.devices import open_device
    from sdengine.stores import make_store
    from sdengine.upscalers.plan import plan_upscaler

    torch.set_num_threads(threads)
    plan = plan_upscaler(path).network
    device = open_device("cpu", threads)
    network = _core.Network(plan.kind, dict(plan.config), make_store(plan), device)
    reference = torch_network(path)
    image = np.random.default_rng(0).random((1, 3, size, size), np.float32)

    def theirs() -> Any:
        with torch.inference_mode():
            return reference(torch.tensor(image)).numpy()

    def ours() -> Any:
        return network.run({"image": image}, {})["image"]

    laps = {"sdengine": measuring.Laps(), "torch": measuring.Laps()}
    outputs = {}
    for _ in range(repeats + 1):
        for name, work in (("sdengine", ours), ("torch", theirs)):
            laps[name].restart()
            outputs[name] = work()
            laps[name].lap()
    report: dict[str, Any] = {"size": size, "threads": threads}
    report |= {name: laps[name].summary(warm_ups=1) for name in laps}
    for clock in ("wall", "cpu"):
        ours_, theirs_ = (getattr(laps[name], clock)[1:] for name in ("sdengine", "torch"))
        ratios = [b / a for a, b in zip(ours_, theirs_, strict=True)]
        report[f"ratio_{clock}"] = round(statistics.median(ratios), 3)
    report["error"] = measuring.relative_error(
        outputs["sdengine"].reshape(-1), outputs["torch"].reshape(-1)
    )
    report["activations"] = network.activation_bytes
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="pixels of the small picture")
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument("--repeats", type=int, default=3, help="turns after the warm-up")
    parser.add_argument("--json", type=Path, help="write the report here")
    arguments = parser.parse_args()
    threads = arguments.threads or default_threads()
    machine = measuring.machine()
    measuring.bind_to_cores(threads)
    path = synthetic.network("realesrgan-x4plus", shapes.upscaler())
    report = measure(path, arguments.size, threads, arguments.repeats)
    report["load_average"] = measuring.load_average()
    print(json.dumps(report, indent=1))
    if arguments.json:
        measuring.write_json(arguments.json, {"machine": machine, **report})


if __name__ == "__main__":
    main()
