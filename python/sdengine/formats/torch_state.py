"""From the value in a torch checkpoint's pickle to named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdengine.errors import FormatError
from sdengine.formats.dtypes import DTYPES
from sdengine.formats.index import (
    MAX_ELEMENTS,
    MAX_NAME_LENGTH,
    TensorEntry,
    TensorIndex,
    is_contiguous,
    strided_span,
)
from sdengine.formats.pickle_machine import Opaque
from sdengine.formats.source import DOWNLOAD_AGAIN, format_error, quoted
from sdengine.formats.torch_values import StorageRef, TensorRef

Locate = Callable[[StorageRef], tuple[int, int]]
"""Where a storage's data begins in the file and how many bytes it has."""

# Where training tools put the weights, in the order of preference (params_ema: the averaged
# weights of an upscaler).
_WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "module")
_MAX_DEPTH = 32
_MAX_METADATA_TEXT = 65536  # characters


def index_checkpoint(path: Path, value: object, locate: Locate) -> TensorIndex:
    """The index of a checkpoint whose pickle holds `value`."""
    metadata = _plain_values(value)
    tensors = {
        name: _entry(path, name, tensor, locate)
        for name, tensor in _named_tensors(path, _unwrap(value), "", set(), 0)
    }
    if not tensors:
        remedy = "Save the model's state dict with torch.save, or get the model as safetensors."
        raise format_error(path, f"{_kind(value)} without tensors", "a dict of tensors", remedy)
    return TensorIndex(path, "torch", tensors, metadata)


def _kind(value: object) -> str:
    if isinstance(value, Opaque):
        return f"a pickled {quoted(value.kind.dotted)}"
    return "a pickle" if value is None else f"a pickled {type(value).__name__}"


def _plain_values(value: object) -> dict[str, Any]:
    """The text, numbers and booleans beside the weights."""
    if not isinstance(value, dict):
        return {}
    return {key: item for key, item in value.items() if isinstance(key, str) and _is_plain(item)}


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_METADATA_TEXT
    if isinstance(value, int):
        return -MAX_ELEMENTS <= value <= MAX_ELEMENTS
    return isinstance(value, float)


def _unwrap(value: object) -> object:
    """The dict of weights inside the dicts that training tools put around it."""
    for _ in range(_MAX_DEPTH):
        wrapped = _wrapped(value)
        if wrapped is None:
            break
        value = wrapped
    return value


def _wrapped(value: object) -> dict[object, object] | None:
    if isinstance(value, dict):
        for key in _WRAPPERS:
            inner = value.get(key)
            if isinstance(inner, dict) and _leads_to_tensors(inner):
                return inner
    return None


def _leads_to_tensors(value: dict[object, object]) -> bool:
    return any(isinstance(item, TensorRef) for item in value.values()) or any(
        isinstance(value.get(key), dict) for key in _WRAPPERS
    )


def _named_tensors(
    path: Path, value: object, prefix: str, seen: set[int], depth: int
) -> Iterator[tuple[str, TensorRef]]:
    """Every tensor in nested dicts and modules, names joined by dots; each container once."""
    if depth > _MAX_DEPTH:
        raise format_error(path, "dicts nested too deeply", f"at most {_MAX_DEPTH} levels")
    if id(value) in seen:
        return
    seen.add(id(value))
    for key, item in _children(value).items():
        if not isinstance(key, str):
            continue
        name = prefix + key
        if isinstance(item, TensorRef):
            if len(name) > MAX_NAME_LENGTH:
                expected = f"at most {MAX_NAME_LENGTH} characters"
                raise format_error(path, f"a tensor name that begins {quoted(name)}", expected)
            yield name, item
        elif isinstance(item, Opaque) and item.kind.module == "torch._utils":
            remedy = "Save it as an ordinary dense tensor."
            found = f"tensor {quoted(name)} made by {quoted(item.kind.name)}"
            raise format_error(path, found, "dense tensors", remedy)
        elif isinstance(item, dict | Opaque) and len(name) <= MAX_NAME_LENGTH:
            yield from _named_tensors(path, item, name + ".", seen, depth + 1)


def _children(value: object) -> dict[object, object]:
    """The items of a dict; of a pickled module its parameters, buffers and submodules."""
    if isinstance(value, dict):
        return value
    children: dict[object, object] = {}
    if isinstance(value, Opaque) and isinstance(value.state, dict):
        for group in ("_parameters", "_buffers", "_modules"):
            members = value.state.get(group)
            if isinstance(members, dict):
                children.update(members)
    return children


def _entry(path: Path, name: str, tensor: TensorRef, locate: Locate) -> TensorEntry:
    """The checked entry of one tensor."""
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        expected = f"one of {', '.join(name for name, d in DTYPES.items() if not d.is_quantized)}"
        remedy = "Convert the tensor to one of these types."
        raise _tensor_error(path, name, f"dtype {quoted(tensor.dtype)}", expected, remedy)
    storage_start, storage_bytes = locate(tensor.storage)
    first = (tensor.storage.view_offset + tensor.offset) * dtype.block_bytes
    nbytes = strided_span(tensor.shape, tensor.strides) * dtype.block_bytes
    if first + nbytes > storage_bytes:
        raise _tensor_error(
            path, name, f"a storage of {storage_bytes} bytes", f"at least {first + nbytes}"
        )
    contiguous = is_contiguous(tensor.shape, tensor.strides)
    strides = None if contiguous else tensor.strides
    return TensorEntry(
        name, tensor.dtype, tensor.shape, path, storage_start + first, nbytes, strides
    )


def _tensor_error(
    path: Path, name: str, found: str, expected: str, remedy: str = DOWNLOAD_AGAIN
) -> FormatError:
    return format_error(path, f"{found} (tensor {quoted(name)})", expected, remedy)
