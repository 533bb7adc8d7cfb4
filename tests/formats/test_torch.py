"""Torch checkpoints: every layout that torch.save writes."""

from __future__ import annotations

import collections
import struct
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sdengine.errors import FormatError
from sdengine.formats import open_index

from .builders import (
    TORCH_DTYPES,
    assert_same_tensors,
    dict_pickle,
    read_tensor,
    tensor_opcodes,
    torch_zip_bytes,
)

LAYOUTS = {"zip": True, "legacy": False}


def save(folder: Path, value: object, layout: str = "zip", protocol: int = 2) -> Path:
    path = folder / "model.ckpt"
    zipped = LAYOUTS[layout]
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return path


def tensors_of_all_kinds() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    tensors = {
        name: torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
        for name, dtype in TORCH_DTYPES.items()
    }
    return tensors | {
        "base": base,
        "rows": base[2:4],
        "transposed": base.T,
        "columns": base[:, 1:7:2],
        "permuted": torch.randn(2, 3, 4, 5, generator=generator).permute(0, 3, 1, 2),
        "expanded": torch.randn(1, 4, generator=generator).expand(3, 4),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "tied": base,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_torch(tmp_path: Path, layout: str, protocol: int) -> None:
    tensors = tensors_of_all_kinds()
    if layout == "legacy":  # torch has no storages of these types, and so cannot write them
        del tensors["f8_e4m3"], tensors["f8_e5m2"]
    path = save(tmp_path, tensors, layout, protocol)
    index = open_index(path)
    assert (index.format, index.path) == ("torch", path)
    assert_same_tensors(index.tensors, tensors)
    assert index.tensors["transposed"].strides == (1, 8)
    assert index.tensors["rows"].strides is None
    assert index.tensors["tied"].offset == index.tensors["base"].offset
    for entry in index.tensors.values():
        assert entry.offset + entry.nbytes <= path.stat().st_size


def test_rows_of_a_strided_tensor(tmp_path: Path) -> None:
    base = torch.arange(48.0).reshape(6, 8).T
    entry = open_index(save(tmp_path, {"a": base})).tensors["a"]
    assert torch.equal(read_tensor(entry.rows(3, 4)), base[3:7])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_modules_state_dict(tmp_path: Path, layout: str) -> None:
    """Parameters, an OrderedDict with _metadata, attributes on a tensor."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm2d(4))
    state = module.state_dict(keep_vars=True)
    marked = torch.nn.Parameter(torch.ones(2))
    marked.note = "x"  # type: ignore[attr-defined]
    state["marked"] = marked
    found = open_index(save(tmp_path, state, layout)).tensors
    assert_same_tensors(found, {name: tensor.detach() for name, tensor in state.items()})


class Settings(dict[str, Any]):
    """A class that the reader does not know."""


def test_training_checkpoint(tmp_path: Path) -> None:
    """What pytorch-lightning keeps beside the weights is ignored, unknown classes included."""
    weights = {"model.a": torch.rand(2, 2), "model.b": torch.rand(3)}
    checkpoint = {
        "epoch": 3,
        "global_step": 470000,
        "lr": 1e-4,
        "done": True,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": collections.OrderedDict(weights),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.rand(2, 2)}}, "groups": [{}]}],
        "callbacks": {Settings: {"best": torch.rand(1)}, (1, 2): None},
        "hyper_parameters": Settings(unet=Settings(width=320), path=Path("x")),
        "random": np.random.default_rng(0).random(3),
        "scalar": np.float64(0.5),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "names": {"x", "y"},
        "frozen": frozenset({1}),
        "nothing": None,
        "complex": 1 + 2j,
        "raw": bytearray(b"abc"),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "notes": SimpleNamespace(a=1),
        "big": 10**30,
        "x" * 1000: {"y": 1},
    }
    for layout in LAYOUTS:
        index = open_index(save(tmp_path, checkpoint, layout))
        assert_same_tensors(index.tensors, weights)
        assert index.metadata == {
            "epoch": 3,
            "global_step": 470000,
            "lr": 1e-4,
            "done": True,
            "pytorch-lightning_version": "1.4.2",
        }


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"params_ema": weights, "params": {"x": torch.zeros(1)}},
        lambda weights: {"params": weights},
        lambda weights: {"model": weights, "optimizer": {"x": torch.zeros(1)}},
        lambda weights: {"state_dict": {"model": weights}},
        lambda weights: {"model_state_dict": weights, "step": torch.zeros(1)},
    ],
)
def test_wrappers_are_taken_off(tmp_path: Path, wrap: Any) -> None:
    weights = {"conv.weight": torch.rand(2, 2)}
    assert_same_tensors(open_index(save(tmp_path, wrap(weights))).tensors, weights)


def test_nested_dicts_are_joined_by_dots(tmp_path: Path) -> None:
    """An A1111 textual inversion file."""
    vector = torch.rand(2, 8)
    value = {"string_to_token": {"*": 265}, "string_to_param": {"*": vector}, "name": "cat"}
    index = open_index(save(tmp_path, value))
    assert_same_tensors(index.tensors, {"string_to_param.*": vector})
    assert index.metadata == {"name": "cat"}


def test_parameter_dict(tmp_path: Path) -> None:
    """The original textual inversion code stores a ParameterDict."""
    vector = torch.nn.Parameter(torch.rand(2, 8))
    value = {"string_to_param": torch.nn.ParameterDict({"cat": vector})}
    found = open_index(save(tmp_path, value)).tensors
    assert_same_tensors(found, {"string_to_param.cat": vector.detach()})


def test_whole_module(tmp_path: Path) -> None:
    """A pickled module is taken apart without its class."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm2d(4))
    found = open_index(save(tmp_path, module)).tensors
    assert_same_tensors(found, module.state_dict())


def test_cycles_end(tmp_path: Path) -> None:
    value: dict[str, Any] = {"a": torch.zeros(2)}
    value["self"] = value
    items: list[Any] = []
    items.append(items)
    value["list"] = items
    assert list(open_index(save(tmp_path, value)).tensors) == ["a"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "a pickled dict without tensors"),
        (torch.zeros(2), "a pickled TensorRef without tensors"),
        ([torch.zeros(2)], "a pickled list without tensors"),
        (None, "a pickle without tensors"),
        (Settings(), r"a pickled 'tests?.*Settings' without|a pickled '.*Settings' without"),
        ({"z": torch.zeros(2, dtype=torch.complex64)}, "dtype 'complex64' .tensor 'z'"),
        ({"z": torch.zeros(2, dtype=torch.uint16)}, "dtype 'uint16'"),
        ({"z": torch.zeros(2, 2).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"n" * 513: torch.zeros(2)}, "a tensor name that begins"),
    ],
)
def test_what_holds_no_weights(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_index(save(tmp_path, value))


def test_many_tensors_open_quickly(tmp_path: Path) -> None:
    """About 55 ms on the reference machine: a pickle has 30 operations per tensor."""
    path = save(tmp_path, {f"blocks.{i}.weight": torch.zeros(2, 2) for i in range(3000)})
    times = []
    for _ in range(5):
        start = time.process_time()
        assert len(open_index(path).tensors) == 3000
        times.append(time.process_time() - start)
    assert min(times) < 0.12


# What can be wrong

SOUND = dict_pickle(("a", tensor_opcodes()))
DATA = {"0": bytes(16)}

WRONG_ZIP: dict[str, tuple[bytes, str]] = {
    "no pickle": (
        torch_zip_bytes(SOUND, DATA).replace(b"data.pkl", b"data.bin"),
        "expected one data.pkl",
    ),
    "two pickles": (torch_zip_bytes(SOUND, {**DATA, "data.pkl": b""}), "expected one data.pkl"),
    "compressed": (
        torch_zip_bytes(SOUND, DATA, compression=zipfile.ZIP_DEFLATED),
        "compressed or encrypted",
    ),
    "TorchScript": (torch_zip_bytes(SOUND, DATA, others={"constants.pkl": b""}), "TorchScript"),
    "big-endian": (torch_zip_bytes(SOUND, DATA, others={"byteorder": b"big"}), "byte order b'big'"),
    "missing storage": (torch_zip_bytes(SOUND, {}), "expected a member 'data/0'"),
    "short storage": (torch_zip_bytes(SOUND, {"0": bytes(15)}), "15 bytes in storage '0'"),
    "tensor beyond the storage": (
        torch_zip_bytes(dict_pickle(("a", tensor_opcodes(offset=b"K\x01"))), DATA),
        "a storage of 16 bytes .*; expected at least 20",
    ),
    "no end": (torch_zip_bytes(SOUND, DATA)[:-30], "cannot be read|expected"),
    "empty archive": (b"PK\x03\x04" + bytes(100), "cannot be read"),
    "empty pickle": (torch_zip_bytes(b"", DATA), "ends early"),
}


@pytest.mark.parametrize("case", WRONG_ZIP)
def test_what_is_wrong_with_an_archive(tmp_path: Path, case: str) -> None:
    content, message = WRONG_ZIP[case]
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        open_index(path)
    assert str(caught.value).startswith(f"{path}: found ")


def test_hand_made_archive_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(torch_zip_bytes(SOUND, {"0": np.arange(4, dtype="<f4").tobytes()}))
    assert_same_tensors(open_index(path).tensors, {"a": torch.arange(4.0)})
    assert_same_tensors(open_index(path).tensors, torch.load(path, weights_only=True))


def test_legacy_truncations(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": torch.rand(3), "b": torch.rand(2, 2).half()}, "legacy")
    content = path.read_bytes()
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(FormatError):
            open_index(path)


def test_legacy_storage_sizes(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": torch.rand(3)}, "legacy")
    content = path.read_bytes()
    assert content[-20:-12] == struct.pack("<q", 3)
    for lie in (-1, 4, 2**62):
        path.write_bytes(content[:-20] + struct.pack("<q", lie) + content[-12:])
        with pytest.raises(FormatError, match=f"{lie} elements"):
            open_index(path)


def test_legacy_big_endian(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": torch.rand(3)}, "legacy")
    little = b"little_endianq\x02\x88"
    content = path.read_bytes()
    assert little in content
    path.write_bytes(content.replace(little, little[:-1] + b"\x89"))
    with pytest.raises(FormatError, match="big-endian"):
        open_index(path)


def test_zip_truncations(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": torch.rand(3)})
    content = path.read_bytes()
    for size in range(1, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(FormatError):
            open_index(path)
