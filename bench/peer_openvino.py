"""One measurement of OpenVINO; a child of ``compare.py``.

``--convert`` makes the network's intermediate representation from diffusers' module with the same weights, once, in a
process of its own, so that what conversion takes is not counted: the measuring process only reads the file. Weights are
stored as f16, the file's own type, or compressed to int8 by nncf (asymmetric, a scale per channel, its default).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cases
import measuring
import numpy as np
import peer_diffusers
import synthetic

TRACED = 128
"""Pixels of the example that is traced; sizes stay open until a case closes them."""

WEIGHT = 4096
"""Values from which on a constant is a weight."""


def file(case: cases.Case, weight_type: str) -> Path:
    """Where the converted network is kept."""
    folder = synthetic.cache_folder() / "openvino"
    return folder / f"{case.model}-{case.part}-{weight_type}.xml"


def convert(case: cases.Case) -> dict[str, Any]:
    """Write the network with f16 weights, and with int8 ones, where they are not there yet."""
    wanted = {kind: file(case, kind) for kind in case.openvino_types}
    missing = {kind: path for kind, path in wanted.items() if not path.is_file()}
    if not missing:
        return {"converted": []}
    import nncf
    import openvino
    import torch
    from openvino.frontend.pytorch import patch_model

    torch.set_grad_enabled(False)
    module = peer_diffusers.network(case, torch.float16)
    # OpenVINO's notebooks use it like this: f16 weights, float32 everything else.
    getattr(patch_model, "__make_16bit_traceable")(module)
    given = peer_diffusers.arguments_of(case, TRACED)
    model = openvino.convert_model(
        _positional(case, module, list(given)), example_input=tuple(given.values())
    )
    del module
    for kind, path in sorted(missing.items()):  # f16 before int8, which changes the model
        if kind == "int8":
            model = nncf.compress_weights(model)
        else:
            _store_as_f16(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished-{path.name}")
        openvino.save_model(model, unfinished, compress_to_fp16=False)
        shutil.move(unfinished.with_suffix(".bin"), path.with_suffix(".bin"))
        shutil.move(unfinished, path)
    return {"converted": [path.name for path in missing.values()]}


def _store_as_f16(model: Any) -> None:
    """Weights as float16, which the file's values are; not what sines of the timestep are made of.

    ``save_model`` would compress that too, and phases of thousands of radians want float32.
    """
    from openvino import opset13

    for operation in model.get_ordered_ops():
        plain = (
            operation.get_type_name() == "Constant"
            and operation.get_element_type().to_string() == "f32"
        )
        if plain and math.prod(operation.shape) >= WEIGHT:
            halved = opset13.constant(operation.data.astype(np.float16))
            targets = operation.output(0).get_target_inputs()
            widened = opset13.convert(halved, "f32")
            for target in targets:
                target.replace_source_output(widened.output(0))


def _positional(case: cases.Case, network: Any, names: list[str]) -> Any:
    """The network as a module of positional tensors, as tracing wants it."""
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: Any) -> Any:
            return peer_diffusers.call(case, self.network, dict(zip(names, tensors, strict=True)))

    return Positional().eval()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read, compile and evaluate in this process."""
    import openvino

    case = cases.by_name(arguments.case)
    path = file(case, arguments.weight_type)
    tensors = peer_diffusers.arguments_of(case, arguments.size)
    given = [tensor.numpy() for tensor in tensors.values()]
    measuring.warm(path.with_suffix(".bin"))
    started = time.perf_counter()
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(
        {port: list(array.shape) for port, array in zip(model.inputs, given, strict=True)}
    )
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": arguments.threads,
        "INFERENCE_PRECISION_HINT": arguments.precision,
        "ENABLE_CPU_PINNING": False,
    }
    if "ONEDNN_MAX_CPU_ISA" in os.environ:
        # A processor without VNNI does not quantize activations either; the plugin asks the processor and not its
        # oneDNN, which then has no such product.
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    compiled = core.compile_model(model, "CPU", settings)
    del model
    request = compiled.create_infer_request()
    load = time.perf_counter() - started
    loading = measuring.forget_peak()
    report, output = cases.times(lambda: request.infer(given)[compiled.output(0)], case)
    report |= {"load": round(load, 3), **loading, **measuring.evaluating_peak()}
    report["probe"] = measuring.probe(peer_diffusers.comparable(case, output))
    return {**report, "primitives": _primitives(compiled)}


def _primitives(compiled: Any) -> list[str]:
    """The names of the implementations that run: they tell the instruction set."""
    names = {
        str(op.get_rt_info()["primitiveType"].value)
        for op in compiled.get_runtime_model().get_ops()
    }
    return sorted(name for name in names if not name.startswith("unknown"))


def facts() -> dict[str, Any]:
    """Versions, and whether the processor calculates in bfloat16."""
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {
        **{name: version(name) for name in ("openvino", "nncf")},
        "bf16": "BF16" in capabilities,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", action="store_true", help="print only the versions")
    parser.add_argument("--convert", action="store_true", help="make the files of the case")
    parser.add_argument("--case", default="unet-512")
    parser.add_argument("--size", type=int, help="other than the case's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weight-type", default="f16", choices=("f16", "int8"))
    parser.add_argument("--precision", default="f32", choices=("f32", "bf16"))
    arguments = parser.parse_args()
    if arguments.facts:
        report = facts()
    elif arguments.convert:
        report = convert(cases.by_name(arguments.case))
    else:
        report = measure(arguments)
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
