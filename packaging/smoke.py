"""A picture from an installed sdengine: ``python smoke.py [DEVICE]``; the check after building a wheel."""

from __future__ import annotations

import sys

import numpy as np

import sdengine
from sdengine.api import DEMO_MODEL


def main() -> None:
    """Generate with the demo model and check that the picture is one."""
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    print([found.name for found in sdengine.devices()], sdengine.unusable_backends())
    pipe = sdengine.load(DEMO_MODEL, device=device)
    image = pipe.generate("a red circle on a blue background", seed=1, steps=8).image
    pixels = np.asarray(image, np.float32)
    if pixels[64, 64, 0] < pixels[64, 64, 2] or pixels[2, 2, 2] < pixels[2, 2, 0]:
        raise SystemExit(f"on {device} the circle is not red on blue")
    print(f"{device}: {image.size}, as it should be")


if __name__ == "__main__":
    main()
