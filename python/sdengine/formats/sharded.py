"""Weights split over files: ``*.safetensors.index.json`` or ``*.bin.index.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdengine.formats.files import read_weight_file
from sdengine.formats.index import TensorEntry, TensorIndex
from sdengine.formats.source import format_error, load_json_object, quoted


def read_sharded(path: Path) -> TensorIndex:
    """The index of all tensors in ``weight_map``, from the shards beside the JSON file `path`.

    Raises FormatError if the JSON is no shard index, or a shard or a tensor is missing.
    """
    content = load_json_object(path)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        remedy = "Give the weight file or the folder instead."
        raise format_error(path, "JSON without a weight_map", "a shard index", remedy)
    shards = {
        name: _read_shard(path, name) for name in dict.fromkeys(map(str, weight_map.values()))
    }
    tensors: dict[str, TensorEntry] = {}
    for name, shard_name in weight_map.items():
        entry = shards[str(shard_name)].tensors.get(name)
        if entry is None:
            raise format_error(path, f"{quoted(shard_name)} without it", f"tensor {quoted(name)}")
        tensors[name] = entry
    first = next(iter(shards.values()))
    return TensorIndex(path, first.format, tensors, _metadata(content, first))


def _read_shard(index_path: Path, name: str) -> TensorIndex:
    if not is_plain_name(name):
        raise format_error(index_path, f"shard {quoted(name)}", "a file in the same folder")
    path = index_path.with_name(name)
    if not path.is_file():
        remedy = "Download the missing file into the same folder."
        raise format_error(index_path, f"no file {quoted(name)}", "every shard", remedy)
    return read_weight_file(path)


def _metadata(content: dict[str, Any], first: TensorIndex) -> dict[str, Any]:
    own = content.get("metadata")
    return {**first.metadata, **(own if isinstance(own, dict) else {})}


def is_plain_name(name: str) -> bool:
    """True for a name that cannot lead out of its folder, on any system."""
    return name not in ("", ".", "..") and not any(char in "/\\:\0" for char in name)
