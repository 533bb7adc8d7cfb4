"""Tiny models, each written once, and what reference runs of them have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dit_models import tiny_flux_folder, tiny_sd3_folder
from tests.unet_models import tiny_folder

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry, low quality"
SEED = 7
Folders = Callable[[str], Path]


def relative_error(found: np.ndarray, expected: Any) -> float:
    """Relative L2 error."""
    expected = np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("large")
    transformers = {"sd3": tiny_sd3_folder, "flux": tiny_flux_folder}

    @cache
    def get(name: str) -> Path:
        path = root / name
        return transformers[name](path) if name in transformers else tiny_folder(path, name, seed=3)

    return get


def reference(kind: str, folder: Path) -> Any:
    """A diffusers pipeline."""
    import diffusers

    absent: dict[str, Any] = {}
    if kind.startswith("StableDiffusion") and "3" not in kind:
        absent = {"feature_extractor": None, "image_encoder": None}
        if "XL" not in kind:
            absent |= {"safety_checker": None, "requires_safety_checker": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, kind).from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe
