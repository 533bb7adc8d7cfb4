"""Learned words that come with a LoRA: known while it applies, and no longer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sdengine
from sdengine.adapters import Targets, read_adapter
from sdengine.errors import ParameterError, WeightsError
from tests.unet_models import build_unet, tiny_folder

from .files import State, kohya, lora, randn, write

PROMPT = "a picture of zqx on a table"
SHORT = {"steps": 2, "seed": 7, "width": 64, "height": 64, "sampler": "euler"}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp(family) / "model", family, seed=3)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> sdengine.Pipeline:
    return sdengine.load(folder)


def widths(pipe: sdengine.Pipeline) -> list[int]:
    return [pipe.config[use.component]["hidden_size"] for use in pipe.model.family.text]


def vectors(pipe: sdengine.Pipeline) -> State:
    """Two vectors per encoder, as a file of their own names them."""
    names = ["*"] if len(widths(pipe)) == 1 else ["clip_l", "clip_g"]
    return {name: randn((2, width), width) for name, width in zip(names, widths(pipe), strict=True)}


def bundled(word: str, words: State) -> State:
    """As A1111 reads them from a LoRA."""
    spelled = {"*": "string_to_param.*"}
    return {f"bundle_emb.{word}.{spelled.get(n, n)}": tensor for n, tensor in words.items()}


@pytest.fixture(scope="module")
def changes(family: str) -> State:
    return lora(build_unet(family, 3), ("to_q", "to_v"), kohya("lora_unet_"), alpha=4)


def test_known_while_the_lora_applies(
    pipe: sdengine.Pipeline, folder: Path, changes: State, tmp_path: Path
) -> None:
    words = vectors(pipe)
    path = write(tmp_path / "pivotal.safetensors", changes | bundled("zqx", words))
    assert read_adapter(path, Targets(pipe.model)).unused == ()
    other = sdengine.load(folder, embeddings={"zqx": write(tmp_path / "zqx.safetensors", words)})
    plain = write(tmp_path / "plain.safetensors", changes)
    expected = other.generate(PROMPT, loras=[plain], **SHORT).latents
    unknown = pipe.generate(PROMPT, **SHORT).latents
    assert not np.array_equal(pipe.generate(PROMPT, loras=[plain], **SHORT).latents, expected)
    found = pipe.generate(PROMPT, loras=[path], **SHORT).latents
    assert np.array_equal(found, expected)
    assert np.array_equal(pipe.generate(PROMPT, **SHORT).latents, unknown)
    # The same for what applies until something else is chosen, and for texts by themselves.
    pipe.set_loras([path])
    context = pipe.encode_prompt(PROMPT).context
    pipe.set_loras([(path, 0.0)])
    assert not np.array_equal(pipe.encode_prompt(PROMPT).context, context)
    pipe.set_loras([])
    assert np.array_equal(other.encode_prompt(PROMPT).context, context)


def test_a_word_of_the_same_name_comes_back(
    folder: Path, changes: State, tmp_path: Path, pipe: sdengine.Pipeline
) -> None:
    own = {name: tensor + 1 for name, tensor in vectors(pipe).items()}
    both = sdengine.load(folder, embeddings={"zqx": write(tmp_path / "own.safetensors", own)})
    before = both.encode_prompt(PROMPT).context
    path = write(tmp_path / "lora.safetensors", changes | bundled("zqx", vectors(pipe)))
    both.set_loras([path])
    assert not np.array_equal(both.encode_prompt(PROMPT).context, before)
    both.set_loras([])
    assert np.array_equal(both.encode_prompt(PROMPT).context, before)


def test_what_cannot_be_learned(pipe: sdengine.Pipeline, changes: State, tmp_path: Path) -> None:
    wrong = bundled("zqx", {"*": randn((2, 33), 1)})
    with pytest.raises(WeightsError, match="33 wide"):
        pipe.set_loras([write(tmp_path / "wide.safetensors", changes | wrong)])
    broken = bundled("zqx", {n: t * torch.nan for n, t in vectors(pipe).items()})
    with pytest.raises(WeightsError, match="NaN"):
        pipe.set_loras([write(tmp_path / "nan.safetensors", changes | broken)])
    known = bundled("a", vectors(pipe))
    with pytest.raises(ParameterError, match="a word that the text encoder knows"):
        pipe.set_loras([write(tmp_path / "known.safetensors", changes | known)])
    assert pipe.loras == ()
