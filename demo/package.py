"""Make the files that are shipped from what the training wrote.

::

    python -m demo.package runs/demo/export python/sdengine/data/demo.gguf
    python -m demo.package runs/demo/export-dit demo/dit.gguf
    python -m demo.package runs/demo/controlnet demo/edges_controlnet.gguf

Models get colours for previews, fitted to the demo's pictures.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

import sdengine
from demo.evaluate import GUIDANCE
from demo.shapes import draw, random_scene, training_triples
from sdengine.api import DEMO_MODEL
from sdengine.formats import TensorEntry
from sdengine.loading import plan_model
from sdengine.loading.control import plan_control
from sdengine.previews import Projection, fit_factors

WEIGHT_TYPE = "q8_0"
_RULES = {"sd3": {"*": WEIGHT_TYPE}}
"""Types of parameters that ``convert`` would keep larger, by family.

Much of so small a transformer is embedders and autoencoder, and at 8 bits the pictures stay as right.
"""
_BLOCK = 8
"""Latents along a side of a block whose mean colour is fitted.

The latents of this autoencoder tell the colour of a flat region at its edges; over 8 x 8 of them there is
enough of it for a linear map, latent by latent there is not (it explains a quarter of the variance).
"""


def preview_colours(pipeline: sdengine.Pipeline, seed: int = 0) -> Projection:
    """Fit colours to one picture of every trained combination."""
    rng = random.Random(seed)
    pictures = [draw(random_scene(triple, rng)) for triple in training_triples()]
    latents = pipeline.encode_image(list(pictures))
    count, channels, height, width = latents.shape
    blocks = latents.reshape(
        count, channels, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK
    ).mean((3, 5))
    return fit_factors(blocks, np.stack([np.asarray(picture) for picture in pictures]))


def package(source: Path, target: Path) -> None:
    """Write the model at `source`, a folder that the training exported or a GGUF, as the package has it."""
    sdengine.convert(
        source,
        target,
        WEIGHT_TYPE,
        rules=_RULES.get(plan_model(source).family.name),
        defaults={"guidance": GUIDANCE},
        preview=preview_colours(sdengine.load(source)),
    )


def read_values(entry: TensorEntry) -> NDArray[np.float32]:
    """Read a tensor from its file."""
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        data = np.frombuffer(file.read(entry.nbytes), np.uint8)
    kind = gguf.GGMLQuantizationType[entry.dtype.upper()]
    values: NDArray[np.float32] = gguf.dequantize(data, kind).reshape(entry.shape)
    return values


def package_controlnet(source: Path, target: Path) -> None:
    """Write the ControlNet at `source`, a diffusers folder, as a GGUF in diffusers' names.

    Kernels become matrices, whose shape is noted in the way of ComfyUI-GGUF. Rows that are no whole number of
    blocks stay f16, vectors f32.
    """
    plan = plan_control(source, plan_model(DEMO_MODEL))
    writer = gguf.GGUFWriter(str(target), "sd1")
    writer.add_name("Edges of shapes, for the demo model")
    writer.add_string(f"sdengine.config.{plan.name}", json.dumps(dict(plan.config)))
    for binding in plan.bindings:
        values = read_values(binding.entry)
        kind = _type_of(values.shape)
        if values.ndim > 2 and kind.name.lower() == WEIGHT_TYPE:
            writer.add_array(f"comfy.gguf.orig_shape.{binding.name}", list(values.shape))
            values = values.reshape(len(values), -1)
        writer.add_tensor(binding.name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _type_of(shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    """Return the type to store a parameter of this shape in."""
    wanted = gguf.GGMLQuantizationType[WEIGHT_TYPE.upper()]
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    fits = int(np.prod(shape[1:])) % gguf.GGML_QUANT_SIZES[wanted][0] == 0
    return wanted if fits else gguf.GGMLQuantizationType.F16


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "source", type=Path, help="a model (folder or GGUF), or a ControlNet's folder"
    )
    parser.add_argument("target", type=Path, help="the new GGUF file")
    options = parser.parse_args()
    is_model = options.source.is_file() or (options.source / "model_index.json").exists()
    (package if is_model else package_controlnet)(options.source, options.target)


if __name__ == "__main__":
    main()
