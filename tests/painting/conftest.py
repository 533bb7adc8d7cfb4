"""Pictures, masks and tiny random models that the tests of painting share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dit_models import tiny_flux_folder, tiny_sd3_folder
from tests.unet_models import tiny_folder

Folders = Callable[[str], Path]


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A diffusers folder by its name: sd3, flux, or one of tests.unet_models."""
    root = tmp_path_factory.mktemp("painting")
    transformers = {"sd3": tiny_sd3_folder, "flux": tiny_flux_folder}

    @cache
    def get(name: str) -> Path:
        path = root / name
        return transformers[name](path) if name in transformers else tiny_folder(path, name)

    return get


def picture(width: int, height: int, seed: int = 0, channels: int = 3) -> Image.Image:
    """A picture with structure at every scale; four channels have transparency."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, channels), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR), int)
    fine = rng.integers(-40, 40, (height, width, channels))
    return Image.fromarray(np.clip(pixels + fine, 0, 255).astype(np.uint8))


def box_mask(size: tuple[int, int], *box: int) -> Image.Image:
    """White in a box (left, top, right, bottom), black elsewhere."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask
