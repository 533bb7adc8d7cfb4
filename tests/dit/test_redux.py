"""FLUX.1 Redux against diffusers and transformers: SigLIP's vision encoder, the projection, the whole pipeline."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sdengine
from sdengine import ParameterError, UnsupportedModelError
from sdengine.image_prompt import siglip_pixels
from tests.models import randomise
from tests.parity.conftest import relative_error
from tests.parity.dit import noise

from .conftest import Folders

PROMPT, NEGATIVE = "a red circle", "blurry"
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "image_size": 60,  # four pixels of each side fill no patch, as in the published encoder
    "patch_size": 14,
}
SMALL: dict[str, Any] = {"width": 64, "height": 48}
SEED = 7


def encoder() -> torch.nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(1)
    model = SiglipVisionModel(SiglipVisionConfig(**VISION)).eval()
    randomise(model, 1)
    return model


def projection() -> torch.nn.Module:
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    torch.manual_seed(2)
    model = ReduxImageEncoder(redux_dim=64, txt_in_features=32).eval()
    randomise(model, 2)
    return model


@pytest.fixture(scope="module")
def redux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of Redux."""
    from transformers import SiglipImageProcessor

    folder = tmp_path_factory.mktemp("redux") / "FLUX.1-Redux"
    encoder().save_pretrained(folder / "image_encoder")
    projection().save_pretrained(folder / "image_embedder")
    side = VISION["image_size"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = SiglipImageProcessor(size={"height": side, "width": side})
    processor.save_pretrained(folder / "feature_extractor")
    parts = {
        "_class_name": "FluxPriorReduxPipeline",
        "feature_extractor": ["transformers", "SiglipImageProcessor"],
        "image_embedder": ["flux", "ReduxImageEncoder"],
        "image_encoder": ["transformers", "SiglipVisionModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(parts), "utf-8")
    return folder


@pytest.fixture(scope="module")
def single(redux: Path) -> Path:
    """The projection as Black Forest Labs publish it, and the encoder's file as ComfyUI's users have it."""
    path = redux.parent / "flux1-redux-dev.safetensors"
    save_file(projection().state_dict(), path)
    state = {name: tensor.contiguous() for name, tensor in encoder().state_dict().items()}
    prefix = "" if "vision_model.post_layernorm.weight" in state else "vision_model."
    save_file({prefix + n: t for n, t in state.items()}, redux.parent / "sigclip.safetensors")
    return path


def test_networks(flux_folder: Folders, redux: Path) -> None:
    pipe = sdengine.load(flux_folder("FluxPipeline"), ip_adapter=redux)
    assert pipe.image_prompt is not None
    pixels = noise(2, 3, 60, 60)
    with torch.no_grad():
        seen = encoder()(torch.tensor(pixels)).last_hidden_state
        tokens = projection()(seen).image_embeds
    found = pipe.image_prompt.encoder.run({"pixels": pixels})
    assert found["features"].shape == (2, 16, 64)
    assert relative_error(found["features"], seen.numpy()) <= 1e-4
    assert relative_error(pipe.image_prompt.projection.run(found)["tokens"], tokens.numpy()) <= 1e-4
    with pytest.raises(ParameterError, match="reads pictures"):
        pipe.image_prompt.encoder.run({"pixels": noise(1, 3, 56, 56)})
    with pytest.raises(ParameterError, match="features of width 64"):
        pipe.image_prompt.projection.run({"features": noise(1, 4, 32)})


def test_pictures_are_read_as_siglip_reads_them(photo: Image.Image) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(size={"height": 384, "width": 384})
    expected = np.asarray(processor(photo, return_tensors="np")["pixel_values"])
    assert relative_error(siglip_pixels(photo), expected) <= 1e-3


@pytest.mark.parametrize("layout", ["folder", "single"])
def test_pipeline(
    flux_folder: Folders, redux: Path, single: Path, photo: Image.Image, layout: str
) -> None:
    import diffusers

    folder = flux_folder("FluxPipeline")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.FluxPipeline.from_pretrained(folder)
        prior = diffusers.FluxPriorReduxPipeline(
            encoder(),
            diffusers.image_processor.VaeImageProcessor(),
            projection(),
            pipe.text_encoder,
            pipe.tokenizer,
            pipe.text_encoder_2,
            pipe.tokenizer_2,
        )
        # A file without config.json does not say that there is a border.
        pixels = torch.tensor(siglip_pixels(photo, 56 if layout == "single" else 60))
        prior.feature_extractor.preprocess = lambda **_: _Pixels(pixel_values=pixels)
        seen = prior(photo, prompt=PROMPT)
        pipe.set_progress_bar_config(disable=True)
        made = pipe(
            **seen,
            negative_prompt=NEGATIVE,
            true_cfg_scale=2.0,
            num_inference_steps=4,
            guidance_scale=2.5,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **SMALL,
        ).images
    expected = pipe._unpack_latents(made, SMALL["height"], SMALL["width"], 8).numpy()
    given = {"ip_adapter": redux}
    if layout == "single":
        given = {"ip_adapter": single, "image_encoder": single.parent / "sigclip.safetensors"}
    ours = sdengine.load(folder, **given)
    options = {"steps": 4, "guidance_scale": 2.5, "true_cfg_scale": 2.0, "seed": SEED, **SMALL}
    found = ours.generate(PROMPT, NEGATIVE, ip_images=photo, **options)
    assert relative_error(found.latents, expected) <= 1e-4
    without = ours.generate(PROMPT, NEGATIVE, ip_scale=0, **options)
    assert relative_error(without.latents, expected) > 1e-3


class _Pixels(dict):  # type: ignore[type-arg]
    """What a feature extractor returns."""

    def to(self, **_: Any) -> _Pixels:
        return self


def test_strength_is_a_factor_of_the_tokens(
    flux_folder: Folders, redux: Path, photo: Image.Image
) -> None:
    pipe = sdengine.load(flux_folder("FluxPipeline"), ip_adapter=redux)
    assert pipe.image_prompt is not None
    given = {"ip_images": [photo, photo.rotate(180)], "ip_scale": 1.0}
    whole = pipe.image_prompt.read(given, 2)
    half = pipe.image_prompt.read({**given, "ip_scale": 0.5}, 2)
    np.testing.assert_allclose(whole.tokens * 0.5, half.tokens, rtol=1e-6)
    assert not np.allclose(whole.tokens[0], whole.tokens[1])
    text = noise(2, 5, 32)
    assert whole.inputs(text, False)["context"].shape == (2, 5 + 16, 32)
    assert whole.inputs(text, True)["context"] is text


def test_bad_redux(
    flux_folder: Folders, sd3_folder: Path, redux: Path, single: Path, tmp_path: Path
) -> None:
    folder = flux_folder("FluxPipeline")
    with pytest.raises(ParameterError, match="loaded with FLUX.1 Redux: give ip_images="):
        sdengine.load(folder, ip_adapter=redux).generate(PROMPT, steps=1, **SMALL)
    with pytest.raises(UnsupportedModelError, match="this is FLUX.1 Redux.*as ip_adapter="):
        sdengine.load(single)
    alone = tmp_path / "redux.safetensors"
    shutil.copy(single, alone)
    with pytest.raises(ParameterError, match="needs a SigLIP vision encoder"):
        sdengine.load(folder, ip_adapter=alone)
    with pytest.raises(ParameterError, match="does not hold a SigLIP vision encoder"):
        sdengine.load(folder, ip_adapter=alone, image_encoder=folder)
    with pytest.raises(ParameterError, match="takes no Redux; FLUX.1 does"):
        sdengine.load(sd3_folder, ip_adapter=redux)
    save_file(
        {
            "redux_up.weight": torch.zeros(6, 64),
            "redux_up.bias": torch.zeros(6),
            "redux_down.weight": torch.zeros(2, 6),
            "redux_down.bias": torch.zeros(2),
        },
        alone,
    )
    with pytest.raises(ParameterError, match="its tokens are 2 wide, expected 32"):
        sdengine.load(folder, ip_adapter=alone)
