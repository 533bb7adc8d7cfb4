"""CLIP tokenizers stored in GGUF files, through gguf-py's writer and our own reader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from sdengine.errors import TokenizerError
from sdengine.formats import open_index
from sdengine.tokenizers import from_gguf_fields, load_clip_tokenizer, to_gguf_fields

from .vocabulary import BOS, hostile_prompts

PREFIX = "sdengine.tokenizer.clip."


def through_a_file(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    writer = gguf.GGUFWriter(path, "sd1")
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_tensor("t", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dict(open_index(path).metadata)


def test_round_trip_of_two_tokenizers(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    bos = {"content": BOS, "normalized": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "!", "bos_token": bos}))
    written = {
        "text_encoder": load_clip_tokenizer(clip_folder),
        "text_encoder_2": load_clip_tokenizer(folder),
    }
    fields = to_gguf_fields(written)
    assert fields[PREFIX + "text_encoder_2.vocabulary_of"] == "text_encoder"
    assert PREFIX + "text_encoder_2.tokens" not in fields  # one vocabulary, stored once

    read = from_gguf_fields(through_a_file(fields, tmp_path / "model.gguf"))
    assert list(read) == ["text_encoder", "text_encoder_2"]
    for name, tokenizer in written.items():
        for quality in ("tokens", "merges", "special", "bos", "eos", "pad", "max_length"):
            assert getattr(read[name], quality) == getattr(tokenizer, quality), quality
        prompts = hostile_prompts(100)
        assert [read[name].encode(p) for p in prompts] == [tokenizer.encode(p) for p in prompts]
    assert read["text_encoder"].encode("a!") != read["text_encoder_2"].encode("a!")


def test_different_vocabularies_are_stored_apart(clip_folder: Path) -> None:
    whole = load_clip_tokenizer(clip_folder)
    vocab = {token: index for index, token in enumerate(whole.tokens)}
    fewer = type(whole)(vocab, whole.merges[:10])
    read = from_gguf_fields(to_gguf_fields({"text_encoder": whole, "text_encoder_2": fewer}))
    assert len(read["text_encoder_2"].merges) == 10


def test_a_file_without_tokenizers() -> None:
    assert from_gguf_fields({"general.architecture": "sd1", "tokenizer.ggml.model": "t5"}) == {}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokens", None, "tokens: found nothing"),
        ("tokens", "abc", "expected an array of str"),
        ("tokens", [1, 2], "expected an array of str"),
        ("merges", 3, "merges: found a int"),
        ("merges", ["a"], "expected two tokens"),
        ("special_normalized", [True], "1 values; expected one per special token"),
        ("padding_token_id", 1.5, "expected a whole number"),
        ("max_length", None, "max_length: found nothing"),
        ("eos_token_id", 3, "eos_token_id: found 3"),
    ],
)
def test_damaged_fields(clip_folder: Path, key: str, value: object, words: str) -> None:
    fields = to_gguf_fields({"text_encoder": load_clip_tokenizer(clip_folder)})
    fields[f"{PREFIX}text_encoder.{key}"] = value
    with pytest.raises(TokenizerError, match=words):
        from_gguf_fields(fields)


def test_numbers_out_of_range_are_tokenizer_errors(clip_folder: Path) -> None:
    for key in ("padding_token_id", "max_length"):
        fields = to_gguf_fields({"text_encoder": load_clip_tokenizer(clip_folder)})
        fields[f"{PREFIX}text_encoder.{key}"] = -1
        with pytest.raises(TokenizerError, match="not -1"):
            from_gguf_fields(fields)
