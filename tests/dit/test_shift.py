"""The time shift of flow models: the model's own, a recipe's, the caller's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import sdengine
from sdengine import ParameterError
from sdengine.metadata import format_parameters, parse_parameters
from sdengine.options import restored
from sdengine.steps import plan_steps

from .conftest import Folders

SIZE = {"width": 64, "height": 48}


def sigmas(pipe: sdengine.Pipeline, **options: object) -> list[float]:
    run = pipe.start("a red circle", steps=4, seed=1, **SIZE, **options)
    return list(plan_steps(pipe.model, run.parameters).schedule.sigmas)


def shifted(shift: float) -> list[float]:
    """Times from 1 to 1/4, shifted once (FLUX.1's schedule)."""
    times = np.array([1.0, 0.75, 0.5, 0.25, 0.0])
    return list(shift * times / (1 + (shift - 1) * times))


def test_the_caller_s_stands_for_every_size(flux_folder: Folders) -> None:
    pipe = sdengine.load(flux_folder("FluxPipeline"))
    np.testing.assert_allclose(sigmas(pipe, shift=3.0), shifted(3.0), rtol=1e-5)
    assert not np.allclose(sigmas(pipe), shifted(3.0), rtol=1e-2)
    run = pipe.start("a", steps=2, seed=1, shift=1.75, **SIZE)
    text = format_parameters(run.metadata()[0])
    assert "Shift: 1.75" in text
    assert restored(parse_parameters(text))["shift"] == 1.75


def test_a_recipe_s(flux_folder: Folders, tmp_path: Path) -> None:
    # The tensors are dev's, so the scheduler's shift depends on the size; the name says schnell.
    folder = tmp_path / "flux-merged-schnell"
    shutil.copytree(flux_folder("FluxPipeline"), folder)
    pipe = sdengine.load(folder)
    assert pipe.recipe is not None
    assert pipe.model.defaults.shift == pipe.recipe.shift == 1.0
    np.testing.assert_allclose(sigmas(pipe), shifted(1.0), rtol=1e-5)
    np.testing.assert_allclose(sigmas(pipe, shift=2.0), shifted(2.0), rtol=1e-5)
    written = tmp_path / "other.gguf"
    sdengine.convert(folder, written, weight_type="f16")
    assert sdengine.load(written).model.defaults.shift == 1.0


def test_a_recipe_s_guidance_is_what_the_denoiser_is_told(
    flux_folder: Folders, tmp_path: Path
) -> None:
    for name, guidance in (("flux1-kontext-dev", 2.5), ("flux1-dev", 3.5)):
        shutil.copytree(flux_folder("FluxPipeline"), tmp_path / name)
        assert sdengine.load(tmp_path / name).model.defaults.guidance == guidance


def test_bad_shifts(flux_folder: Folders, sd3_folder: Path) -> None:
    pipe = sdengine.load(flux_folder("FluxPipeline"))
    for shift in (0.0, -1.0, 1e6, "much", float("nan")):
        with pytest.raises(ParameterError, match="shift must"):
            pipe.start("a", steps=2, shift=shift, **SIZE)
    with pytest.raises(ParameterError, match="no flow model and has no shift"):
        sdengine.api.demo_pipeline().start("a", shift=3.0)
    sd3 = sdengine.load(sd3_folder)
    assert sigmas(sd3) == sigmas(sd3, shift=3.0)
