"""Upscalers against torch, float32: relative L2 error <= 1e-4."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdengine import _core
from sdengine.upscalers import load_upscaler
from tests.upscaler_models import MODELS, Weights, bsrgan_names, esrgan_names, make, write

from .conftest import relative_error

LIMIT = 1e-4
SIZES = {"even": (1, 16, 24), "odd": (1, 17, 13), "batch": (2, 11, 9)}


def picture(batch: int, channels: int, height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(height * width)
    return random.random((batch, channels, height, width), dtype=np.float32)


def run(path: Path, image: np.ndarray, **tiling: int) -> np.ndarray:
    upscaler = load_upscaler(path)
    grid = upscaler.plan.grid if tiling else 1
    return _core.upscale_image(upscaler.network, image, upscaler.scale, grid, **tiling)


def expected(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(image)).numpy()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_networks(tmp_path: Path, name: str, size: tuple[int, int, int]) -> None:
    model = make(name)
    image = picture(size[0], 1 if "grey" in name else 3, *size[1:])
    path = write(tmp_path / "model.safetensors", model)
    found = run(path, image)
    assert load_upscaler(path).scale == int(name[-1]) if name[-1].isdigit() else 4
    assert relative_error(found, expected(model, image)) <= LIMIT


@pytest.mark.parametrize("names", [dict, bsrgan_names, esrgan_names])
@pytest.mark.parametrize("name", ["rrdb-x2", "rrdb-x8", "rrdb-plus"])
def test_names_of_every_release(
    tmp_path: Path, name: str, names: Callable[[Weights], Weights]
) -> None:
    model, image = make(name), picture(1, 3, 10, 8)
    found = run(write(tmp_path / "model.pth", model, names), image)
    assert relative_error(found, expected(model, image)) <= LIMIT


@pytest.mark.parametrize("name", ["rrdb-x4", "rrdb-x2", "srvgg-x4"])
def test_tiles_equal_the_whole(tmp_path: Path, name: str) -> None:
    image = picture(1, 3, 90, 74)
    path = write(tmp_path / "model.safetensors", make(name))
    grid = load_upscaler(path).plan.grid
    whole = run(path, image)
    tiled = run(path, image, tile=64 // grid, overlap=32 // grid)
    assert np.abs(tiled - whole).max() <= 1e-3 * np.abs(whole).max()
    # The margin matters: without one the tiles' edges are seen.
    assert np.abs(run(path, image, tile=64 // grid) - whole).max() > 1e-3 * np.abs(whole).max()


def test_windows_see_their_shifted_neighbours(tmp_path: Path) -> None:
    # A change in one window reaches the next by the shifted blocks, and by them only as far as half a window.
    model = make("swinir-classical-x2")
    path = write(tmp_path / "model.safetensors", model)
    image = picture(1, 3, 32, 32)
    changed = image.copy()
    changed[:, :, :8, :8] = 0
    difference = np.abs(run(path, changed) - run(path, image))
    assert relative_error(run(path, changed), expected(model, changed)) <= LIMIT
    assert difference[:, :, 20:24, 20:24].max() > 0


# ------------------------------ the reference itself
@pytest.fixture
def spandrel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """spandrel, whose other architectures import three names of torchvision that are never used here."""
    if importlib.util.find_spec("torchvision") is None:
        stand_in: Any = types.ModuleType("torchvision")
        stand_in.InterpolationMode = stand_in.rotate = stand_in.normalize = object
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            monkeypatch.setitem(sys.modules, name, stand_in)
    return importlib.import_module("spandrel")


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"rrdb-narrow-x4"}))  # it has one growth only
def test_references_equal_spandrel(spandrel: Any, name: str) -> None:
    model = make(name)
    weights = dict(model.state_dict())
    if name == "rrdb-plus":
        weights = esrgan_names(weights)  # the release that has this network
    theirs = spandrel.ModelLoader(device="cpu").load_from_state_dict(weights).model.eval()
    image = picture(1, 1 if "grey" in name else 3, 16, 24)
    assert relative_error(expected(model, image), expected(theirs, image)) <= 1e-6
