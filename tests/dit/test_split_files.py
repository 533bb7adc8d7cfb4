"""Every family of diffusion transformers from split files, packed into one GGUF, and what `inspect` says of each.

SD3 and FLUX.1 are in `test_layouts.py` too, with more layouts and with parts that do not fit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import sdengine
from tests.dit_models import tiny_flux_folder, tiny_sd3_folder
from tests.inventories import with_prefix
from tests.qwen_models import tiny_qwen_folder
from tests.renaming_dit import State, flux_to_bfl, sd3_to_reference

from . import hunyuan_models, lumina_models, pixart_models
from .hunyuan_models import NEW, OLD, tiny_hunyuan_folder
from .lumina_models import tiny_lumina_folder
from .pixart_models import ALPHA, SIGMA, tiny_pixart_folder

OPTIONS: dict[str, Any] = {"width": 64, "height": 32, "steps": 2, "seed": 5}


@dataclass(frozen=True)
class Made:
    """A tiny model of a family, and the publisher's names of its denoiser."""

    title: str
    folder: Callable[[Path], Path]
    original: Callable[[State], Mapping[str, Any]]


def pixart(config: Mapping[str, Any], pipeline: str) -> Callable[[Path], Path]:
    """With heads as wide as those of the published models, for no shape of a single file tells it."""
    heads = {"attention_head_dim": 72, "num_attention_heads": 1, "cross_attention_dim": 72}
    return lambda path: tiny_pixart_folder(path, {**config, **heads}, pipeline)


MODELS: dict[str, Made] = {
    "sd3": Made("Stable Diffusion 3", tiny_sd3_folder, sd3_to_reference),
    "flux": Made("FLUX.1 dev", tiny_flux_folder, flux_to_bfl),
    "flux_schnell": Made(
        "FLUX.1 schnell", lambda path: tiny_flux_folder(path, guidance=False), flux_to_bfl
    ),
    "qwen_image": Made("Qwen-Image", tiny_qwen_folder, dict),
    "lumina2": Made("Lumina-Image 2.0", tiny_lumina_folder, lumina_models.to_original),
    "pixart_sigma": Made(
        "PixArt-sigma",
        pixart(SIGMA, "PixArtSigmaPipeline"),
        pixart_models.to_original,
    ),
    "pixart_alpha": Made(
        "PixArt-alpha",
        pixart(ALPHA, "PixArtAlphaPipeline"),
        lambda state: pixart_models.to_original(state, 120),
    ),
    "hunyuan_dit": Made(
        "Hunyuan-DiT 1.2",
        lambda path: tiny_hunyuan_folder(path, NEW, 0.018),
        hunyuan_models.to_original,
    ),
    "hunyuan_dit_1_1": Made(
        "Hunyuan-DiT 1.1",
        lambda path: tiny_hunyuan_folder(path, OLD, 0.03),
        hunyuan_models.to_original,
    ),
}


def described(path: Path, family: str, missing: tuple[str, ...] = ()) -> sdengine.ModelInfo:
    """What `inspect` says of a file that is a model of this family."""
    info = sdengine.inspect(path)
    assert (info.family, info.title) == (family, MODELS[family].title)
    assert (info.reason, info.missing) == ("", missing)
    assert MODELS[family].title in str(info)
    assert all(name in str(info) for name in missing)
    return info


def latents(path: Path) -> np.ndarray:
    pipe = sdengine.load(path)
    assert pipe.model.unused == ()
    # A scheduler of a folder (PixArt's) may leave out a timestep, as diffusers' does; a single file has none.
    schedule = None if pipe.model.family.flow else "karras"
    return pipe.generate("a red circle", "blurry", schedule=schedule, **OPTIONS).latents


@pytest.mark.parametrize("family", MODELS)
def test_split_files_and_one_gguf_of_them(family: str, tmp_path: Path) -> None:
    folder = MODELS[family].folder(tmp_path / "folder")
    whole = described(folder, family)
    assert whole.not_understood == ()
    expected = latents(folder)

    parts, one = tmp_path / "parts", tmp_path / "alone" / "model.gguf"
    parts.mkdir()
    one.parent.mkdir()
    (file,) = (folder / "transformer").glob("*.safetensors")
    original = MODELS[family].original(load_file(file))
    model = parts / "denoiser.safetensors"
    save_file(
        with_prefix("model.diffusion_model.", {n: t.contiguous() for n, t in original.items()}),
        model,
    )
    for part in folder.iterdir():
        if part.name == "vae" or part.name.startswith(("text_encoder", "tokenizer")):
            shutil.copytree(part, parts / part.name)
    described(model, family, tuple(c.name for c in whole.components if c.name != "transformer"))
    encoders = {path.name: path for path in parts.glob("text_encoder*")}
    done = sdengine.convert(
        model, one, weight_type="f32", vae=parts / "vae", text_encoders=encoders
    )
    assert done.has_tokenizer
    shutil.rmtree(parts)
    shutil.rmtree(folder)
    packed = described(one, family)
    assert packed.not_understood == ()
    assert {c.name for c in packed.components} == {c.name for c in whole.components}
    np.testing.assert_allclose(latents(one), expected, rtol=1e-4, atol=1e-4)
