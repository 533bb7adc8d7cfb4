"""Tiny FLUX.1 models of every kind, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dit_models import tiny_flux_folder, tiny_sd3_folder

Folders = Callable[[str], Path]

CHANNELS = {
    "FluxPipeline": 16,
    "FluxKontextPipeline": 16,
    "FluxControlPipeline": 32,
    "FluxFillPipeline": 96,
}


@pytest.fixture(scope="package")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The diffusers folder of a tiny model that this pipeline runs."""
    root = tmp_path_factory.mktemp("flux")

    @cache
    def get(pipeline: str) -> Path:
        path = root / pipeline
        return tiny_flux_folder(path, in_channels=CHANNELS[pipeline], pipeline=pipeline)

    return get


@pytest.fixture(scope="package")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The diffusers folder of a tiny SD3.5."""
    return tiny_sd3_folder(tmp_path_factory.mktemp("sd3") / "model")


@pytest.fixture(scope="package")
def photo() -> Image.Image:
    """A picture with structure at every scale, wider than high."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    fine = rng.integers(-30, 30, (72, 96, 3))
    pixels = np.asarray(coarse.resize((96, 72), Image.Resampling.BILINEAR), int) + fine
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
