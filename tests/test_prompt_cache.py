"""Encoded prompts are kept: what comes back is bit for bit what the encoders give, and nothing else hits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdengine
from sdengine import Lora, Pipeline
from sdengine.errors import OutputError, ParameterError
from sdengine.prompt_cache import SUFFIX, PromptCache, key_of
from sdengine.text_encoders import ClipEncoder, EncodedText
from tests.unet_models import tiny_folder

SIZE = {"width": 32, "height": 32, "steps": 2, "seed": 1}
Counter = Callable[[], int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("cache") / "model", "sdxl")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Texts that went through a CLIP encoder since the last call, in all encoders together."""
    texts = [0]
    real = ClipEncoder.encode

    def counting(self: ClipEncoder, readings: list[object], *others: object) -> list[EncodedText]:
        texts[0] += len(readings)
        return real(self, readings, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(ClipEncoder, "encode", counting)

    def since() -> int:
        count, texts[0] = texts[0], 0
        return count

    return since


def pixels(pipe: Pipeline, *prompts: str, **options: object) -> bytes:
    return pipe.generate(*prompts, **{**SIZE, **options}).latents.tobytes()


def test_a_prompt_is_encoded_once(model: Path, encoded: Counter) -> None:
    pipe, without = sdengine.load(model), sdengine.load(model, prompt_cache=False)
    expected = pixels(without, "a cat", "ugly")
    assert encoded() == 4  # two texts in two encoders
    assert pixels(without, "a cat", "ugly") == expected
    assert encoded() == 4
    assert pixels(pipe, "a cat", "ugly") == expected
    assert encoded() == 4
    built = pipe.graphs_built
    assert pixels(pipe, "a cat", "ugly") == expected
    assert encoded() == 0
    assert pipe.graphs_built == built
    # One of two is known: the other alone gives what both together give.
    assert pixels(pipe, "a dog", "ugly") == pixels(without, "a dog", "ugly")
    assert encoded() == 2 + 4


@pytest.mark.parametrize(
    "options",
    [{"clip_skip": 1}, {"weighting": "comfyui"}, {"weighting": "compel"}, {"prompt_2": "a dog"}],
    ids=lambda options: next(iter(options.values())),
)
def test_what_changes_the_text_is_another_entry(
    model: Path, encoded: Counter, options: dict[str, object]
) -> None:
    pipe, without = (sdengine.load(model, prompt_cache=given) for given in (None, False))
    pixels(pipe, "a (cat:1.3)", "")
    encoded()
    assert pixels(pipe, "a (cat:1.3)", "", **options) == (
        pixels(without, "a (cat:1.3)", "", **options)
    )
    assert encoded() > 4
    pixels(pipe, "a (cat:1.3)", "", **options)
    assert encoded() == 0


def test_longer_prompts_beside_it_lengthen_a_text(model: Path, encoded: Counter) -> None:
    pipe, without = (sdengine.load(model, prompt_cache=given) for given in (None, False))
    pixels(pipe, "a cat", "ugly")
    encoded()
    long = "a cat " * 60
    assert pixels(pipe, long, "ugly") == pixels(without, long, "ugly")
    assert encoded() == 4 + 4


def test_a_loras_text_part_and_its_strength_are_told_apart(
    model: Path, encoded: Counter, tmp_path: Path
) -> None:
    module = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    pipe, without = (sdengine.load(model, prompt_cache=given) for given in (None, False))
    bindings = pipe.model.components["text_encoder"].bindings
    shape = next(b.entry.shape for b in bindings if b.name.endswith("layers.0.mlp.fc1.weight"))
    rng = np.random.default_rng(0)
    up, down = (rng.normal(size=s).astype(np.float32) for s in ((shape[0], 2), (2, shape[1])))
    lora = tmp_path / "style.safetensors"
    save_file({f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}, lora)
    found = set()
    for loras in ([], [(lora, 0.5)], [(lora, 1.0)], [(lora, 1.0, 0.0)]):
        encoded()
        expected = pixels(without, "a cat", "", loras=loras)
        assert encoded() == 4
        assert pixels(pipe, "a cat", "", loras=loras) == expected
        # A LoRA that rests in the text encoders has the texts of none.
        assert encoded() == (0 if loras and loras[0][1:] == (1.0, 0.0) else 4)
        assert pixels(pipe, "a cat", "", loras=loras) == expected
        assert encoded() == 0
        found.add(expected)
    assert len(found) == 3
    in_a_folder = tmp_path / "peft"
    in_a_folder.mkdir()
    lora.rename(in_a_folder / "pytorch_lora_weights.safetensors")
    seen = [pipe.adapters.in_text_encoders([Lora(in_a_folder)])]
    os.utime(in_a_folder / "pytorch_lora_weights.safetensors", (1, 1))
    seen.append(pipe.adapters.in_text_encoders([Lora(in_a_folder)]))
    assert seen[0] != seen[1]
    save_file({f"{module}.lora_up.weight": -up, f"{module}.lora_down.weight": down}, lora)
    assert pixels(pipe, "a cat", "", loras=[lora]) == pixels(without, "a cat", "", loras=[lora])


def test_learned_words_are_told_apart(model: Path, tmp_path: Path) -> None:
    pipe, without = (sdengine.load(model, prompt_cache=given) for given in (None, False))
    rng = np.random.default_rng(0)
    widths = [pipe.config[name]["hidden_size"] for name in ("text_encoder", "text_encoder_2")]
    pixels(pipe, "a stylez", "")
    for seed in range(2):
        vectors = [rng.normal(size=(2, width)).astype(np.float32) for width in widths]
        path = tmp_path / f"{seed}.safetensors"
        save_file({"clip_l": vectors[0], "clip_g": vectors[1]}, path)
        for each in (pipe, without):
            each.add_embedding("stylez", path)
        assert pixels(pipe, "a stylez", "") == pixels(without, "a stylez", "")


# ------------------------------ on disk
def test_a_folder_serves_another_pipeline(model: Path, encoded: Counter, tmp_path: Path) -> None:
    first = sdengine.load(model, prompt_cache=tmp_path / "new" / "prompts")
    expected = pixels(first, "a cat", "ugly")
    files = sorted((tmp_path / "new" / "prompts").iterdir())
    assert [file.suffix for file in files] == [SUFFIX] * 2
    encoded()
    second = sdengine.load(model, prompt_cache=str(tmp_path / "new" / "prompts"))
    assert pixels(second, "a cat", "ugly") == expected
    assert encoded() == 0
    # No graph was built, so no weight of an encoder was looked at.
    assert second.graphs_built["text_encoder"] == second.graphs_built["text_encoder_2"] == 0


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "foreign"])
def test_damaged_files_are_written_anew(
    model: Path, encoded: Counter, tmp_path: Path, damage: str
) -> None:
    expected = pixels(sdengine.load(model, prompt_cache=tmp_path), "a cat", "")
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for file, data in whole.items():
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        file.write_bytes(
            {
                "empty": b"",
                "truncated": data[: len(data) // 2],
                "flipped": bytes(flipped),
                "foreign": b"x" * len(data),
            }[damage]
        )
    encoded()
    assert pixels(sdengine.load(model, prompt_cache=tmp_path), "a cat", "") == expected
    assert encoded() == 4
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == whole


def test_another_file_of_the_model_is_another_encoder(encoded: Counter, tmp_path: Path) -> None:
    model, cache = tiny_folder(tmp_path / "model", "sdxl"), tmp_path / "cache"
    before = pixels(sdengine.load(model, prompt_cache=cache), "a cat", "")
    path = model / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor * 1.1 for name, tensor in tensors.items()}, path)
    encoded()
    assert pixels(sdengine.load(model, prompt_cache=cache), "a cat", "") != before
    assert encoded() == 4
    quantized = sdengine.load(model, prompt_cache=cache, weight_type="q8_0")
    pixels(quantized, "a cat", "")
    assert encoded() == 4


AT_ONCE = """
import sys
from pathlib import Path
import numpy as np
from sdengine.prompt_cache import PromptCache
from sdengine.text_encoders import EncodedText
cache = PromptCache(Path(sys.argv[1]), memory_bytes=0, folder_bytes=60_000)
for turn in range(300):
    number = turn % 7
    text = cache.get(str(number))
    assert text is None or (text.context == number).all(), text
    cache.put(str(number), EncodedText(np.full((20, 100), number, np.float32)))
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    assert all(file.suffix == SUFFIX for file in tmp_path.iterdir())


# ------------------------------ the cache itself
def text(value: float, kilobytes: int = 4) -> EncodedText:
    return EncodedText(np.full((kilobytes, 256), value, np.float32), np.full(3, value, np.float32))


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    cache = PromptCache(memory_bytes=9000)
    for number in range(2):
        cache.put(str(number), text(number))
    assert cache.get("0") is not None  # so that 1 is the oldest
    cache.put("2", text(2))
    assert [cache.get(str(n)) is not None for n in range(3)] == [True, False, True]
    assert cache.nbytes <= 9000
    cache.put("large", text(9, kilobytes=100))
    assert cache.get("large") is None


def test_a_folder_is_bounded(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, memory_bytes=0, folder_bytes=12_000)
    for number in range(6):
        cache.put(str(number), text(number))
    kept = [number for number in range(6) if cache.get(str(number)) is not None]
    assert 1 <= len(kept) <= 2
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 12_000
    found = cache.get(str(kept[-1]))
    assert found is not None
    assert found.pooled is not None
    np.testing.assert_array_equal(found.pooled, text(kept[-1]).pooled)
    with pytest.raises(ValueError, match="read-only"):
        found.context[0] = 0


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path / "cache", memory_bytes=0)
    (tmp_path / "cache").rmdir()
    cache.put("a", text(1))
    assert cache.get("a") is None
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be made"):
        PromptCache(tmp_path / "file")


def test_keys_are_equal_for_equal_values_only() -> None:
    def array(*values: float) -> np.ndarray:
        return np.array(values, np.float32)

    values: list[object] = [
        *((1, 2), (1, (2,)), ("1", 2), (1.0, 2), (None,), (array(1, 2),), (array(2, 1),)),
        *((array(1, 2)[None],), ({"a": 1, "b": 2},), (text(1),), (text(2),), ("ab", "c")),
        ("a", "bc"),
    ]
    keys = [key_of(*value) for value in values]  # type: ignore[misc]
    assert len(set(keys)) == len(keys)
    assert key_of({"b": 2, "a": 1}) == key_of({"a": 1, "b": 2})
    assert key_of([1, 2]) == key_of((1, 2))


def test_what_is_no_folder_is_told(model: Path) -> None:
    for given in (True, 3):
        with pytest.raises(ParameterError, match="prompt_cache must be a path"):
            sdengine.load(model, prompt_cache=given)  # type: ignore[arg-type]
