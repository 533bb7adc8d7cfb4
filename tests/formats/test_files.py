"""What a file is, is told by its content; errors say what it is instead; nothing stays open."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdengine.errors import FormatError, ParameterError
from sdengine.formats import open_index

from .builders import GgufTensor, gguf_bytes, safetensors_bytes, safetensors_record

SOUND: dict[str, bytes] = {
    "gguf": gguf_bytes([GgufTensor("a", (4,))]),
    "safetensors": safetensors_bytes({"a": safetensors_record()}, bytes(16)),
}


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".ckpt", ".txt", ""])
@pytest.mark.parametrize("format_", ["gguf", "safetensors", "zip", "legacy"])
def test_the_suffix_does_not_matter(tmp_path: Path, format_: str, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    if format_ in SOUND:
        path.write_bytes(SOUND[format_])
    else:
        zipped = format_ == "zip"
        torch.save({"a": torch.zeros(4)}, path, _use_new_zipfile_serialization=zipped)
    index = open_index(path)
    assert index.format == (format_ if format_ in SOUND else "torch")
    assert list(index.tensors) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\xef\xbb\xbf\n <HTML lang='en'>", "a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a web page"),
        (b'{"error": "Invalid username or password."}', "JSON"),
        (b"Entry not found", "begins b'Entry not found'"),
        (b"\x80\x04}.", "a Python pickle"),
        (b"\x1f\x8b\x08" + bytes(20), "a gzip archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(20), "a 7z archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "a picture"),
        (b"tjgg" + bytes(20), "an old ggml file"),
        (bytes(4096), "zeros"),
        (b"GGU", "begins b'GGU'"),
        (b"\x01", "begins"),
        (b"{", "cannot be read"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        open_index(path)
    assert str(caught.value).startswith(f"{path}: found ")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no such file"):
        open_index(tmp_path / "model.gguf")


def test_zero_byte_in_a_path() -> None:
    with pytest.raises(ParameterError, match="must be a path, not"):
        open_index("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_do_not_block(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ParameterError, match="not a regular file"):
        open_index(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices here")
def test_devices_are_not_read() -> None:
    with pytest.raises(ParameterError, match="not a regular file"):
        open_index("/dev/zero")


def test_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ParameterError, match="cannot be read"):
        open_index(tmp_path / "a")


def test_text_and_paths(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(SOUND["gguf"])
    assert open_index(str(path)).tensors == open_index(path).tensors


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts descriptors in /proc")
def test_nothing_stays_open(tmp_path: Path) -> None:
    for name, content in SOUND.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"a": torch.zeros(4)}, tmp_path / "zip")
    torch.save({"a": torch.zeros(4)}, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    (tmp_path / "folder").mkdir()
    save_file({"a": torch.zeros(4)}, tmp_path / "folder/model.safetensors")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in [entry for entry in tmp_path.iterdir() if entry.is_file()]:
        content = path.read_bytes()
        (broken / path.name).write_bytes(content[: len(content) * 2 // 3])

    def descriptors_and_maps() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count(str(tmp_path))
        return len(os.listdir("/proc/self/fd")), maps

    gc.collect()
    before = descriptors_and_maps()
    indexes = [open_index(path) for path in tmp_path.iterdir() if path.name != "broken"]
    for path in broken.iterdir():
        with pytest.raises(FormatError):
            open_index(path)
    assert descriptors_and_maps() == before
    assert len(indexes) == 5
    shutil.rmtree(tmp_path)
