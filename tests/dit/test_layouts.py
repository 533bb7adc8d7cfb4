"""SD3 and FLUX.1 from eight-bit files, all-in-one GGUFs and split files: the same model comes out of each."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdengine
from sdengine import FormatError, ParameterError, TokenizerError, WeightsError
from tests.parity.conftest import relative_error
from tests.renaming import vae_to_ldm
from tests.unet_models import dequantized, write_gguf, write_safetensors

from .conftest import Folders
from .layouts import (
    COMFYUI,
    DENOISER,
    E4M3,
    GPUSTACK,
    all_in_one,
    denoiser,
    encoders,
    scaled,
    states,
    written,
)

FAMILIES = ("sd3", "flux")
OPTIONS: dict[str, Any] = {"width": 32, "height": 48, "steps": 1, "seed": 5}


@pytest.fixture(scope="module")
def folders(sd3_folder: Path, flux_folder: Folders) -> dict[str, Path]:
    return {"sd3": sd3_folder, "flux": flux_folder("FluxPipeline")}


def latents(path: Path, **given: Any) -> np.ndarray:
    return sdengine.load(path, **given).generate("a red circle", "blurry", **OPTIONS).latents


# ------------------------------ eight bits
@pytest.mark.parametrize(
    "names", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_eight_bits(
    family: str, names: tuple[str, str], folders: dict[str, Path], tmp_path: Path
) -> None:
    whole = all_in_one(folders[family], COMFYUI)
    prefixes = (DENOISER, f"{COMFYUI[family][-1]}transformer.")
    stored, left = scaled(whole, prefixes, *names)
    path = written(stored, tmp_path / "a" / "model.safetensors", folders[family])
    plain = written(left, tmp_path / "b" / "model.safetensors", folders[family])
    pipe = sdengine.load(path)
    assert pipe.model.unused == ()
    # Eight bits times a factor are held as f16, whose rounding is the only difference.
    found, expected = latents(path), latents(plain)
    assert 0 < relative_error(found, expected) <= 1e-3
    assert relative_error(found, latents(folders[family])) > 2e-3
    converted = tmp_path / "model.gguf"
    sdengine.convert(path, converted, weight_type="f32")
    assert relative_error(latents(converted), expected) <= 1e-5


def test_eight_bits_without_factors(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["flux"], folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = states(folder)["transformer"]
    stored = {n: t.to(E4M3) if t.ndim == 2 else t for n, t in state.items()}
    save_file(stored, file)
    found = latents(folder)
    save_file({n: t.float() for n, t in stored.items()}, file)
    np.testing.assert_allclose(found, latents(folder), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (torch.tensor(float("nan")), "a factor of nan"),
        (torch.tensor(-1.0), "a factor of -1.0"),
        (torch.ones(64, 1), r"of f32 \[64, 1\]; expected one number per 8-bit weight"),
        (torch.ones((), dtype=torch.float64), "of f64"),
    ],
)
def test_bad_factors(factor: torch.Tensor, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.ones(2, 2).to(E4M3), "a.scale_weight": factor}, path)
    with pytest.raises(FormatError, match=message):
        sdengine.load(path)


# ------------------------------ one file, and nothing else
@pytest.mark.parametrize("family", FAMILIES)
def test_all_in_one_gguf(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    whole = all_in_one(folders[family], GPUSTACK)
    path = tmp_path / "a" / "model.gguf"
    written(whole, path, folders[family], lambda s, p: write_gguf(s, p, "q4_0"))
    plain = written({}, tmp_path / "b" / "model.safetensors", folders[family])
    dequantized(path, plain)
    pipe = sdengine.load(path)
    assert pipe.model.unused == ()
    found = latents(path)
    assert relative_error(found, latents(plain)) <= 1e-3
    assert relative_error(found, latents(folders[family])) > 2e-3


def test_a_gguf_without_tokenizers(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gpustack publishes SD3.5: the tokenizers are given by name, or found in the hub's cache."""
    folder, path = folders["sd3"], tmp_path / "alone" / "model.gguf"
    path.parent.mkdir()
    write_gguf(all_in_one(folder, GPUSTACK), path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    clip = {"clip_l": folder / "tokenizer", "clip_g": folder / "tokenizer_2"}
    expected = latents(folder)
    found = latents(path, tokenizer={**clip, "t5xxl": folder / "tokenizer_3"})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(TokenizerError, match=r"tokenizer=\{'text_encoder_3': its folder\}"):
        sdengine.load(path, tokenizer=clip)
    with pytest.raises(ParameterError, match="has no 'gemma'; it has"):
        sdengine.load(path, tokenizer={"gemma": folder / "tokenizer_3"})
    whole = tmp_path / "whole.gguf"
    sdengine.convert(
        path, whole, weight_type="f32", tokenizer={**clip, "t5xxl": folder / "tokenizer_3"}
    )
    np.testing.assert_allclose(latents(whole), expected, rtol=1e-4, atol=1e-4)
    cached = tmp_path / "hub" / "models--google--t5-v1_1-xxl" / "snapshots" / "1"
    shutil.copytree(folder / "tokenizer_3", cached)
    np.testing.assert_allclose(latents(path, tokenizer=clip), expected, rtol=1e-4, atol=1e-4)


# ------------------------------ split files
def split(folder: Path, target: Path) -> dict[str, Path]:
    """The files that users collect: the denoiser, each text encoder, the autoencoder."""
    names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
    if "text_encoder_3" not in states(folder):
        names["text_encoder_2"] = "t5xxl"
    target.mkdir(exist_ok=True)
    parts = states(folder)
    found = {
        names[e]: write_safetensors(parts[e], target / f"{names[e]}.safetensors")
        for e in encoders(folder)
    }
    found["model"] = write_safetensors(denoiser(folder), target / "unet.safetensors")
    found["vae"] = write_safetensors(vae_to_ldm(parts["vae"]), target / "ae.safetensors")
    for tokenizer in folder.glob("tokenizer*"):
        shutil.copytree(tokenizer, target / tokenizer.name)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_split_files_and_one_gguf_of_them(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    files = split(folders[family], tmp_path / "parts")
    model, vae = files.pop("model"), files.pop("vae")
    expected = latents(folders[family])
    np.testing.assert_allclose(
        latents(model, vae=vae, text_encoders=files), expected, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        latents(model, vae=vae, text_encoders=list(files.values())), expected, rtol=1e-4, atol=1e-4
    )
    one = tmp_path / "alone" / "model.gguf"
    one.parent.mkdir()
    done = sdengine.convert(model, one, weight_type="f32", vae=vae, text_encoders=files)
    assert done.has_tokenizer
    shutil.rmtree(tmp_path / "parts")
    np.testing.assert_allclose(latents(one), expected, rtol=1e-4, atol=1e-4)


def test_wrong_parts(folders: dict[str, Path], tmp_path: Path) -> None:
    files = split(folders["sd3"], tmp_path / "sd3")
    others = split(folders["flux"], tmp_path / "flux")
    given = {n: files[n] for n in ("clip_l", "clip_g")}
    with pytest.raises(ParameterError, match="has no 'gemma'; it has .*clip_l"):
        sdengine.load(
            files["model"], vae=files["vae"], text_encoders={**given, "gemma": files["t5xxl"]}
        )
    # A T5 of another size, too wide for FLUX.1 and too narrow for SD3.
    with pytest.raises(
        WeightsError, match="make a context of 2048 columns: .*The denoiser reads 2080"
    ):
        sdengine.load(
            files["model"],
            vae=files["vae"],
            text_encoders={**given, "t5xxl": others["t5xxl"]},
        )
    with pytest.raises(
        WeightsError, match="make a context of 2080 columns: .*The denoiser reads 32"
    ):
        sdengine.load(
            others["model"],
            vae=others["vae"],
            text_encoders={"clip_l": others["clip_l"], "t5xxl": files["t5xxl"]},
        )
    with pytest.raises(ParameterError, match="holds no text_encoder_2 of FLUX.1 dev: this is"):
        sdengine.load(
            others["model"],
            vae=others["vae"],
            text_encoders={"clip_l": others["clip_l"], "t5xxl": files["clip_g"]},
        )
    with pytest.raises(WeightsError, match="also needs a CLIP ViT-L text encoder and"):
        sdengine.load(files["model"])
