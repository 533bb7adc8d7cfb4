"""One tiny Stable Diffusion 1 model, in every layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import models


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_sd1_folder(tmp_path_factory.mktemp("loading") / "model", seed=3)


@pytest.fixture(scope="package")
def layouts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layout -> file; all but city96's hold the whole model."""
    out = tmp_path_factory.mktemp("layouts")
    return {
        "diffusers": folder,
        "ldm": models.write_ldm_safetensors(folder, out / "ldm.safetensors"),
        "ckpt": models.write_ldm_ckpt(folder, out / "ldm.ckpt"),
        "all-in-one": models.write_allinone_gguf(folder, out / "all.gguf", "f32"),
        "city96": models.write_city96_gguf(folder, out / "city96.gguf", "f32"),
        "city96-diffusers": models.write_city96_gguf(
            folder, out / "city96d.gguf", "f32", diffusers_names=True
        ),
    }
