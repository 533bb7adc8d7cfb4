"""Qwen-Image as users have it: one GGUF, files apart, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import sdengine
from sdengine.formats import open_index
from tests.qwen_models import tiny_qwen_folder
from tests.renaming_qwen import vae_to_wan

PROMPT = "a red circle on a blue background"
RUN: dict[str, Any] = {"width": 64, "height": 96, "steps": 2, "seed": 3}
PICTURE = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 40).convert("RGB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_folder(tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="module")
def editing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_folder(tmp_path_factory.mktemp("edit") / "model", "QwenImageEditPlusPipeline")


def test_one_file_of_everything(editing: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    sdengine.convert(editing, target, "f32")
    original, converted = sdengine.load(editing), sdengine.load(target)
    assert converted.model.title == "Qwen-Image-Edit-Plus"
    assert converted.model.unused == ()
    assert all(len(entry.shape) <= 4 for entry in open_index(target).tensors.values())
    for name, part in original.model.components.items():
        assert dict(converted.model.components[name].config) == dict(part.config), name
    options = {**RUN, "references": [PICTURE.resize((32, 32))], "resize_references": False}
    expected = original.generate(PROMPT, **options)
    found = converted.generate(PROMPT, **options)
    np.testing.assert_array_equal(found.latents, expected.latents)
    again = tmp_path / "again.gguf"
    sdengine.convert(target, again, "f32")
    assert again.stat().st_size == target.stat().st_size


def test_quantized(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    done = sdengine.convert(folder, target, "q8_0")
    types = {name: choice.dtype for name, choice in done.types.items()}
    denoiser = "model.diffusion_model."
    assert types[f"{denoiser}transformer_blocks.0.attn.to_q.weight"] == "q8_0"
    assert types[f"{denoiser}img_in.weight"] == "f16"
    assert types["vae.decoder.conv1.weight"] == "f16"
    exact = sdengine.load(folder).generate(PROMPT, **RUN).latents
    found = sdengine.load(target).generate(PROMPT, **RUN).latents
    assert 0 < np.linalg.norm(found - exact) < 0.1 * np.linalg.norm(exact)


def test_files_apart(folder: Path, tmp_path: Path) -> None:
    """ComfyUI's three files."""
    model, vae = tmp_path / "qwen_image.safetensors", tmp_path / "qwen_image_vae.safetensors"
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({f"model.diffusion_model.{n}": t for n, t in state.items()}, model)
    state = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({n: t.contiguous() for n, t in vae_to_wan(state).items()}, vae)
    pipe = sdengine.load(model, vae=vae, text_encoders=folder / "text_encoder")
    assert pipe.model.unused == ()
    found = pipe.generate(PROMPT, **RUN)
    expected = sdengine.load(folder).generate(PROMPT, **RUN)
    # A scheduler config is the family's own figures.
    np.testing.assert_allclose(found.latents, expected.latents, rtol=0, atol=1e-5)
    with pytest.raises(sdengine.WeightsError, match="Qwen-Image also needs"):
        sdengine.load(model)


def test_the_base_model_looks_at_references_too(folder: Path) -> None:
    pipe = sdengine.load(folder)
    options = {**RUN, "resize_references": False}
    plain = pipe.generate(PROMPT, **RUN)
    first = pipe.generate(PROMPT, references=PICTURE.resize((32, 48)), **options)
    other = pipe.generate(PROMPT, references=PICTURE.resize((48, 32)), **options)
    assert not np.allclose(first.latents, plain.latents)
    assert not np.allclose(first.latents, other.latents)


def test_norms_of_tokens_can_be_left_alone(folder: Path) -> None:
    pipe = sdengine.load(folder)
    kept = pipe.generate(PROMPT, **RUN)
    plain = pipe.generate(PROMPT, guidance=sdengine.Guidance(norms="free"), **RUN)
    same = pipe.generate(PROMPT, guidance=sdengine.Guidance(norms="token"), **RUN)
    assert not np.allclose(kept.latents, plain.latents)
    np.testing.assert_array_equal(kept.latents, same.latents)


# ------------------------------ what is refused
def test_editing_needs_a_picture(editing: Path) -> None:
    with pytest.raises(sdengine.ParameterError, match="edits a picture: give the one to edit"):
        sdengine.load(editing).generate(PROMPT, **RUN)


def test_a_text_encoder_without_eyes(editing: Path, tmp_path: Path) -> None:
    state = load_file(editing / "text_encoder" / "model.safetensors")
    blind = tmp_path / "blind"
    blind.mkdir()
    words = {n: t for n, t in state.items() if "visual" not in n}
    save_file(words, blind / "model.safetensors")
    (blind / "config.json").write_text((editing / "text_encoder" / "config.json").read_text())
    folder = tmp_path / "model"
    folder.mkdir()
    for part in editing.iterdir():
        (folder / part.name).symlink_to(blind if part.name == "text_encoder" else part)
    pipe = sdengine.load(folder)
    assert "vision_encoder" not in pipe.model.components
    with pytest.raises(sdengine.WeightsError, match="without its vision_encoder: load the model"):
        pipe.generate(PROMPT, image=PICTURE, **RUN)


def test_a_text_encoder_of_another_size(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "text_encoder" / "model.safetensors")
    small = {}
    for name, tensor in state.items():
        if "visual" not in name and "lm_head" not in name:
            axis = 0 if "o_proj" in name or "down_proj" in name or tensor.ndim == 1 else -1
            narrow = tensor.shape[axis] == 256 and not name.endswith(("q_proj.bias",))
            small[name] = tensor.narrow(axis, 0, 128).contiguous() if narrow else tensor
    save_file(small, tmp_path / "small.safetensors")
    with pytest.raises(sdengine.WeightsError, match="make a context of 128 columns"):
        sdengine.load(folder, text_encoders=tmp_path / "small.safetensors")


def test_eyes_of_another_model(editing: Path, tmp_path: Path) -> None:
    """Tokens of pictures must be as wide as those of words."""
    state = load_file(editing / "text_encoder" / "model.safetensors")
    for name in ("merger.mlp.2.weight", "merger.mlp.2.bias"):
        full = next(n for n in state if n.endswith(name))
        state[full] = state[full][:64].contiguous()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(sdengine.WeightsError, match="64 columns"):
        sdengine.load(editing, text_encoders=tmp_path / "model.safetensors")


def test_a_prompt_that_marks_places_for_pictures(editing: Path) -> None:
    pipe = sdengine.load(editing)
    with pytest.raises(sdengine.ParameterError, match="has places for 2 pictures, 1 were given"):
        pipe.generate("<|image_pad|>", image=PICTURE, **RUN)


def test_a_quantized_kernel_over_time(folder: Path, tmp_path: Path) -> None:
    import gguf

    state = vae_to_wan(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    writer = gguf.GGUFWriter(str(tmp_path / "vae.gguf"), "wan")
    for name, tensor in state.items():
        shape = tuple(tensor.shape)
        values = tensor.numpy().reshape(-1)
        if len(shape) == 5:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
            rows = values[: values.size // 32 * 32].reshape(-1, 32)
            if name == "decoder.middle.0.residual.2.weight":
                quantized = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
                writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
                continue
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(sdengine.WeightsError, match="cannot be taken; choose another"):
        sdengine.load(folder, vae=tmp_path / "vae.gguf")
