"""Textual inversion files, their names in prompts, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdengine
from sdengine import prompt
from sdengine.embeddings import ANY_ENCODER, read_embedding
from sdengine.errors import ParameterError, SDEngineError, UnsupportedModelError, WeightsError
from tests.models import tiny_sd1_folder
from tests.unet_models import tiny_folder

WIDTH = 128
Vectors = torch.Tensor


def vectors(count: int, width: int = WIDTH, seed: int = 0) -> Vectors:
    values = np.random.default_rng(seed).standard_normal((count, width))
    return torch.tensor(values, dtype=torch.float32)


def a1111(values: Vectors) -> dict[str, object]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(values)},
        "name": "trained as this",
        "step": 500,
        "sd_checkpoint": None,
    }


def parameter_dict(values: Vectors) -> dict[str, object]:
    """As the first trainers saved it: a torch module instead of a dict."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(values)}),
    }


PICKLES: dict[str, Callable[[Vectors], object]] = {
    "style.pt": a1111,
    "old.pt": parameter_dict,
    "learned_embeds.bin": lambda values: {"<style>": values},
}
TENSORS: dict[str, Callable[[Vectors], dict[str, Vectors]]] = {
    "style.safetensors": lambda values: {"emb_params": values},
    "other.safetensors": lambda values: {"<style>": values},
    "half.safetensors": lambda values: {"emb_params": values.half()},
}


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd1_folder(tmp_path_factory.mktemp("sd1") / "model", seed=3)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("sdxl") / "model", "sdxl")


def write(folder: Path, name: str, values: Vectors) -> Path:
    path = folder / name
    if name in TENSORS:
        save_file(TENSORS[name](values), path)
    else:
        torch.save(PICKLES[name](values), path)
    return path


def contexts(pipe: sdengine.Pipeline, text: str, **options: str) -> np.ndarray:
    return pipe.encode_prompt(text, **options).context


# ------------------------------ files
@pytest.mark.parametrize("name", [*PICKLES, *TENSORS])
def test_every_layout(tmp_path: Path, name: str) -> None:
    values = vectors(2)
    embedding = read_embedding(write(tmp_path, name, values))
    stored = values.half().float() if name.startswith("half") else values
    assert np.array_equal(embedding.parts[ANY_ENCODER], stored.numpy())
    token = name.startswith(("learned", "other"))
    assert embedding.name == ("<style>" if token else Path(name).stem)
    assert read_embedding(tmp_path / name, "mine").name == "mine"


@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_sdxl_layouts(tmp_path: Path, keys: tuple[str, str]) -> None:
    save_file({keys[0]: vectors(2, 64), keys[1]: vectors(2, 128, 1)}, tmp_path / "e.safetensors")
    parts = read_embedding(tmp_path / "e.safetensors").parts
    assert parts["text_encoder"].shape == (2, 64)
    assert parts["text_encoder_2"].shape == (2, 128)


# ------------------------------ names in prompts
SPELLINGS = {
    "A1111": "a red my-style, night",
    "capitals": "a red My-Style, night",
    "ComfyUI": "a red embedding:my-style, night",
    "ComfyUI, file": "a red embedding:my-style.pt, night",
    "diffusers, expanded": "a red my-style my-style_1 my-style_2, night",
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings(sd1: Path, tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "style.pt", vectors(3))
    pipe = sdengine.load(sd1, embeddings={"my-style": path})
    expected = contexts(pipe, "a red my-style, night")
    assert np.array_equal(contexts(pipe, text), expected)
    assert not np.array_equal(contexts(sdengine.load(sd1), text), expected)


@pytest.mark.parametrize("text", ["a my-styles", "a my-style-2", "in amy-style", "my-style_9"])
def test_part_of_a_longer_word_is_none(sd1: Path, tmp_path: Path, text: str) -> None:
    pipe = sdengine.load(sd1, embeddings={"my-style": write(tmp_path, "style.pt", vectors(3))})
    assert np.array_equal(contexts(pipe, text), contexts(sdengine.load(sd1), text))


def test_one_vector_of_several(sd1: Path, tmp_path: Path) -> None:
    values = vectors(3)
    pipe = sdengine.load(sd1, embeddings={"all-of": write(tmp_path, "style.pt", values)})
    pipe.add_embedding("second-one", write(tmp_path, "learned_embeds.bin", values[1:2]))
    assert np.array_equal(contexts(pipe, "a all-of_1 fox"), contexts(pipe, "a second-one fox"))


def test_longer_names_come_first_and_later_files_replace(sd1: Path, tmp_path: Path) -> None:
    first, second = vectors(1, seed=1), vectors(2, seed=2)
    one, two = write(tmp_path, "style.pt", first), write(tmp_path, "old.pt", second)
    pipe = sdengine.load(sd1, embeddings={"neg-a": one, "neg-a-b": two})
    assert np.array_equal(
        contexts(pipe, "neg-a-b"), contexts(sdengine.load(sd1, embeddings={"xyzzy": two}), "xyzzy")
    )
    pipe.add_embedding("neg-a", two)
    assert np.array_equal(contexts(pipe, "neg-a"), contexts(pipe, "neg-a-b"))


@pytest.mark.parametrize("rule", ["a1111", "comfyui", "compel"])
def test_emphasis_is_kept(sd1: Path, tmp_path: Path, rule: str) -> None:
    pipe = sdengine.load(sd1, embeddings={"mystyle": write(tmp_path, "style.pt", vectors(2))})
    plain = contexts(pipe, "a fox, mystyle", weighting=rule)
    strong = contexts(
        pipe, "a fox, (mystyle)1.4" if rule == "compel" else "a fox, (mystyle:1.4)", weighting=rule
    )
    assert not np.allclose(plain, strong)
    assert plain.shape == strong.shape


def test_the_pooled_position_and_quantized_tables(sdxl: Path, tmp_path: Path) -> None:
    save_file({"clip_l": vectors(2, 64), "clip_g": vectors(2, 128)}, tmp_path / "e.safetensors")
    pipe = sdengine.load(
        sdxl, embeddings={"mystyle": tmp_path / "e.safetensors"}, weight_type="q8_0"
    )
    exact = sdengine.load(sdxl, embeddings={"mystyle": tmp_path / "e.safetensors"})
    found, expected = pipe.encode_prompt("a mystyle fox"), exact.encode_prompt("a mystyle fox")
    assert found.pooled is not None
    assert expected.pooled is not None
    assert np.linalg.norm(found.pooled - expected.pooled) < 0.05 * np.linalg.norm(expected.pooled)


class Letters:
    """A tokenizer of one token per letter."""

    bos, eos, pad, max_length = 1, 2, 0, 12

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text if letter != " "]

    def id_of(self, token: str) -> int | None:
        return None


def test_vectors_stay_in_one_chunk() -> None:
    words = prompt.LearnedWords({"three": [1000, 1001, 1002], "none": []})
    rows = prompt.chunk(Letters(), prompt.parse("abcdefghi three (jk)"), learned=words)
    assert rows.ids[0].tolist() == [1, *b"abcdefghi", 2, 0]
    assert rows.ids[1].tolist() == [1, 1000, 1001, 1002, *b"jk", 2, 0, 0, 0, 0, 0]
    assert rows.weights[1, 4] == pytest.approx(1.1)
    # A word for another encoder leaves no trace in this one.
    rows = prompt.chunk(Letters(), prompt.parse("ab none cd"), learned=words)
    assert rows.ids[0, 1:5].tolist() == [*b"abcd"]


def test_weights_cover_every_vector() -> None:
    words = prompt.LearnedWords({"three": [1000, 1001, 1002]})
    rows = prompt.chunk(Letters(), prompt.parse("a (three:1.5)"), learned=words)
    assert rows.weights[0, :6].tolist() == [1, 1, 1.5, 1.5, 1.5, 1]


# ------------------------------ what is refused
def test_wrong_width(sd1: Path, tmp_path: Path) -> None:
    save_file({"emb_params": vectors(1, 96)}, tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match=r"are 96 wide; .* read 128 \(text_encoder\)"):
        sdengine.load(sd1, embeddings=[tmp_path / "wide.safetensors"])


def test_width_for_one_of_two_encoders(sdxl: Path, tmp_path: Path) -> None:
    pipe = sdengine.load(sdxl)
    save_file({"emb_params": vectors(1, 64)}, tmp_path / "narrow.safetensors")
    pipe.add_embedding("mystyle", tmp_path / "narrow.safetensors")
    context, without = (contexts(pipe, text) for text in ("a mystyle fox", "a fox"))
    assert not np.allclose(context[..., :64], without[..., :64])
    assert np.array_equal(context[..., 64:], without[..., 64:])
    save_file({"clip_l": vectors(1, 96), "clip_g": vectors(1, 128)}, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match=r"are 96, 128 wide; .* 64 \(text_encoder\), 128"):
        pipe.add_embedding("other-style", tmp_path / "bad.safetensors")


def test_names(sd1: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "style.pt", vectors(1))
    pipe = sdengine.load(sd1)
    with pytest.raises(ParameterError, match="'red' is a word that the text encoder knows"):
        pipe.add_embedding("red", path)
    for name in ("", "two words", "a:b", "(a)", "x" * 300):
        with pytest.raises(ParameterError, match="cannot be called"):
            pipe.add_embedding(name, path)
    with pytest.raises(ParameterError, match="a mapping from names to paths, or a list"):
        sdengine.load(sd1, embeddings=str(path))


def test_bad_vectors(sd1: Path, tmp_path: Path) -> None:
    pipe = sdengine.load(sd1)
    broken = vectors(2)
    broken[1, 3] = float("nan")
    with pytest.raises(WeightsError, match="NaN or infinity"):
        pipe.add_embedding("mystyle", write(tmp_path, "style.pt", broken))
    with pytest.raises(ParameterError, match="76 vectors; a prompt's chunk holds 75"):
        pipe.add_embedding("mystyle", write(tmp_path, "style.pt", vectors(76)))
    for shape in ((0, WIDTH), (2, 2, WIDTH)):
        save_file({"emb_params": torch.zeros(shape)}, tmp_path / "e.safetensors")
        with pytest.raises(WeightsError, match="expected"):
            pipe.add_embedding("mystyle", tmp_path / "e.safetensors")
    save_file({"emb_params": torch.zeros(1, WIDTH, dtype=torch.int32)}, tmp_path / "e.safetensors")
    with pytest.raises(WeightsError, match="has type i32"):
        pipe.add_embedding("mystyle", tmp_path / "e.safetensors")


def test_what_is_no_embedding(sd1: Path, tmp_path: Path) -> None:
    pipe = sdengine.load(sd1)
    save_file(
        {"a.lora_up.weight": vectors(2), "a.lora_down.weight": vectors(2)},
        tmp_path / "l.safetensors",
    )
    with pytest.raises(UnsupportedModelError, match="no textual inversion embedding.*a LoRA"):
        pipe.add_embedding("mystyle", tmp_path / "l.safetensors")
    whole = write(tmp_path, "style.pt", vectors(2))
    for size in (10, 200, whole.stat().st_size // 2):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(SDEngineError):
            pipe.add_embedding("mystyle", cut)


# ------------------------------ whole pictures
def test_generation_reads_names_within_its_notation(sd1: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "style.pt", vectors(2))
    pipe = sdengine.load(sd1, embeddings={"<thing>": path})

    def latents(text: str, negative: str = "") -> np.ndarray:
        result = pipe.generate(text, negative, steps=2, seed=1, width=64, height=64)
        return result.latents

    # ComfyUI's prefix has a colon, which a schedule would take for its own.
    expected = latents("a [fox:<thing>:1] AND <thing> (night:1.2)", "<thing>")
    other = latents("a [fox:<thing>:1] AND embedding:<thing> (night:1.2)", "embedding:<thing>")
    assert np.array_equal(other, expected)
    assert not np.array_equal(latents("a fox AND <thing> (night:1.2)", "<thing>"), expected)
    assert not np.array_equal(latents("a [fox:<thing>:1] AND <thing> (night:1.2)"), expected)
