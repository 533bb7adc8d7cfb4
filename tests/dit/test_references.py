"""References: their sizes, who takes them, and what is written down about them."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine import ParameterError
from sdengine.families import FLUX, References
from sdengine.families.flux import KONTEXT_SIZES
from sdengine.metadata import format_parameters, parse_parameters
from sdengine.options import restored
from sdengine.picture_inputs import folded, reference_size, shrunk

from .conftest import Folders

PROMPT = "a red circle"
SMALL: dict[str, Any] = {
    "steps": 1,
    "seed": 1,
    "width": 32,
    "height": 48,
    "resize_references": False,
}


@pytest.fixture(scope="module")
def kontext(flux_folder: Folders) -> sdengine.Pipeline:
    return sdengine.load(flux_folder("FluxKontextPipeline"))


@pytest.fixture(scope="module")
def dev(flux_folder: Folders) -> sdengine.Pipeline:
    return sdengine.load(flux_folder("FluxPipeline"))


def test_sizes_are_those_of_diffusers() -> None:
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

    assert list(KONTEXT_SIZES) == PREFERRED_KONTEXT_RESOLUTIONS
    assert FLUX.references is not None
    by_area = References(multiple=32)
    for width, height in ((640, 480), (1, 1), (333, 1000), (4000, 90), (1024, 1025), (77, 78)):
        ratio = width / height
        nearest = min((abs(ratio - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
        assert reference_size((width, height), FLUX.references) == nearest[1:]
        expected = calculate_dimensions(1024 * 1024, ratio)[:2]
        assert reference_size((width, height), by_area) == expected
    assert reference_size((95, 33), FLUX.references, resized=False) == (80, 32)


def test_a_mask_is_folded_row_by_row() -> None:
    mask = np.arange(8 * 16, dtype=np.float32).reshape(1, 1, 8, 16)
    cells = folded(mask, 4)
    assert cells.shape == (1, 16, 2, 4)
    assert cells[0, :, 1, 2].tolist() == mask[0, 0, 4:8, 8:12].ravel().tolist()
    np.testing.assert_array_equal(cells.mean(axis=1, keepdims=True), shrunk(mask, 4))


def test_kontext_is_told_by_its_pipeline_or_its_name(
    kontext: sdengine.Pipeline, dev: sdengine.Pipeline, flux_folder: Folders, tmp_path: Path
) -> None:
    assert kontext.model.task == "reference"
    assert kontext.model.title == "FLUX.1 Kontext"
    assert kontext.model.defaults.guidance == 2.5
    assert dev.model.task == "text"
    named = tmp_path / "flux1-kontext-dev"
    shutil.copytree(flux_folder("FluxPipeline"), named)
    assert sdengine.load(named).model.task == "reference"
    written = tmp_path / "renamed.gguf"
    sdengine.convert(named, written, weight_type="f32")
    assert sdengine.load(written).model.task == "reference"


def test_an_image_is_the_one_reference(kontext: sdengine.Pipeline, photo: Image.Image) -> None:
    one = kontext.generate(PROMPT, image=photo, **SMALL)
    other = kontext.generate(PROMPT, references=[photo], **SMALL)
    np.testing.assert_array_equal(one.latents, other.latents)
    assert one.metadata[0]["reference_count"] == 1
    assert one.metadata[0]["task"] == "editing by reference"


def test_a_picture_says_how_it_was_made(kontext: sdengine.Pipeline, photo: Image.Image) -> None:
    run = kontext.start(PROMPT, references=[photo, photo], **SMALL)
    text = format_parameters(run.metadata()[0])
    assert "Task: editing by reference" in text
    assert "References: 2" in text
    found = restored(parse_parameters(text))
    again = kontext.start(PROMPT, references=[photo, photo], **found)
    assert again.parameters == run.parameters


def test_the_result_has_the_size_of_the_last_reference(
    kontext: sdengine.Pipeline, photo: Image.Image
) -> None:
    run = kontext.start(
        PROMPT, references=[photo, photo.resize((40, 64))], resize_references=False, steps=1
    )
    assert (run.parameters.width, run.parameters.height) == (32, 64)
    run = pickle.loads(pickle.dumps(run))
    run.step()
    assert run.latents.shape == (1, 16, 8, 4)


def test_every_picture_of_a_batch_sees_all_references(
    dev: sdengine.Pipeline, photo: Image.Image
) -> None:
    references = [photo, photo.rotate(180)]
    both = dev.generate(PROMPT, references=references, batch_size=2, **SMALL)
    single = dev.generate(PROMPT, references=references, **{**SMALL, "seed": 2})
    np.testing.assert_allclose(both.latents[1:], single.latents, atol=1e-5)
    swapped = dev.generate(PROMPT, references=references[::-1], batch_size=2, **SMALL)
    assert not np.allclose(both.latents, swapped.latents, atol=1e-5)


def test_kontext_repaints_beside_a_mask(kontext: sdengine.Pipeline, photo: Image.Image) -> None:
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, 48, 36))
    picture = photo.resize((32, 48))
    given = {**SMALL, "image": picture, "mask": mask.resize((32, 48))}
    made = kontext.generate(PROMPT, **given)
    kept = np.asarray(given["mask"]) == 0
    np.testing.assert_array_equal(np.asarray(made.image)[kept], np.asarray(picture)[kept])
    assert made.metadata[0]["reference_count"] == 1
    other = kontext.generate(PROMPT, references=photo, **given)
    assert not np.array_equal(made.latents, other.latents)


def test_bad_references(
    kontext: sdengine.Pipeline, dev: sdengine.Pipeline, flux_folder: Folders, photo: Image.Image
) -> None:
    with pytest.raises(
        ParameterError, match="Kontext edits a picture: give the one to edit as image="
    ):
        kontext.generate(PROMPT, **SMALL)
    with pytest.raises(ParameterError, match="image= or references=, not both"):
        kontext.generate(PROMPT, image=photo, references=photo, **SMALL)
    with pytest.raises(ParameterError, match="leave strength out"):
        kontext.generate(PROMPT, image=photo, strength=0.5, **SMALL)
    with pytest.raises(ParameterError, match="10 references were given; .* takes 1 to 9"):
        dev.generate(PROMPT, references=[photo] * 10, **SMALL)
    with pytest.raises(ParameterError, match="0 references"):
        dev.generate(PROMPT, references=[], **SMALL)
    with pytest.raises(ParameterError, match="9x9 is too small"):
        dev.generate(PROMPT, references=photo.resize((9, 9)), **SMALL)
    with pytest.raises(ParameterError, match="True or False, not 'no'"):
        dev.generate(PROMPT, references=photo, **{**SMALL, "resize_references": "no"})
    control = sdengine.load(flux_folder("FluxControlPipeline"))
    with pytest.raises(ParameterError, match="looks at no references"):
        control.generate(PROMPT, references=photo, control_images=photo, **SMALL)
    with pytest.raises(ParameterError, match="follows a picture: give control_images="):
        control.generate(PROMPT, **SMALL)
    with pytest.raises(ParameterError, match="loaded without a control network"):
        control.generate(PROMPT, control_images=[photo, photo], **SMALL)
    with pytest.raises(ParameterError, match="needs mask="):
        sdengine.load(flux_folder("FluxFillPipeline")).generate(PROMPT, image=photo, **SMALL)
    with pytest.raises(ParameterError, match="looks at no references"):
        sdengine.api.demo_pipeline().generate(PROMPT, references=photo)
