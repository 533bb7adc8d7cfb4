"""Qwen2.5-VL's vision encoder, image processor and language model against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import sdengine
from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.families import SD1
from sdengine.families.family import Component
from sdengine.families.qwen_image import QWEN_IMAGE
from sdengine.formats import open_index
from sdengine.keys import qwen_vision
from sdengine.loading.locate import locate
from sdengine.loading.networks import NETWORKS, Shapes
from sdengine.picture_inputs import reference_size
from sdengine.text_encoders.sight import normalised, processed_size, rounded_size
from sdengine.tokenizers.padding import QWEN_IMAGE_EDIT_PLUS
from tests.qwen_models import SPECIAL, qwen_tokenizer, tiny_qwen_folder, vision_language_model
from tests.renaming_qwen import text_to_llama_cpp, vision_to_llama_cpp

from .conftest import relative_error
from .dit import network_of

LIMIT = 1e-4


@pytest.fixture(scope="module", params=["published", "other-figures"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    other = {"num_heads": 2, "window_size": 56, "fullatt_block_indexes": [1, 4]}
    more = other if request.param == "other-figures" else {}
    return vision_language_model(qwen_tokenizer(), **more)


def native(state: dict[str, torch.Tensor], model: Any, folder: Path) -> _core.Network:
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "m.safetensors")
    component = Component(
        "vision_encoder",
        "eyes",
        "qwen_vision",
        ("model.visual.", ""),
        (qwen_vision.TRANSFORMERS, qwen_vision.LLAMA_CPP),
        "text_encoders",
        ("", "llama.cpp"),
    )
    found = locate(open_index(folder / "m.safetensors"), component)
    assert found is not None
    network = NETWORKS["qwen_vision"]
    config = network.from_shapes(Shapes({n: s.shape for n, s in found.sources.items()}), SD1)
    config = network.refine(config, json.loads(model.config.to_json_string(use_diff=False)))
    network.check(config)
    return network_of(found, config)[0]


def patches(pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A normalised picture as transformers' processor lays it out."""
    from transformers import Qwen2VLImageProcessorPil

    made, rows, columns = Qwen2VLImageProcessorPil().patchify(pixels[0], 14, 2, 2)
    return torch.tensor(made), torch.tensor([[1, rows, columns]])


@pytest.mark.parametrize("names", ["transformers", "llama.cpp"])
@pytest.mark.parametrize("cells", [(4, 8), (5, 9), (1, 1), (3, 4), (6, 3)], ids=str)
def test_vision(model: Any, cells: tuple[int, int], names: str, tmp_path: Path) -> None:
    state = {n: t for n, t in model.state_dict().items() if n.startswith("model.visual.")}
    if names == "llama.cpp":
        state = vision_to_llama_cpp(state)
    network = native(state, model, tmp_path)
    size = (1, 3, cells[0] * 28, cells[1] * 28)
    pixels = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    given, grid = patches(pixels)
    with torch.no_grad():
        expected = model.model.visual(given, grid_thw=grid).pooler_output.numpy()
    found = network.run({"pixels": pixels})["tokens"]
    assert relative_error(found[0], expected) <= LIMIT


@pytest.mark.parametrize("shape", [(1, 3, 28, 30), (2, 3, 28, 28), (1, 1, 28, 28)], ids=str)
def test_bad_shapes(model: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    state = {n: t for n, t in model.state_dict().items() if n.startswith("model.visual.")}
    network = native(state, model, tmp_path)
    with pytest.raises(ParameterError, match="reads one picture"):
        network.run({"pixels": np.zeros(shape, np.float32)})


# ------------------------------ pictures before they are seen
@pytest.mark.parametrize("size", [(640, 480), (33, 90), (20, 20), (1000, 31), (28, 28)], ids=str)
def test_image_processor(size: tuple[int, int]) -> None:
    from transformers import Qwen2VLImageProcessorPil

    picture = Image.fromarray(
        np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), np.uint8).astype(np.uint8)
    )
    processor = Qwen2VLImageProcessorPil()
    expected = processor(images=[picture], return_tensors="np")
    pixels = normalised(picture, 28)
    found, grid = patches(pixels)
    np.testing.assert_array_equal(expected["image_grid_thw"], grid.numpy())
    np.testing.assert_allclose(found.numpy(), expected["pixel_values"], rtol=0, atol=2e-6)


@settings(deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000))
def test_sizes(width: int, height: int) -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    if 1 / 200 < width / height < 200:
        high, wide = smart_resize(height, width, 28, 56 * 56, 14 * 14 * 4 * 16384)
        assert processed_size((width, height), 28) == (wide, high)
    if 1 / 50 < width / height < 50:
        area = 384 * 384
        assert rounded_size((width, height), area) == calculate_dimensions(area, width / height)
        rule = QWEN_IMAGE.references
        assert rule is not None
        expected = calculate_dimensions(1024 * 1024, width / height)
        assert reference_size((width, height), rule) == expected


def test_thin_pictures_are_refused() -> None:
    with pytest.raises(ParameterError, match="too thin to be looked at"):
        normalised(Image.new("RGB", (900, 4)), 28)


# ------------------------------ the language model among pictures
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_folder(tmp_path_factory.mktemp("qwen") / "model", "QwenImageEditPlusPipeline")


def written_apart(to: Path) -> dict[str, Path]:
    """The text encoder as llama.cpp's two files, the first with its tokenizer."""
    state = vision_language_model(qwen_tokenizer()).state_dict()
    words, eyes = to / "qwen2.5-vl.gguf", to / "mmproj.gguf"
    _write_gguf(text_to_llama_cpp(state), words, "qwen2vl", qwen_tokenizer())
    _write_gguf(vision_to_llama_cpp(state), eyes, "clip")
    return {"text_encoder": words, "vision_encoder": eyes}


def _write_gguf(state: dict[str, torch.Tensor], path: Path, kind: str, words: Any = None) -> None:
    writer = gguf.GGUFWriter(str(path), kind)
    if words is not None:
        trained = json.loads(words.backend_tokenizer.to_str())["model"]
        by_id = sorted(words.get_vocab().items(), key=lambda pair: pair[1])
        tokens = [token for token, _ in by_id]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in trained["merges"]])
    for name, tensor in state.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


PROMPT = "make the circle red"


def read_by_transformers(folder: Path, pictures: list[Image.Image]) -> np.ndarray:
    """The last states behind the system's words."""
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    words = qwen_tokenizer()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder").eval()
    sized = [p.resize(rounded_size(p.size, 384 * 384), Image.Resampling.LANCZOS) for p in pictures]
    made = Qwen2VLImageProcessorPil()(images=sized, return_tensors="pt")
    shown = "".join(
        f"Picture {i + 1}: <|vision_start|>{'<|image_pad|>' * (int(grid.prod()) // 4)}<|vision_end|>"
        for i, grid in enumerate(made["image_grid_thw"])
    )
    text = QWEN_IMAGE_EDIT_PLUS.template.replace("{}", shown + PROMPT)
    ids = words(text, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model(
            input_ids=ids,
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            output_hidden_states=True,
            **made,
        )
    return out.hidden_states[-1][0, 64:].numpy()


def test_pictures_among_words(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8).astype(np.uint8))
        for w, h in ((120, 80), (70, 110))
    ]
    expected = read_by_transformers(folder, pictures)
    found = sdengine.load(folder).encode_prompt(PROMPT, references=pictures)
    assert relative_error(found.context[0], expected) <= LIMIT
    files = written_apart(tmp_path)
    for apart in (files, list(files.values()), list(files.values())[::-1]):
        again = sdengine.load(folder, text_encoders=apart)
        assert again.model.components["vision_encoder"].path == files["vision_encoder"]
        again_found = again.encode_prompt(PROMPT, references=pictures)
        np.testing.assert_allclose(again_found.context, found.context, rtol=0, atol=1e-5)
