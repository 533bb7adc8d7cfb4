"""Token ids against transformers' CLIPTokenizer over the same files."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from sdengine.errors import ParameterError, TokenizerError
from sdengine.tokenizers import ClipTokenizer, SpecialToken, load_clip_tokenizer

from .vocabulary import BOS, EOS, hostile_prompts

NORMALIZED_BOS = {"content": BOS, "normalized": True, "__type": "AddedToken"}
SETTINGS = {
    "plain": {},
    "config": {"model_max_length": 77, "pad_token": EOS},
    "openclip": {"model_max_length": 77, "pad_token": "!"},
    "normalized": {"bos_token": NORMALIZED_BOS, "eos_token": EOS, "unk_token": EOS},
}


@pytest.fixture(params=SETTINGS)
def folder(request: pytest.FixtureRequest, clip_folder: Path, tmp_path: Path) -> Path:
    """The vocabulary with each of the settings that published folders declare beside it."""
    copy = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    if settings := SETTINGS[request.param]:
        (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    return copy


def differences(ours: ClipTokenizer, reference: CLIPTokenizer, count: int) -> list[str]:
    prompts = hostile_prompts(count)
    return [
        p for p in prompts if ours.encode(p) != reference(p, add_special_tokens=False).input_ids
    ]


def test_ids_equal_transformers_on_a_thousand_prompts(folder: Path) -> None:
    ours, reference = load_clip_tokenizer(folder), CLIPTokenizer.from_pretrained(folder)
    assert differences(ours, reference, 1000) == []
    assert (ours.bos, ours.eos) == (reference.bos_token_id, reference.eos_token_id)
    assert ours.pad == reference.pad_token_id
    assert ours.max_length == 77
    assert ours.vocab_size == len(reference)


def test_tokenizer_json_equals_transformers(folder: Path, tmp_path: Path) -> None:
    CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "json")
    assert not (tmp_path / "json" / "vocab.json").exists()
    reference = CLIPTokenizer.from_pretrained(tmp_path / "json")
    for path in (tmp_path / "json", tmp_path / "json" / "tokenizer.json"):
        ours = load_clip_tokenizer(path)
        assert differences(ours, reference, 200) == []
        assert ours.pad == reference.pad_token_id


def test_special_tokens_map_is_read(clip_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    (copy / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!", "bos_token": BOS}))
    ours = load_clip_tokenizer(copy)
    assert ours.pad == ours.id_of("!") == CLIPTokenizer.from_pretrained(copy).pad_token_id
    assert ours.encode("a!") == [ours.id_of("a</w>"), ours.id_of("!")]  # as transformers does
    assert load_clip_tokenizer(copy, pad=5).pad == 5


def test_in_memory_vocabulary_is_the_same(clip_folder: Path) -> None:
    loaded = load_clip_tokenizer(clip_folder)
    built = ClipTokenizer(loaded.tokens, [f"{a} {b}" for a, b in loaded.merges])
    assert [built.encode(p) for p in hostile_prompts(50)] == [
        loaded.encode(p) for p in hostile_prompts(50)
    ]
    assert built.merges == loaded.merges


def test_text_is_not_repaired_as_ftfy_would(clip_folder: Path) -> None:
    tokenizer = load_clip_tokenizer(clip_folder)
    assert tokenizer.encode("&amp;") != tokenizer.encode("&")
    assert tokenizer.encode("\uff21") != tokenizer.encode("A")
    assert tokenizer.encode("“a”") != tokenizer.encode('"a"')
    assert tokenizer.encode(" A \u3000 B\n") == tokenizer.encode("a b")


def test_broken_characters_are_replaced(clip_folder: Path) -> None:
    tokenizer = load_clip_tokenizer(clip_folder)
    assert tokenizer.encode("a \ud800 b") == tokenizer.encode("a \ufffd b")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")


def test_padding_id(clip_folder: Path) -> None:
    tokenizer = load_clip_tokenizer(clip_folder)
    padded = tokenizer.with_pad(0)
    assert (tokenizer.pad, padded.pad) == (tokenizer.eos, 0)
    assert padded.encode("a!") == tokenizer.encode("a!")  # an id, not a word in the text
    for pad in (-1, tokenizer.vocab_size):
        with pytest.raises(ParameterError, match=str(pad)):
            tokenizer.with_pad(pad)


def test_long_text_takes_linear_time(clip_folder: Path) -> None:
    tokenizer = load_clip_tokenizer(clip_folder)
    started = time.perf_counter()
    assert len(tokenizer.encode("a , " * 25_000)) == 50_000
    assert len(tokenizer.encode("\u3042" * 100_000)) >= 100_000
    assert time.perf_counter() - started < 5


def vocabulary(**changes: int) -> dict[str, int]:
    return {"a": 0, "b": 1, "ab</w>": 2, "b</w>": 3, BOS: 4, EOS: 5, **changes}


@pytest.mark.parametrize(
    ("vocab", "merges", "special", "words"),
    [
        ({"a": 0, BOS: 1}, [], [], "lacks <|endoftext|>"),
        ({"a": 0, BOS: 2, EOS: 3}, [], [], "not 0 to 2"),
        (vocabulary(c=5), [], [], "not 0 to 6"),
        (vocabulary(c=True), [], [], "whole numbers"),
        (["a", "a", BOS, EOS], [], [], "not 0 to 2"),
        (vocabulary(), ["a b</w> c"], [], "'a b</w> c'"),
        (vocabulary(), [("a",)], [], "expected two tokens"),
        (vocabulary(), ["a z"], [], "do not fit"),
        (vocabulary(), [], [SpecialToken("<x>")], "'<x>' is not in the vocabulary"),
    ],
)
def test_bad_vocabularies(
    vocab: dict[str, int], merges: list[str], special: list[SpecialToken], words: str
) -> None:
    with pytest.raises(TokenizerError, match=words):
        ClipTokenizer(vocab, merges, special=special)


def test_bad_max_length() -> None:
    for length in (2, 1 << 30):
        with pytest.raises(ParameterError, match=f"3 to 65536, not {length}"):
            ClipTokenizer(vocabulary(), [], max_length=length)


GOOD_MODEL = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocabulary(), "merges": []}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "found nothing"),
        ({"vocab.json": "{}"}, "found vocab.json"),
        ({"vocab.json": "{", "merges.txt": ""}, "not valid JSON"),
        ({"vocab.json": "[" * 100_000, "merges.txt": ""}, "not valid JSON"),
        ({"vocab.json": "[1]", "merges.txt": ""}, "found a JSON list"),
        ({"vocab.json": b"\xff{}", "merges.txt": ""}, "not UTF-8"),
        ({"tokenizer.json": {"model": {"type": "WordPiece"}}}, "found a WordPiece model"),
        ({"tokenizer.json": {"model": {"type": "BPE", "vocab": {}}}}, "end-of-word mark None"),
        ({"tokenizer.json": {"model": {**GOOD_MODEL, "vocab": 3}}}, "vocab or merges are missing"),
        ({"tokenizer.json": {"model": GOOD_MODEL, "added_tokens": [1]}}, "added_tokens"),
        ({"tokenizer.json": {"model": GOOD_MODEL, "added_tokens": [{}]}}, "whole numbers"),
        (
            {
                "tokenizer.json": {"model": GOOD_MODEL},
                "tokenizer_config.json": {"eos_token": "</s>"},
            },
            "found eos_token '</s>'",
        ),
        (
            {"tokenizer.json": {"model": GOOD_MODEL}, "tokenizer_config.json": {"pad_token": "?"}},
            "'\\?' is not in the vocabulary",
        ),
    ],
)
def test_bad_files(tmp_path: Path, files: dict[str, object], words: str) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TokenizerError, match=words):
        load_clip_tokenizer(tmp_path)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="there is nothing"):
        load_clip_tokenizer(tmp_path / "absent")


def test_oversized_file_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(TokenizerError, match="at most"):
        load_clip_tokenizer(tmp_path)
