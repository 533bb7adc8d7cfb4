"""New GGUF files: headers that gguf-py reads, and files that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import gguf
import pytest

from sdengine.errors import OutputError
from sdengine.formats import open_index
from sdengine.loading.new_gguf import NewTensor, write_header
from sdengine.output import new_file

TENSORS = [
    NewTensor("plain", "f32", (3, 5), (3, 5)),
    NewTensor(
        "a.name.that.is.longer.than.the.sixty-four.bytes.of.plain.ggml.weight", "f16", (7,), (7,)
    ),
    NewTensor("kernel", "q8_0", (4, 288), (4, 32, 3, 3)),
    NewTensor("last", "q4_k", (2, 256), (2, 256)),
]
FIELDS = {
    "text": "grüße",
    "flag": True,
    "number": 7,
    "words": ["a", "ü"],
    "flags": [True, False],
    "none": [],
}


def test_gguf_py_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    offsets = write_header(path, "sd1", FIELDS, TENSORS)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "sd1"
    assert reader.fields["text"].contents() == "grüße"
    assert reader.fields["flag"].contents() is True
    assert reader.fields["number"].types == [gguf.GGUFValueType.UINT32]
    assert reader.fields["words"].contents() == ["a", "ü"]
    assert reader.fields["flags"].contents() == [True, False]
    assert "none" not in reader.fields
    found = {
        t.name: (t.tensor_type.name.lower(), t.shape.tolist()[::-1], t.data_offset)
        for t in reader.tensors
    }
    assert found == {t.name: (t.dtype, list(t.shape), offsets[t.name]) for t in TENSORS}
    assert reader.fields["comfy.gguf.orig_shape.kernel"].contents() == [4, 32, 3, 3]


def test_our_reader_gives_original_shapes_and_room_for_the_data(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_header(path, "sd1", {}, TENSORS)
    entries = open_index(path).tensors
    assert [entries[t.name].shape for t in TENSORS] == [t.original_shape for t in TENSORS]
    last = entries["last"]
    assert last.nbytes == 2 * 144
    assert path.stat().st_size >= last.offset + last.nbytes
    assert all(entry.offset % 32 == 0 for entry in entries.values())


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"before")
    with new_file(path, 100) as part:
        part.write_bytes(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fail_while_writing(path: Path, error: type[BaseException]) -> None:
    with new_file(path, 100) as part:
        part.write_bytes(b"half")
        raise error("stop")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OutputError])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"before")
    with pytest.raises(error):
        fail_while_writing(path, error)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with (
        pytest.raises(OutputError, match=r"about 7 MiB are needed.*5 MiB free"),
        new_file(tmp_path / "m", 7 << 20),
    ):
        pytest.fail("nothing may be written")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="absent"), new_file(tmp_path / "absent" / "m", 1):
        pytest.fail("nothing may be written")
