"""Make the file that the package holds, with colours for previews fitted to the demo's pictures.

::

    python -m demo.package runs/demo/export python/sdengine/data/demo.gguf
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

import sdengine
from demo.evaluate import GUIDANCE
from demo.shapes import draw, random_scene, training_triples
from sdengine.previews import Projection, fit_factors

WEIGHT_TYPE = "q8_0"
_BLOCK = 4
"""Latents along a side of a block whose mean colour is fitted.

The latents of this autoencoder tell the colour of a flat region at its edges; over 4 x 4 of them there is
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
        defaults={"guidance": GUIDANCE},
        preview=preview_colours(sdengine.load(source)),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="diffusers folder or GGUF file")
    parser.add_argument("target", type=Path, help="the new GGUF file")
    options = parser.parse_args()
    package(options.source, options.target)


if __name__ == "__main__":
    main()
