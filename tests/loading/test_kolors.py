"""Kolors: the plan of a model that reads a language model's states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import sdengine
from sdengine.errors import ParameterError, TokenizerError, WeightsError
from sdengine.families import KOLORS
from sdengine.loading import plan_model
from sdengine.tokenizers import SentencePieceTokenizer
from tests import models, unet_models
from tests.unet_models import write_gguf, write_safetensors


@pytest.fixture(scope="module")
def kolors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unet_models.tiny_kolors_folder(tmp_path_factory.mktemp("kolors") / "model", seed=2)


def test_a_folder(kolors: Path) -> None:
    plan = plan_model(kolors)
    assert plan.family.name == KOLORS.name
    assert list(plan.components) == ["unet", "text_encoder", "vae"]
    assert plan.components["text_encoder"].dialect == "ChatGLM"
    assert plan.components["text_encoder"].config["rope_interleaved"]
    assert not plan.family.empty_negative_is_zeros
    assert plan.unused == ()
    source = plan.tokenizers["text_encoder"]
    assert (source.kind, source.path) == ("chatglm", kolors / "tokenizer")
    words = source.open_text()
    assert isinstance(words, SentencePieceTokenizer)
    assert words.id_of("[gMASK]") is not None
    with pytest.raises(TokenizerError, match="of kind chatglm"):
        source.open()


def test_a_denoiser_with_parts_from_elsewhere(kolors: Path, tmp_path: Path) -> None:
    unet = write_gguf(models.component_state_dict(kolors, "unet"), tmp_path / "unet.gguf")
    with pytest.raises(WeightsError, match=r"ChatGLM3 text encoder, .*text_encoders=\.\.\."):
        plan_model(unet, vae=kolors / "vae")
    plan = plan_model(unet, vae=kolors / "vae", text_encoders=kolors / "text_encoder")
    assert plan.tokenizers["text_encoder"].path == kolors / "tokenizer"
    file = next((kolors / "text_encoder").glob("*.safetensors"))
    alone = write_safetensors(load_file(file), tmp_path / "glm.safetensors")
    source = plan_model(unet, vae=kolors / "vae", text_encoders=alone).tokenizers["text_encoder"]
    with pytest.raises(TokenizerError, match="put its folder there under the name 'tokenizer'"):
        source.open_text()


def test_an_encoder_of_another_family(kolors: Path, tmp_path: Path) -> None:
    folder = unet_models.tiny_folder(tmp_path / "sd1", "sd1")
    with pytest.raises(ParameterError, match="holds no text_encoder of Kolors: this is a CLIP"):
        plan_model(kolors, text_encoders=folder / "text_encoder")


def test_a_converted_model_is_the_same_model(kolors: Path, tmp_path: Path) -> None:
    conversion = sdengine.convert(kolors, tmp_path / "m.gguf", "f32")
    assert conversion.has_tokenizer
    before, after = plan_model(kolors), plan_model(conversion.path)
    assert after.unused == ()
    for name, part in before.components.items():
        assert after.components[name].config == part.config
        mine = {b.name: b.entry for b in after.components[name].bindings}
        for binding in part.bindings:
            arrays = [
                np.fromfile(e.path, np.float32, e.elements, offset=e.offset)
                for e in (binding.entry, mine[binding.name])
            ]
            assert np.array_equal(*arrays)
    tokenizers = [plan.tokenizers["text_encoder"].open_text() for plan in (before, after)]
    text = "an oil painting of a city at night"
    assert tokenizers[0].encode(text) == tokenizers[1].encode(text)
