"""Tiny random Stable Diffusion 1 models, as folders that both sdengine and diffusers load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.models import tiny_sd1_folder


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error."""
    assert found.shape == expected.shape
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    return float(difference / np.linalg.norm(expected.astype(np.float64)))


@pytest.fixture(scope="package")
def sd1_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd1_folder(tmp_path_factory.mktemp("sd1") / "model", seed=1)


@pytest.fixture(
    scope="package",
    params=[(4, False), (4, True), (8, False), (9, False)],
    ids=["conv", "linear", "pix2pix-8", "inpaint-9"],
)
def sd1_variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    channels, linear = request.param
    folder = tmp_path_factory.mktemp("variant") / "model"
    return tiny_sd1_folder(folder, seed=2, in_channels=channels, linear_projection=linear)
