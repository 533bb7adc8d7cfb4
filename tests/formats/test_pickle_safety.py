"""Nothing in a checkpoint's pickle runs, and nothing in it costs much time or memory."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdengine.errors import FormatError
from sdengine.formats import open_index

from .builders import (
    assert_same_tensors,
    dict_pickle,
    global_opcode,
    storage_opcodes,
    tensor_opcodes,
    text_opcode,
    torch_zip_bytes,
)

DATA = {"0": bytes(16)}
TENSOR = tensor_opcodes()


def save(folder: Path, pickled: bytes) -> Path:
    path = folder / "model.ckpt"
    path.write_bytes(torch_zip_bytes(pickled, DATA))
    return path


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (os.system, r"(posix|nt)\.system"),
        (subprocess.Popen, r"subprocess\.Popen"),
        (eval, r"builtins\.eval"),
        (exec, r"builtins\.exec"),
        (getattr, r"builtins\.getattr"),
        (__import__, r"builtins\.__import__"),
        (open, r"_?io\.open"),
        (pickle.loads, r"_?pickle\.loads"),
        (Path.unlink, r"builtins\.getattr|pathlib\.Path\.unlink"),
    ],
)
def test_attacks_are_refused_by_name(
    tmp_path: Path, function: Callable[..., object], shown: str, protocol: int
) -> None:
    touched = tmp_path / "touched"
    value = {"a": Call(function, f"touch {touched}")}
    path = save(tmp_path, pickle.dumps(value, protocol))
    with pytest.raises(FormatError, match=f"wants to run '{shown}'.*Nothing was run"):
        open_index(path)
    assert not touched.exists()


CALLS = {
    "reduce": global_opcode("os.system") + text_opcode("true") + b"\x85R",
    "new object": global_opcode("os.system") + text_opcode("true") + b"\x85\x81",
    "new object with keywords": global_opcode("os.system") + text_opcode("true") + b"\x85}\x92",
    "name from the stack": text_opcode("os") + text_opcode("system") + b"\x93)R",
    "python 2": global_opcode("__builtin__.eval") + text_opcode("1") + b"\x85R",
    "inside a tensor subclass": global_opcode("torch._tensor._rebuild_from_type_v2")
    + b"("
    + global_opcode("os.system")
    + b"N"
    + text_opcode("true")
    + b"\x85NtR",
}


@pytest.mark.parametrize("case", CALLS)
def test_every_way_to_call(tmp_path: Path, case: str) -> None:
    path = save(tmp_path, dict_pickle(("weights", TENSOR), ("x", CALLS[case])))
    with pytest.raises(FormatError, match=r"wants to run '(os\.system|builtins\.eval)'"):
        open_index(path)


def test_the_call_of_a_result_is_refused(tmp_path: Path) -> None:
    attack = global_opcode("evil.make") + b")R" + b")R"
    with pytest.raises(FormatError, match="call of a computed value"):
        open_index(save(tmp_path, dict_pickle(("weights", TENSOR), ("x", attack))))


@pytest.mark.parametrize(
    "name",
    [
        "numpy.testing._private.utils.runstring",
        "torch.hub.load",
        "torch.load",
        "torch.nn.Linear",
        "site_that_is_not_installed.Class",
        "__main__.Config",
    ],
)
def test_foreign_calls_are_inert(tmp_path: Path, name: str) -> None:
    """Neither imported nor called, with state, items and appended values thrown away."""
    call = global_opcode(name) + b")R" + b"}b" + b"(K\x01K\x02u" + b"(K\x01e" + b"K\x01a"
    path = save(tmp_path, dict_pickle(("weights", TENSOR), ("x", call)))
    assert list(open_index(path).tensors) == ["weights"]


def test_globals_are_not_imported(tmp_path: Path) -> None:
    assert "antigravity" not in sys.modules
    pickled = dict_pickle(("weights", TENSOR), ("x", global_opcode("antigravity.fly")))
    assert list(open_index(save(tmp_path, pickled)).tensors) == ["weights"]
    assert "antigravity" not in sys.modules


def pickled_with(item: bytes) -> bytes:
    return dict_pickle(("weights", TENSOR), ("x", item))


def nested(count: int, open_: bytes, close: bytes) -> bytes:
    return open_ * count + close * count


DOUBLING_TUPLE = b")" + b"q\x01h\x01\x86" * 60
DOUBLING_DICT = b"}q\x00" + b"".join(
    b"}(" + text_opcode("a") + b"h\x00" + text_opcode("b") + b"h\x00uq\x00" for _ in range(60)
)

HARMLESS = {
    "large memo index": pickled_with(b"Nr\xff\xff\xff\xff"),
    "deep lists": pickled_with(nested(200_000, b"](", b"e")),
    "deep tuples": pickled_with(b")" + b"\x85" * 500_000),
    "deep objects": pickled_with(
        global_opcode("a.B") + b"q\x01)R" + b"q\x020h\x01)Rh\x02b" * 100_000
    ),
    "doubling tuple as a key": pickled_with(b"}" + DOUBLING_TUPLE + b"Ns"),
    "doubling tuple in a set": pickled_with(b"\x8f(" + DOUBLING_TUPLE + b"\x90"),
    "doubling dicts": pickled_with(DOUBLING_DICT),
    "duplicates": pickled_with(b"(" + b"N" + b"2" * 100_000 + b"1N"),
}

REFUSED = {
    "text of 2**63 bytes": pickled_with(b"\x8d" + struct.pack("<Q", 2**63)),
    "bytes of 2**62 bytes": pickled_with(b"\x8e" + struct.pack("<Q", 2**62)),
    "bytearray of 2**40 bytes": pickled_with(b"\x96" + struct.pack("<Q", 2**40)),
    "integer of 2**31 bytes": pickled_with(b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "integer of -1 bytes": pickled_with(b"\x8b" + struct.pack("<i", -1)),
    "long integer": pickled_with(b"\x8b" + struct.pack("<i", 257) + bytes(257)),
    "old text of -1 bytes": pickled_with(b"T" + struct.pack("<i", -1)),
    "endless global": b"\x80\x02c" + b"a" * 100_000,
    "too many operations": b"\x80\x02" + b"N0" * 2_100_000 + b".",
    "empty stack": b"\x80\x020.",
    "no mark": b"\x80\x02t.",
    "unknown memo": b"\x80\x02h\x07.",
    "tuple of too little": b"\x80\x02N\x87.",
    "no result": b"\x80\x02.",
    "no stop": b"\x80\x02N",
    "old protocol": b"(dp0\n.",
    "extension registry": pickled_with(b"\x82\x01"),
    "out-of-band buffer": pickled_with(b"\x97"),
    "append to a number": pickled_with(b"K\x01K\x02a"),
    "item of a number": pickled_with(b"K\x01K\x02K\x03s"),
    "global named by a number": pickled_with(b"K\x01K\x02\x93"),
    "text that is not UTF-8": pickled_with(b"X\x01\0\0\0\xff"),
    "unknown persistent id": pickled_with(b"K\x01Q"),
    "unknown storage": pickled_with(storage_opcodes(kind="evil.FloatStorage")),
    "unknown storage type": pickled_with(storage_opcodes(kind="torch.EvilStorage")),
    "storage of two types": pickled_with(storage_opcodes(kind="torch.HalfStorage")),
    "storage of -1 elements": pickled_with(storage_opcodes(key="1", elements=-1)),
    "tensor without a storage": pickled_with(tensor_opcodes(storage=b"N")),
    "negative offset": pickled_with(tensor_opcodes(offset=b"J\xff\xff\xff\xff")),
    "negative size": pickled_with(tensor_opcodes(shape=b"J\xff\xff\xff\xff\x85")),
    "shape of another rank": pickled_with(tensor_opcodes(shape=b"K\x01K\x04\x86")),
    "shape of text": pickled_with(tensor_opcodes(shape=text_opcode("4") + b"\x85")),
    "parameter of nothing": pickled_with(global_opcode("torch._utils._rebuild_parameter") + b")R"),
    "long list to many ordered dicts": pickled_with(
        b"](" + b"]" * 10_000 + b"e\x85q\x09" + (b"0c" + b"collections\nOrderedDict\nh\x09R") * 101
    ),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless(tmp_path: Path, case: str) -> None:
    path = save(tmp_path, HARMLESS[case])
    started = time.process_time()
    tensors = open_index(path).tensors
    assert time.process_time() - started < 3
    assert list(tensors) == ["weights"]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    path = save(tmp_path, REFUSED[case])
    started = time.process_time()
    with pytest.raises(FormatError) as caught:
        open_index(path)
    assert time.process_time() - started < 10
    assert str(caught.value).startswith(f"{path}: found ")


@pytest.mark.parametrize(
    "case", ["large memo index", "bytes of 2**62 bytes", "integer of 2**31 bytes"]
)
def test_lies_about_sizes_cost_no_memory(tmp_path: Path, case: str) -> None:
    path = save(tmp_path, (HARMLESS | REFUSED)[case])
    tracemalloc.start()
    try:
        open_index(path)
    except FormatError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


def test_ordered_dict_of_python_2(tmp_path: Path) -> None:
    pairs = b"](" + b"](" + text_opcode("a") + TENSOR + b"e" + b"e"
    pickled = b"\x80\x02" + global_opcode("collections.OrderedDict") + pairs + b"\x85R."
    found = open_index(save(tmp_path, pickled)).tensors
    assert_same_tensors(found, {"a": torch.zeros(4)})


def test_text_of_python_2(tmp_path: Path) -> None:
    pickled = b"\x80\x02}U\x01a" + TENSOR + b"s."
    assert_same_tensors(open_index(save(tmp_path, pickled)).tensors, {"a": torch.zeros(4)})


def test_storage_views_of_old_files(tmp_path: Path) -> None:
    """Before torch 0.4 a storage could be a view of another: (key, offset, elements)."""
    view = b"(" + text_opcode("v") + b"K\x01K\x02t"
    storage = storage_opcodes().removesuffix(b"tQ") + view + b"tQ"
    tensor = tensor_opcodes(storage, shape=b"K\x02\x85")
    path = tmp_path / "model.ckpt"
    path.write_bytes(
        torch_zip_bytes(dict_pickle(("a", tensor)), {"0": struct.pack("<4f", *range(4))})
    )
    assert_same_tensors(open_index(path).tensors, {"a": torch.tensor([1.0, 2.0])})


def test_storage_views_that_make_no_sense(tmp_path: Path) -> None:
    view = b"(" + text_opcode("v") + b"J\xff\xff\xff\xffK\x02t"
    storage = storage_opcodes().removesuffix(b"tQ") + view + b"tQ"
    with pytest.raises(FormatError, match="storage view"):
        open_index(save(tmp_path, dict_pickle(("a", tensor_opcodes(storage)))))
