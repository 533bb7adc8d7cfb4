"""Reading an adapter file: which tensor changes which parameter of a model, and how."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdengine import _core
from sdengine.adapters.families import seems_to_be_for
from sdengine.adapters.names import SHARED, split_name
from sdengine.adapters.targets import Target, Targets
from sdengine.errors import ParameterError, WeightsError
from sdengine.formats import TensorEntry, TensorIndex, open_index

Parts = Mapping[str, TensorEntry]

_REPORTED = 3  # faults or names per message
# Files in a folder that PEFT or diffusers wrote.
_IN_FOLDER = (
    *("adapter_model.safetensors", "pytorch_lora_weights.safetensors"),
    *("adapter_model.bin", "pytorch_lora_weights.bin"),
)
_INTEGERS = ("i64", "i32", "i16", "i8")
# Tensors whose rows are the rows of the parameter, by kind: those that can be cut where a file's module is fused.
_ROWS = {
    "low_rank": ("up", "row_magnitude", "magnitude", "bias"),
    "hadamard": ("w1_a", "w2_a", "row_magnitude", "magnitude"),
    "add": ("weight", "bias"),
    "replace": ("weight", "bias"),
}


@dataclass(frozen=True)
class AdapterFile:
    """An adapter, resolved against one model."""

    path: Path
    networks: Mapping[str, _core.Adapter]
    """Component -> what changes in it."""
    used: tuple[str, ...]
    """Tensors that change something."""
    unused: tuple[str, ...]
    """Tensors that have no meaning in this model."""


@dataclass
class _Module:
    """The tensors of one module of the file, by kind and part."""

    kinds: dict[str, dict[str, TensorEntry]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def shared(self, part: str) -> TensorEntry | None:
        return self.kinds.get(SHARED, {}).get(part)


def read_adapter(path: Path, targets: Targets) -> AdapterFile:
    """Find the parameters that a LoRA file (or PEFT's folder) changes. Values are read when it is applied.

    Raises:
        ParameterError: there is no file.
        FormatError: it is damaged.
        WeightsError: nothing in it belongs to this model, or shapes do not fit; the message says which family it
            seems to be for.
    """
    index, ratios = _open(path)
    modules: dict[str, _Module] = {}
    unused: list[str] = []
    for name, entry in index.tensors.items():
        found = split_name(name)
        if found is None:
            unused.append(name)
            continue
        module, role = found
        record = modules.setdefault(module, _Module())
        record.names.append(name)
        record.kinds.setdefault(role.kind, {})[role.part] = entry
    reading = _Reading(targets, ratios)
    used = [name for module, record in modules.items() for name in reading.take(module, record)]
    if reading.faults or not used:
        raise _unfit(index, reading.faults, len(modules))
    known = set(used)
    return AdapterFile(
        path=path,
        networks=reading.networks,
        used=tuple(used),
        unused=tuple(name for name in index.tensors if name not in known),
    )


class _Reading:
    """The changes found so far."""

    def __init__(self, targets: Targets, ratios: _Ratios) -> None:
        self.networks: dict[str, _core.Adapter] = {}
        self.faults: list[str] = []
        self._targets, self._ratios = targets, ratios

    def take(self, module: str, record: _Module) -> list[str]:
        """Add what a module of the file changes; returns the names of the tensors that were used."""
        used: list[str] = []
        for target in self._targets.find(module):
            for kind, parts in record.kinds.items():
                if kind == SHARED:
                    continue
                try:
                    self._add(target, kind, parts, record, module)
                except WeightsError as error:
                    self.faults.append(f"{module!r}: {error}")
                used += [entry.name for entry in parts.values()]
            if used:
                used += [entry.name for entry in record.kinds.get(SHARED, {}).values()]
        return list(dict.fromkeys(used))

    def _add(self, target: Target, kind: str, parts: Parts, record: _Module, module: str) -> None:
        if target.part is not None:
            parts = _rows(parts, kind, target.part)
        if kind in ("add", "replace"):
            for name, entry in parts.items():
                self._change(target, name, kind, {"value": entry}, 1.0)
            return
        tensors = {name: entry for name, entry in parts.items() if name != "bias"}
        if kind == "glora":
            tensors = _ordered_glora(tensors)
        factor = self._ratios.of(module, record, kind, tensors)
        for name in ("magnitude", "row_magnitude"):
            length = record.shared(name)
            if length is None:
                continue
            if name == "row_magnitude":  # PEFT keeps one length per row, whatever the axes
                length = length.reshape((length.elements,))
            if target.part is not None:
                length = _rows({name: length}, kind, target.part)[name]
            tensors["magnitude"] = length
        self._change(target, "weight", kind, tensors, factor)
        if "bias" in parts:
            self._change(target, "bias", "add", {"value": parts["bias"]}, factor)

    def _change(
        self, target: Target, parameter: str, kind: str, tensors: Parts, factor: float
    ) -> None:
        name = f"{target.module}.{parameter}"
        shape = self._targets.shapes[target.component].get(name)
        if shape is None:
            raise WeightsError(f"the model has no {name!r} that it could change")
        adapter = self.networks.setdefault(target.component, _core.Adapter())
        adapter.add(name, shape, kind, {role: _place(t) for role, t in tensors.items()}, factor)


def _place(
    entry: TensorEntry,
) -> tuple[str, tuple[int, ...], Path, int, int, tuple[int, ...] | None]:
    return entry.dtype, entry.shape, entry.path, entry.offset, entry.nbytes, entry.strides


def _rows(parts: Parts, kind: str, part: tuple[int, int]) -> dict[str, TensorEntry]:
    """The rows of a fused module that belong to block `index` of `count` equal ones."""
    index, count = part
    if kind not in _ROWS:
        raise WeightsError(f"a change of the kind {kind} cannot be parted into {count} modules")
    cut = {}
    for name, entry in parts.items():
        if name in _ROWS[kind] and entry.shape:
            height, left = divmod(entry.shape[0], count)
            if left:
                raise WeightsError(f"its {entry.shape[0]} rows cannot be parted into {count}")
            entry = entry.rows(index * height, height)
        cut[name] = entry
    return cut


def _ordered_glora(tensors: Parts) -> dict[str, TensorEntry]:
    """Older files have the factors of each product the other way round."""
    if tensors.keys() != {"a1", "a2", "b1", "b2"}:
        return dict(tensors)
    shapes = {name: entry.shape for name, entry in tensors.items()}
    if all(len(shape) >= 2 for shape in shapes.values()):
        rank = shapes["a1"][0]
        old = rank == shapes["a2"][1] and shapes["b1"][0] == shapes["b2"][1] == rank
        new = shapes["a1"][1] == shapes["a2"][0] and shapes["b1"][1] == shapes["b2"][0]
        if old and not new:
            swapped = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
            return {swapped[name]: entry for name, entry in tensors.items()}
    return dict(tensors)


@dataclass(frozen=True)
class _Ratios:
    """alpha / rank of modules whose tensors do not tell it: PEFT writes it into a config."""

    config: Mapping[str, Any] = field(default_factory=dict)

    def of(self, module: str, record: _Module, kind: str, tensors: Parts) -> float:
        """The factor of a module's change."""
        rank = _rank(kind, tensors)
        if (stored := record.shared("factor")) is not None:
            return _number(stored)
        if (alpha := record.shared("alpha")) is not None:
            return _number(alpha) / rank if rank else 1.0
        return self._configured(module, rank) if rank else 1.0

    def _configured(self, module: str, rank: int) -> float:
        for prefix in ("", "unet.", "transformer.", "text_encoder.", "text_encoder_2."):
            if f"{prefix}lora_alpha" not in self.config or not module.startswith(prefix):
                continue
            alpha = self.config[f"{prefix}lora_alpha"]
            patterns = self.config.get(f"{prefix}alpha_pattern") or {}
            own = [v for k, v in patterns.items() if module.endswith(k)]
            alpha = own[0] if own else alpha
            if not isinstance(alpha, int | float):
                break
            root = rank**0.5 if self.config.get(f"{prefix}use_rslora") else rank
            return float(alpha) / root
        return 1.0


def _rank(kind: str, tensors: Parts) -> int:
    """The rank by which alpha is divided; 0 where alpha has no meaning (LyCORIS' rules)."""
    axes = {
        "low_rank": (("down", 0),),
        "hadamard": (("w1_b", 0),),
        "kronecker": (("w2_b", 0), ("w1_b", 0)),
        "glora": (("a2", 0),),
    }[kind]
    for name, axis in axes:
        if name in tensors and len(tensors[name].shape) > axis:
            return tensors[name].shape[axis]
    return 0


def _number(entry: TensorEntry) -> float:
    if entry.elements != 1:
        raise WeightsError(f"{entry.name!r} has {entry.elements} values, expected one")
    if entry.dtype in _INTEGERS:
        with entry.path.open("rb") as file:
            file.seek(entry.offset)
            return float(int.from_bytes(file.read(entry.nbytes), "little", signed=True))
    place = _place(entry.reshape((1,)))
    return float(_core.read_values(*place)[0])


def _open(path: Path) -> tuple[TensorIndex, _Ratios]:
    config: Mapping[str, Any] = {}
    if path.is_dir():
        file = next((path / name for name in _IN_FOLDER if (path / name).is_file()), None)
        if file is None:
            raise ParameterError(
                f"{path} holds no adapter; expected one of {', '.join(_IN_FOLDER)}"
            )
        if (path / "adapter_config.json").is_file():
            config = _parsed((path / "adapter_config.json").read_text("utf-8"))
        path = file
    index = open_index(path)
    stored = index.metadata.get("lora_adapter_metadata")  # diffusers from 0.34 on
    if isinstance(stored, str):
        config = {**config, **_parsed(stored)}
    return index, _Ratios(config)


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _unfit(index: TensorIndex, faults: Iterable[str], modules: int) -> WeightsError:
    """The error of a file that does not belong to the model."""
    shapes = {name: entry.shape for name, entry in index.tensors.items()}
    family = seems_to_be_for(shapes)
    guess = f" It seems to be for {family}." if family else ""
    listed = list(faults)
    if listed:
        shown = "; ".join(listed[:_REPORTED])
        more = f"; and {len(listed) - _REPORTED} more" if len(listed) > _REPORTED else ""
        return WeightsError(
            f"{index.path}: {len(listed)} of {modules} changes do not fit this model: {shown}{more}.{guess}"
        )
    names = ", ".join(repr(name) for name in list(shapes)[:_REPORTED]) or "none"
    return WeightsError(
        f"{index.path}: none of its {len(shapes)} tensors ({names}, ...) changes a parameter of this model."
        f"{guess} Give a LoRA that was made for the model's family"
    )
