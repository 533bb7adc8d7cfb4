"""Tiny and KL autoencoders against diffusers, float32: relative L2 error <= 1e-4."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file, save_file

import sdengine
from sdengine import _core
from sdengine.autoencoder import Autoencoder
from sdengine.devices import open_device
from sdengine.errors import ParameterError, WeightsError
from sdengine.families.sd1 import TINY_AUTOENCODER
from sdengine.formats import open_index
from sdengine.loading import ComponentPlan
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of
from sdengine.loading.locate import locate
from tests.models import component_state_dict
from tests.renaming import vae_to_ldm

from .conftest import relative_error
from .reference_autoencoders import (
    REDUCED,
    kl_reference,
    open_autoencoder,
    original_names,
    tiny_reference,
)

LIMIT = 1e-4
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def picture(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def decoded(module: torch.nn.Module, latents: np.ndarray, scale: float = 1.0) -> np.ndarray:
    with torch.no_grad():
        return module.decode(torch.tensor(latents) / scale).sample.numpy()


# ---------------------------------------------------------------------------------------- tiny
@pytest.mark.parametrize(
    ("config", "factor"), [({}, 8), (REDUCED, 4)], ids=["published", "reduced"]
)
def test_tiny(sd1_folder: Path, tmp_path: Path, config: dict[str, object], factor: int) -> None:
    module = tiny_reference(seed=5, **config)
    module.save_pretrained(tmp_path)
    vae = open_autoencoder(sd1_folder, tmp_path, factor)
    latents = 2 * noise(2, 4, 5, 7)  # beyond the soft bound of 3 here and there
    assert relative_error(vae.decode(latents), decoded(module, latents)) <= LIMIT
    image = picture(1, 3, 6 * factor, 5 * factor)
    with torch.no_grad():
        expected = module.encode(torch.tensor(image)).latents.numpy()
    assert relative_error(vae.encode(image), expected) <= LIMIT
    assert np.array_equal(vae.encode(image, seed=3), vae.encode(image))


def test_sixteen_channels(tmp_path: Path) -> None:
    # TAESD3 and TAEF1. No family that is built in here takes such latents, so the parts are asked.
    module = tiny_reference(seed=6, latent_channels=16, **REDUCED)
    module.save_pretrained(tmp_path)
    located = locate(open_index(tmp_path), TINY_AUTOENCODER)
    assert located is not None
    config = config_of(located, sdengine.families.SD1)
    bindings, unused = bind(located, _core.parameters("autoencoder_tiny", config))
    assert unused == ()
    plan = ComponentPlan("vae", "autoencoder_tiny", config, bindings, tmp_path, "diffusers")
    vae = Autoencoder(plan, 4, open_device("cpu"))
    latents, image = noise(1, 16, 6, 5), picture(1, 3, 24, 20)
    assert relative_error(vae.decode(latents), decoded(module, latents)) <= LIMIT
    with torch.no_grad():
        expected = module.encode(torch.tensor(image)).latents.numpy()
    assert relative_error(vae.encode(image), expected) <= LIMIT


def test_layers_with_absurd_numbers_are_refused(sd1_folder: Path, tmp_path: Path) -> None:
    _, decoder = original_names(tiny_reference())
    decoder["99999999999999.weight"] = decoder["7.weight"].clone()
    save_file(decoder, str(tmp_path / "odd.safetensors"))
    with pytest.raises(WeightsError):
        sdengine.load(sd1_folder, vae=tmp_path / "odd.safetensors")


def test_what_inspect_and_load_say(tmp_path: Path) -> None:
    _, decoder = pair(tiny_reference(), tmp_path, "safetensors")
    info = sdengine.inspect(decoder)
    assert "a tiny autoencoder (TAESD) without a denoiser" in info.reason
    assert [part.dialect for part in info.components] == ["TAESD decoder"]
    with pytest.raises(sdengine.UnsupportedModelError, match="vae="):
        sdengine.load(decoder)


def pair(module: torch.nn.Module, folder: Path, suffix: str) -> list[Path]:
    files = []
    for half, state in zip(("encoder", "decoder"), original_names(module), strict=True):
        files.append(folder / f"taesd_{half}.{suffix}")
        if suffix == "pth":
            torch.save(state, files[-1])
        else:
            save_file(state, str(files[-1]))
    return files


def one_file(module: torch.nn.Module, path: Path, encoder: str, decoder: str) -> Path:
    halves = zip((encoder, decoder), original_names(module), strict=True)
    state = {prefix + name: tensor for prefix, half in halves for name, tensor in half.items()}
    save_file(state, str(path))
    return path


def test_every_layout_of_a_tiny_autoencoder(sd1_folder: Path, tmp_path: Path) -> None:
    module = tiny_reference(seed=7)
    module.save_pretrained(tmp_path / "folder")
    diffusers = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    prefixed = {f"first_stage_model.{name}": t for name, t in load_file(diffusers).items()}
    save_file(prefixed, str(tmp_path / "stage.safetensors"))
    layouts = {
        "folder": tmp_path / "folder",
        "diffusers file": diffusers,
        "prefixed": tmp_path / "stage.safetensors",
        "pth pair": pair(module, tmp_path, "pth"),
        "safetensors pair, decoder first": pair(module, tmp_path, "safetensors")[::-1],
        "one file": one_file(module, tmp_path / "a.safetensors", "encoder.", "decoder."),
        "one file, taesd": one_file(
            module, tmp_path / "b.safetensors", "taesd_encoder.", "taesd_decoder."
        ),
    }
    latents, image = noise(1, 4, 3, 4), picture(1, 3, 16, 24)
    expected = decoded(module, latents)
    with torch.no_grad():
        encoded = module.encode(torch.tensor(image)).latents.numpy()
    for name, path in layouts.items():
        vae = open_autoencoder(sd1_folder, path)
        assert relative_error(vae.decode(latents), expected) <= LIMIT, name
        assert relative_error(vae.encode(image), encoded) <= LIMIT, name


def test_a_decoder_alone_decodes_and_says_what_encoding_needs(
    sd1_folder: Path, tmp_path: Path
) -> None:
    module = tiny_reference(seed=8)
    encoder, decoder = pair(module, tmp_path, "safetensors")
    pipe = sdengine.load(sd1_folder, vae=decoder)
    latents = noise(1, 4, 4, 4)
    found = pipe.decode_latents(latents, output_type="numpy")
    assert relative_error(found, decoded(module, latents)) <= LIMIT
    assert pipe.generate("a fox", steps=1, width=32, height=32, seed=1).images[0].size == (32, 32)
    with pytest.raises(WeightsError, match=r"only the decoder .* vae=\[encoder file, decoder file"):
        pipe.encode_image(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ParameterError):
        sdengine.load(sd1_folder, vae=encoder)
    with pytest.raises(ParameterError, match="same half"):
        sdengine.load(sd1_folder, vae=[decoder, decoder])
    with pytest.raises(ParameterError, match="expected two"):
        sdengine.load(sd1_folder, vae=[decoder])
    with pytest.raises(ParameterError, match="no half of a tiny autoencoder"):
        sdengine.load(sd1_folder, vae=[sd1_folder / "vae", decoder])


def test_a_model_with_a_tiny_autoencoder_converts(sd1_folder: Path, tmp_path: Path) -> None:
    # As SDXS ships it: in the place of the usual one.
    module = tiny_reference(seed=9)
    shutil.copytree(sd1_folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "vae")
    module.save_pretrained(tmp_path / "model" / "vae")
    sdengine.convert(tmp_path / "model", tmp_path / "model.gguf", "f32")
    latents = noise(1, 4, 4, 6)
    for path in (tmp_path / "model", tmp_path / "model.gguf"):
        found = open_autoencoder(path).decode(latents)
        assert relative_error(found, decoded(module, latents)) <= LIMIT


# ------------------------------------------------------------------------------------------ KL
def test_a_posterior_is_sampled_as_diffusers_does(sd1_folder: Path) -> None:
    module = AutoencoderKL.from_pretrained(sd1_folder / "vae").eval()
    image = picture(2, 3, 40, 24)
    with torch.no_grad():
        posterior: DiagonalGaussianDistribution = module.encode(torch.tensor(image)).latent_dist
        generators = [torch.Generator().manual_seed(7 + i) for i in range(2)]
        expected = posterior.sample(generators).numpy() * module.config.scaling_factor
    vae = open_autoencoder(sd1_folder)
    assert relative_error(vae.encode(image, seed=7), expected) <= LIMIT
    mean, deviation = vae.posterior(image)
    assert np.array_equal(mean, vae.encode(image))
    drawn = sdengine.random.normal([1, *mean.shape[1:]], 8)
    assert np.array_equal(drawn, torch.randn(drawn.shape, generator=generators[0].manual_seed(8)))
    assert np.array_equal(vae.encode(image, seed=7)[1:], mean[1:] + deviation[1:] * drawn)


def test_log_variance_is_bounded(sd1_folder: Path, tmp_path: Path) -> None:
    module = kl_reference(seed=4)
    with torch.no_grad():
        module.quant_conv.bias[4:] = torch.tensor([-100.0, 100.0, 0.0, 30.0])
    module.save_pretrained(tmp_path)
    _, deviation = open_autoencoder(sd1_folder, tmp_path).posterior(picture(1, 3, 16, 16))
    found = deviation / 0.18215
    assert np.allclose(found[:, 0], np.exp(-15.0), rtol=1e-5)
    assert np.allclose(found[:, [1, 3]], np.exp(10.0), rtol=1e-5)


def test_activations_beyond_half_precision(sd1_folder: Path, tmp_path: Path) -> None:
    # SDXL's decoder does that: its residual stream passes 65504, the largest half float.
    module = kl_reference(seed=2)
    largest = 0.0

    def watch(_module: object, _inputs: object, output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, float(output.abs().max()))

    with torch.no_grad():
        module.decoder.conv_in.weight *= 1e6
    module.decoder.up_blocks[-1].register_forward_hook(watch)
    module.save_pretrained(tmp_path)
    latents = noise(1, 4, 4, 4)
    expected = decoded(module, latents, 0.18215)
    assert largest > 65504
    found = open_autoencoder(sd1_folder, tmp_path).decode(latents)
    assert np.isfinite(found).all()
    assert relative_error(found, expected) <= LIMIT


def test_half_float_files_give_the_same_scale(sd1_folder: Path, tmp_path: Path) -> None:
    state = {n: t.half() for n, t in component_state_dict(sd1_folder, "vae").items()}
    save_file(state, str(tmp_path / "half.safetensors"))
    image, latents = picture(1, 3, 32, 32), noise(1, 4, 4, 4)
    full, half = (
        open_autoencoder(sd1_folder),
        open_autoencoder(sd1_folder, tmp_path / "half.safetensors"),
    )
    assert half.scale == full.scale
    assert relative_error(half.encode(image), full.encode(image)) <= 2e-3
    assert relative_error(half.decode(latents), full.decode(latents)) <= 2e-3


def test_every_layout_of_a_kl_autoencoder(sd1_folder: Path, tmp_path: Path) -> None:
    module = kl_reference(seed=3)
    module.save_pretrained(tmp_path / "folder")
    state = load_file(tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    ldm = vae_to_ldm(state)
    layouts = {"folder": tmp_path / "folder"}
    for name, tensors in (("diffusers", state), ("ldm", ldm)):
        for prefix in ("", "first_stage_model.", "vae."):
            layouts[f"{name} {prefix}"] = tmp_path / f"{name}{prefix}safetensors"
            save_file(
                {prefix + n: t.contiguous() for n, t in tensors.items()},
                str(layouts[f"{name} {prefix}"]),
            )
    torch.save({"state_dict": ldm}, tmp_path / "vae.pt")
    layouts["torch"] = tmp_path / "vae.pt"
    latents = noise(1, 4, 3, 5)
    expected = decoded(module, latents, 0.18215)
    for name, path in layouts.items():
        found = open_autoencoder(sd1_folder, path).decode(latents)
        assert relative_error(found, expected) <= LIMIT, name


def test_another_models_autoencoder(sd1_folder: Path, tmp_path: Path) -> None:
    kl_reference(latent_channels=16).save_pretrained(tmp_path / "wide")
    with pytest.raises(WeightsError, match="latents of 16 channels, .* takes 4"):
        sdengine.load(sd1_folder, vae=tmp_path / "wide")
    tiny_reference(latent_channels=16).save_pretrained(tmp_path / "tiny")
    with pytest.raises(WeightsError, match="latents of 16 channels, .* takes 4"):
        sdengine.load(sd1_folder, vae=tmp_path / "tiny")
    kl_reference(scaling_factor=0.13025).save_pretrained(tmp_path / "xl")
    with pytest.raises(
        WeightsError, match=r"scaled by 0\.13025.*Stable Diffusion 1\.x by 0\.18215"
    ):
        sdengine.load(sd1_folder, vae=tmp_path / "xl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdengine.load(sd1_folder, vae=sd1_folder / "vae")


def test_weights_may_leave_memory(sd1_folder: Path) -> None:
    vae = open_autoencoder(sd1_folder)
    latents = noise(1, 4, 4, 4)
    expected = vae.decode(latents)
    vae.decoder.release_weights()
    assert np.array_equal(vae.decode(latents), expected)
