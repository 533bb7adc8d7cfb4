"""What the globals and storages in a torch checkpoint's pickle stand for.

`TorchHost` turns the few torch functions that rebuild a tensor into descriptions of that tensor.
Every other call is inert: it yields an :class:`~sdengine.formats.pickle_machine.Opaque` value,
because training tools keep their own objects beside the weights. A call of something from Python's
standard library that weights have no use for (``os.system``, ``builtins.eval``,
``subprocess.Popen``...) is refused by name: such a file is an attack, even if it could do nothing
here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sdengine.errors import FormatError
from sdengine.formats.index import MAX_ELEMENTS, is_shape
from sdengine.formats.pickle_machine import Global, Opaque
from sdengine.formats.source import format_error, quoted


@dataclass(frozen=True, slots=True)
class StorageRef:
    """One storage of a checkpoint: a flat run of elements that tensors share."""

    key: str
    kind: str
    """torch's name, for example ``FloatStorage``; a key of :data:`STORAGES`."""
    elements: int
    view_offset: int = 0
    """Elements from the start of the stored data (views in files of before torch 0.4)."""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """One tensor as a window onto a storage. Units are elements of `dtype`."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# storage class -> dtype name (torch's own where sdengine has none), bytes per element
STORAGES: Final[dict[str, tuple[str, int]]] = {
    "DoubleStorage": ("f64", 8),
    "FloatStorage": ("f32", 4),
    "HalfStorage": ("f16", 2),
    "BFloat16Storage": ("bf16", 2),
    "LongStorage": ("i64", 8),
    "IntStorage": ("i32", 4),
    "ShortStorage": ("i16", 2),
    "CharStorage": ("i8", 1),
    "ByteStorage": ("u8", 1),
    "BoolStorage": ("bool", 1),
    "UntypedStorage": ("u8", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
}
_STORAGE_MODULES: Final = ("torch", "torch.storage", "torch.cuda")

_TORCH_DTYPES: Final[dict[str, str]] = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "bool",
}

# Calls of the standard library that occur in honest checkpoints: values beside the weights.
_HARMLESS_BUILTINS: Final = (
    *("bool", "bytearray", "bytes", "complex", "float", "frozenset", "int", "list", "long"),
    *("object", "range", "set", "slice", "str", "tuple", "unicode", "xrange"),
)
_HARMLESS: Final = frozenset(
    {
        "_codecs.encode",
        "argparse.Namespace",
        "collections.Counter",
        "collections.deque",
        "copyreg._reconstructor",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "decimal.Decimal",
        "fractions.Fraction",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "types.SimpleNamespace",
        "uuid.UUID",
        *(f"builtins.{name}" for name in _HARMLESS_BUILTINS),
    }
)
# Pickles of protocol 2, torch's default, name modules as Python 2 did.
_PYTHON2_MODULES: Final = {
    "__builtin__": "builtins",
    "cPickle": "pickle",
    "commands": "subprocess",
    "copy_reg": "copyreg",
    "exceptions": "builtins",
    "httplib": "http.client",
    "popen2": "subprocess",
    "urllib2": "urllib.request",
}
_MAX_PAIRS = 1_000_000  # a pickle can pass one long list to many calls


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


class TorchHost:
    """The :class:`~sdengine.formats.pickle_machine.Host` of a torch checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.storages: dict[str, StorageRef] = {}
        """Every storage seen, by key."""
        self._pairs_left = _MAX_PAIRS

    def call(self, function: object, arguments: object) -> object:
        """A :class:`TensorRef` for a tensor, a dict for a dict, else an inert value."""
        if not isinstance(function, Global):
            raise self._malformed("a call of a computed value")
        module = _PYTHON2_MODULES.get(function.module, function.module)
        name = f"{module}.{function.name}"
        rebuild = _REBUILDERS.get(name)
        if rebuild is not None:
            return rebuild(self, arguments)
        if module.partition(".")[0] in sys.stdlib_module_names and name not in _HARMLESS:
            raise self._refused(name)
        return Opaque(function)

    def persistent(self, identifier: object) -> object:
        """The storage behind ``("storage", class, key, device, elements[, view])``."""
        match identifier:
            case ("module", Global() as module, *_):  # names the class of a pickled module
                return module
            case ("storage", Global() as kind, str() as key, _, int() as elements, *view):
                pass
            case _:
                raise self._malformed("an unknown reference outside the pickle")
        if kind.module not in _STORAGE_MODULES or kind.name not in STORAGES:
            raise self._malformed(f"storage of type {quoted(kind.dotted)}")
        if not 0 <= elements <= MAX_ELEMENTS:
            raise self._malformed("a storage of a senseless size")
        view_offset = 0
        if view and isinstance(view[0], tuple):
            view_offset = self._view_offset(view[0])
        storage = StorageRef(key, kind.name, elements, view_offset)
        known = self.storages.setdefault(key, storage)
        if known.kind != storage.kind:
            raise self._malformed(f"storage {quoted(key)} of two types")
        return storage

    def _view_offset(self, view: tuple[object, ...]) -> int:
        """``(key of the view, offset, elements)``."""
        match view:
            case (_, int() as offset, _) if 0 <= offset <= MAX_ELEMENTS:
                return offset
        raise self._malformed("a storage view that makes no sense")

    def _empty_dict(self, _arguments: object) -> dict[object, object]:
        """The items follow behind the call."""
        return {}

    def _ordered_dict(self, arguments: object) -> dict[object, object]:
        """Empty, or filled from the pairs that Python 2 passes to the constructor."""
        result: dict[object, object] = {}
        match arguments:
            case ([*pairs],):
                self._pairs_left -= len(pairs)
                if self._pairs_left < 0:
                    raise self._malformed(f"more than {_MAX_PAIRS} pairs in ordered dicts")
                for pair in pairs:
                    match pair:
                        case [str() as key, value] | (str() as key, value):
                            result[key] = value
        return result

    def _tensor(self, arguments: object) -> TensorRef:
        """``(storage, offset, shape, strides, ...)``."""
        match arguments:
            case (
                StorageRef() as storage,
                int() as offset,
                tuple() as shape,
                tuple() as strides,
                *_,
            ):
                return self._window(storage, STORAGES[storage.kind][0], offset, shape, strides)
        raise self._malformed("a tensor without a storage")

    def _typed_tensor(self, arguments: object) -> TensorRef:
        """``(storage, offset, shape, strides, gradient, hooks, dtype, ...)``, for newer types."""
        match arguments:
            case (
                StorageRef() as storage,
                int() as offset,
                tuple() as shape,
                tuple() as strides,
                _,
                _,
                Global(module="torch", name=dtype),
                *_,
            ):
                return self._window(
                    storage, _TORCH_DTYPES.get(dtype, dtype), offset, shape, strides
                )
        raise self._malformed("a tensor without a storage")

    def _window(
        self,
        storage: StorageRef,
        dtype: str,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> TensorRef:
        sound = is_shape(shape) and len(strides) == len(shape)
        if not sound or not all(map(_is_count, (offset, *strides))):
            raise self._malformed("a tensor whose shape, strides or offset make no sense")
        return TensorRef(storage, dtype, offset, shape, strides)

    def _first(self, arguments: object) -> object:
        match arguments:
            case (value, *_):
                return value
        raise self._malformed("a parameter without a tensor")

    def _subclass(self, arguments: object) -> object:
        """``(function, class, arguments, state)``: a tensor that carries attributes."""
        match arguments:
            case (Global() as function, _, tuple() as inner, *_) if function.dotted != (
                "torch._tensor._rebuild_from_type_v2"
            ):
                return self.call(function, inner)
        raise self._malformed("a tensor subclass of an unknown kind")

    def _malformed(self, found: str) -> FormatError:
        remedy = "Save the state dict again with torch.save, or get the model as safetensors."
        return format_error(self.path, found, "a checkpoint written by torch.save", remedy)

    def _refused(self, name: str) -> FormatError:
        remedy = "Nothing was run. Do not trust this file: get the model as safetensors."
        found = f"a pickle that wants to run {quoted(name)}"
        return format_error(self.path, found, "weights only", remedy)


_REBUILDERS: Final[dict[str, Callable[[TorchHost, object], object]]] = {
    "builtins.dict": TorchHost._empty_dict,
    "collections.OrderedDict": TorchHost._ordered_dict,
    "collections.defaultdict": TorchHost._empty_dict,
    "torch._tensor._rebuild_from_type_v2": TorchHost._subclass,
    "torch._utils._rebuild_parameter": TorchHost._first,
    "torch._utils._rebuild_parameter_with_state": TorchHost._first,
    "torch._utils._rebuild_tensor": TorchHost._tensor,
    "torch._utils._rebuild_tensor_v2": TorchHost._tensor,
    "torch._utils._rebuild_tensor_v3": TorchHost._typed_tensor,
}
