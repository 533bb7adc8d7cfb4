"""The shared CLIP vocabulary in a pretended Hugging Face cache; no network."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from sdengine.errors import TokenizerError
from sdengine.tokenizers import default_clip_tokenizer, find_in_hub_cache

from .vocabulary import BOS, EOS

BOS_ID = 49406


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def write_vocabulary(folder: Path, words: int = BOS_ID) -> Path:
    folder.mkdir(parents=True)
    vocab = {f"w{i}": i for i in range(words)} | {BOS: words, EOS: words + 1}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def test_the_best_copy_is_found(cache: Path) -> None:
    assert find_in_hub_cache() is None
    write_vocabulary(cache / "models--a--other" / "snapshots" / "1" / "tokenizer", words=100)
    assert find_in_hub_cache() is None  # not OpenAI's vocabulary
    inside = write_vocabulary(cache / "models--a--sd15" / "snapshots" / "1" / "tokenizer")
    assert find_in_hub_cache() == inside
    openai = write_vocabulary(cache / "models--openai--clip-vit-large-patch14/snapshots/abc")
    assert find_in_hub_cache() == openai
    assert default_clip_tokenizer(download=False).eos == BOS_ID + 1


def test_tokenizer_json_alone_is_found(cache: Path) -> None:
    folder = write_vocabulary(cache / "models--openai--clip-vit-base-patch32/snapshots/1")
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").unlink()
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert find_in_hub_cache() == folder / "tokenizer.json"
    assert default_clip_tokenizer(download=False).bos == BOS_ID


@pytest.mark.parametrize("content", ["", "[]", '{"model": []}', '{"model": {"vocab": 1}}'])
def test_broken_downloads_are_passed_over(cache: Path, content: str) -> None:
    folder = cache / "models--x--y" / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(content)
    assert find_in_hub_cache() is None


def test_the_pad_token_of_the_copy_is_not_taken_over(cache: Path) -> None:
    folder = write_vocabulary(cache / "models--a--sdxl" / "snapshots" / "1" / "tokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "w0"}))
    assert default_clip_tokenizer(download=False).pad == BOS_ID + 1


@pytest.mark.parametrize("variable", ["HF_HOME", "XDG_CACHE_HOME"])
def test_other_cache_variables(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    hub = tmp_path / ("hub" if variable == "HF_HOME" else "huggingface/hub")
    folder = write_vocabulary(hub / "models--a--b" / "snapshots" / "1")
    assert find_in_hub_cache() == folder


def test_without_any_copy_the_error_names_the_four_ways(cache: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        default_clip_tokenizer(download=False)
    for way in ("GGUF", "diffusers folder", "merges.txt", "pip install sdengine"):
        assert way in str(caught.value)


def test_download_happens_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def hf_hub_download(repository: str, name: str) -> str:
        asked.append(f"{repository}/{name}")
        folder = cache / "models--openai--clip-vit-large-patch14" / "snapshots" / "1"
        if not folder.exists():
            write_vocabulary(folder)
        return str(folder / name)

    module = types.SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    assert default_clip_tokenizer().eos == BOS_ID + 1
    assert default_clip_tokenizer().eos == BOS_ID + 1
    assert sorted(asked) == [
        "openai/clip-vit-large-patch14/merges.txt",
        "openai/clip-vit-large-patch14/vocab.json",
    ]


def test_failing_or_missing_hub_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hf_hub_download(repository: str, name: str) -> str:
        raise ConnectionError("offline")

    module = types.SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    with pytest.raises(
        TokenizerError, match=r"could not be fetched \(ConnectionError\).*one of four"
    ):
        default_clip_tokenizer()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # import raises ImportError
    with pytest.raises(TokenizerError, match="one of four ways"):
        default_clip_tokenizer()
