"""IP-Adapters against diffusers and transformers: the vision encoder, base and plus, whole pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

import sdengine
from sdengine import _core
from sdengine.errors import ParameterError, UnsupportedModelError
from sdengine.image_prompt import clip_pixels
from tests.unet_models import write_gguf, write_safetensors

from .conftest import Folders, noise, picture, relative_error
from .models import VISION, build_vision, flat, ip_adapter_state
from .test_pipelines import FIRST, LIMIT, NEGATIVE, PROMPT, SECOND, generate, reference

KINDS = {"base": False, "plus": True}
Adapters = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def adapters(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """Adapter files by model and kind, the vision encoder in the folder beside them."""
    root = tmp_path_factory.mktemp("ip")
    build_vision().save_pretrained(root / "image_encoder")

    def get(model: str, kind: str) -> Path:
        path = root / f"{model}-{kind}.safetensors"
        if not path.exists():
            unet = UNet2DConditionModel.from_pretrained(folders[model] / "unet")
            write_safetensors(flat(ip_adapter_state(unet, KINDS[kind])), path)
        return path

    return get


def test_vision_encoder(folders: Folders, adapters: Adapters) -> None:
    pipe = sdengine.load(folders["sd1"], ip_adapter=adapters("sd1", "base"))
    assert pipe.image_prompt is not None
    pixels = noise(2, 3, 56, 56)
    with torch.no_grad():
        expected = build_vision()(torch.tensor(pixels), output_hidden_states=True)
    found = pipe.image_prompt.encoder.run({"pixels": pixels})
    assert relative_error(found["embedding"], expected.image_embeds.numpy()) <= 1e-4
    assert relative_error(found["penultimate"], expected.hidden_states[-2].numpy()) <= 1e-4
    short = pipe.image_prompt.encoder.run({"pixels": pixels}, {"pooled": 0})
    assert np.array_equal(short["penultimate"], found["penultimate"])
    with pytest.raises(ParameterError, match="reads pictures"):
        pipe.image_prompt.encoder.run({"pixels": noise(1, 3, 28, 28)})


def test_pictures_are_read_as_clip_reads_them() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil()
    for size in ((640, 480), (300, 500), (100, 90), (224, 224)):
        image = picture(*size)
        expected = processor(image, return_tensors="np")["pixel_values"]
        found = clip_pixels(image)
        assert found.shape == (1, 3, 224, 224)
        assert relative_error(found, np.asarray(expected)) <= 1e-3, size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["sd1", "sdxl"])
def test_pipelines(folders: Folders, adapters: Adapters, model: str, kind: str) -> None:
    import diffusers

    xl = "XL" if model == "sdxl" else ""
    pipe_class = getattr(diffusers, f"StableDiffusion{xl}Pipeline")
    more = {} if xl else {"safety_checker": None, "requires_safety_checker": False}
    theirs = pipe_class.from_pretrained(
        folders[model], image_encoder=build_vision(), feature_extractor=None, **more
    )
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    theirs.unet._load_ip_adapter_weights([ip_adapter_state(theirs.unet, KINDS[kind])])
    theirs.set_ip_adapter_scale(0.6)
    expected = theirs(
        PROMPT,
        negative_prompt=NEGATIVE,
        ip_adapter_image=torch.tensor(clip_pixels(SECOND, VISION["image_size"])),
        num_inference_steps=5,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
        height=64,
        width=64,
        output_type="latent",
    ).images.numpy()
    pipe = sdengine.load(folders[model], ip_adapter=adapters(model, kind))
    found = generate(pipe, 5.0, ip_images=SECOND, ip_scale=0.6)
    assert relative_error(found, expected) <= LIMIT
    without = generate(pipe, 5.0, ip_scale=0)
    assert np.array_equal(without, generate(sdengine.load(folders[model]), 5.0))
    assert relative_error(without, expected) > 10 * LIMIT


def test_with_a_controlnet_and_a_batch(folders: Folders, adapters: Adapters) -> None:
    pipe = sdengine.load(
        folders["sd1"], ip_adapter=adapters("sd1", "base"), controlnets=folders["sd1-control"]
    )
    one = generate(pipe, 4.0, ip_images=[SECOND], control_images=FIRST)
    two = generate(pipe, 4.0, ip_images=[SECOND, FIRST], control_images=FIRST, batch_size=2)
    assert np.array_equal(two[:1], one)
    plain = reference(
        "StableDiffusionControlNetPipeline",
        folders["sd1"],
        image=FIRST,
        parts={
            "controlnet": __import__("diffusers").ControlNetModel.from_pretrained(
                folders["sd1-control"]
            )
        },
        guidance_scale=4.0,
    )
    assert relative_error(generate(pipe, 4.0, ip_scale=0, control_images=FIRST), plain) <= LIMIT
    assert relative_error(one, plain) > 10 * LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_containers(folders: Folders, adapters: Adapters, kind: str, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folders["sd1"] / "unet")
    state = ip_adapter_state(unet, KINDS[kind])
    torch.save(state, tmp_path / "ip.bin")
    write_gguf(flat(state), tmp_path / "ip.gguf", "f32")
    encoder = adapters("sd1", kind).parent / "image_encoder"
    expected = generate(
        sdengine.load(folders["sd1"], ip_adapter=adapters("sd1", kind)), 1.0, ip_images=FIRST
    )
    for name in ("ip.bin", "ip.gguf"):
        pipe = sdengine.load(folders["sd1"], ip_adapter=tmp_path / name, image_encoder=encoder)
        assert np.array_equal(generate(pipe, 1.0, ip_images=FIRST), expected), name


def test_bad_input(folders: Folders, adapters: Adapters, tmp_path: Path) -> None:
    base = adapters("sd1", "base")
    pipe = sdengine.load(folders["sd1"], ip_adapter=base)
    for options, message in (
        ({}, "give ip_images="),
        ({"ip_images": [FIRST] * 3}, "3 ip_images were given for a batch of 1"),
        ({"ip_images": FIRST, "ip_scale": -1}, "ip_scale must be"),
    ):
        with pytest.raises(ParameterError, match=message):
            generate(pipe, 1.0, **options)
    with pytest.raises(ParameterError, match="without an IP-Adapter"):
        generate(sdengine.load(folders["sd1"]), 1.0, ip_images=FIRST)
    with pytest.raises(ParameterError, match="made for other models"):
        sdengine.load(folders["sdxl"], ip_adapter=base)
    with pytest.raises(
        ParameterError, match="holds no IP-Adapter and no Redux: this is a ControlNet"
    ):
        sdengine.load(folders["sd1"], ip_adapter=folders["sd1-control"])
    with pytest.raises(UnsupportedModelError, match="an IP-Adapter"):
        sdengine.load(base)
    lonely = tmp_path / "ip.safetensors"
    lonely.write_bytes(base.read_bytes())
    with pytest.raises(ParameterError, match="image_encoder="):
        sdengine.load(folders["sd1"], ip_adapter=lonely)
    with pytest.raises(ParameterError, match="does not hold a CLIP vision encoder"):
        sdengine.load(folders["sd1"], ip_adapter=base, image_encoder=folders["sd1-control"])
    state = {
        "ip_adapter.1.to_k_ip.weight": torch.zeros(4, 4),
        "image_proj.proj.0.weight": torch.zeros(4, 4),
    }
    face = write_safetensors(state, tmp_path / "face.safetensors")
    with pytest.raises(UnsupportedModelError, match="FaceID"):
        sdengine.load(folders["sd1"], ip_adapter=face)


def test_the_unet_checks_picture_tokens(folders: Folders, adapters: Adapters) -> None:
    pipe = sdengine.load(folders["sd1"], ip_adapter=adapters("sd1", "base"))
    inputs = {
        "latents": noise(1, 4, 8, 8),
        "timesteps": np.zeros(1, np.float32),
        "context": noise(1, 5, 64),
        "image_keys": noise(1, 4, 32),
        "image_values": noise(1, 4, 32),
    }
    for network, message in (
        (pipe.denoiser, "expected"),
        (sdengine.load(folders["sd1"]).denoiser, "without an IP-Adapter"),
    ):
        assert isinstance(network, _core.Network)
        with pytest.raises(ParameterError, match=message):
            network.run(inputs)
