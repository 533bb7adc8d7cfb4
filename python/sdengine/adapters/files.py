"""Reading an adapter file: which tensor changes which parameter of a model, and how."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdengine import _core
from sdengine.adapters.families import seems_to_be_for
from sdengine.adapters.names import SHARED, split_name
from sdengine.adapters.targets import Rows, Target, Targets, is_of_text
from sdengine.embeddings import Embedding, bundled_embedding, split_bundled
from sdengine.errors import ParameterError, WeightsError
from sdengine.formats import TensorEntry, TensorIndex, open_index

Parts = Mapping[str, TensorEntry]

_REPORTED = 3  # faults or names per message
# Files in a folder that PEFT or diffusers wrote.
_IN_FOLDER = (
    *("adapter_model.safetensors", "pytorch_lora_weights.safetensors"),
    *("adapter_model.bin", "pytorch_lora_weights.bin"),
)
_PREFIXES = ("", "unet.", "transformer.", "text_encoder.", "text_encoder_2.", "text_encoder_3.")
"""Of what diffusers writes about the parts of a model into one config."""
_NEUMANN_TERMS, _MOST_TERMS = 5.0, 64  # of the series; PEFT's default
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
    words: tuple[Embedding, ...] = ()
    """Learned words that come with it."""


@dataclass
class _Module:
    """The tensors of one module of the file, by kind and part."""

    kinds: dict[str, dict[str, TensorEntry]] = field(default_factory=dict)

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
    index, ratios = open_adapter(path)
    contents = _Contents.of(index, targets)
    reading = _Reading(targets, ratios)
    used = [n for module, record in contents.modules.items() for n in reading.take(module, record)]
    of_denoiser = not all(map(is_of_text, contents.modules))
    stranger = of_denoiser and targets.denoiser not in reading.networks
    if reading.faults or not used or stranger:
        raise _unfit(index, reading.faults, len(contents.modules))
    used += [n for n, at in contents.vectors.items() if reading.replace(index.tensors[n], at)]
    used += [entry.name for tensors in contents.words.values() for entry in tensors.values()]
    known = set(used)
    return AdapterFile(
        path=path,
        networks=reading.networks,
        used=tuple(used),
        unused=tuple(name for name in index.tensors if name not in known),
        words=tuple(bundled_embedding(path, *word) for word in contents.words.items()),
    )


@dataclass
class _Contents:
    """The tensors of a file by what they are for."""

    modules: dict[str, _Module] = field(default_factory=dict)
    """By the module's name in the file."""
    vectors: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Whole vectors of the model: name in the file -> (component, parameter)."""
    words: dict[str, dict[str, TensorEntry]] = field(default_factory=dict)
    """Learned words: name -> tensors."""

    @classmethod
    def of(cls, index: TensorIndex, targets: Targets) -> _Contents:
        contents = cls()
        for name, entry in index.tensors.items():
            if word := split_bundled(name):
                contents.words.setdefault(word[0], {})[word[1]] = entry
            elif vector := targets.parameter(name):
                contents.vectors[name] = vector
            elif found := split_name(name):
                module, role = found
                record = contents.modules.setdefault(module, _Module())
                record.kinds.setdefault(role.kind, {})[role.part] = entry
        return contents


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
                    self.faults.append(f"{module!r}: {error}{self._advice(target, parts)}")
                used += [entry.name for entry in parts.values()]
            if used:
                used += [entry.name for entry in record.kinds.get(SHARED, {}).values()]
        return list(dict.fromkeys(used))

    def _advice(self, target: Target, parts: Parts) -> str:
        """What to do about a LoRA that widens the denoiser's input."""
        name = f"{target.module}.weight"
        if self._targets.input != (target.component, name) or "down" not in parts:
            return ""
        shape, down = self._targets.shapes[target.component][name], parts["down"].shape
        if len(down) != len(shape) or down[1] <= shape[1]:
            return ""
        return ". It gives the model a wider input: give it when the model is loaded, with loras="

    def replace(self, entry: TensorEntry, place: tuple[str, str]) -> bool:
        """Put a whole vector in the place of the model's, as BFL's LoRAs do with norms; False if it does not fit."""
        component, name = place
        target = Target(component, name.rpartition(".")[0])
        if self._targets.shapes[component][name] != entry.shape:
            return False
        self._change(target, name.rpartition(".")[2], "replace", {"value": entry}, 1.0)
        return True

    def _add(self, target: Target, kind: str, parts: Parts, record: _Module, module: str) -> None:
        if target.rows is not None:
            parts = _rows(parts, kind, target.rows)
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
            if target.rows is not None:
                length = _rows({name: length}, kind, target.rows)[name]
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
        adapter.add(name, shape, kind, {role: t.place for role, t in tensors.items()}, factor)


def _rows(parts: Parts, kind: str, rows: Rows) -> dict[str, TensorEntry]:
    """The rows of a fused module that belong to one of the modules in it."""
    if kind not in _ROWS:
        raise WeightsError(f"a change of the kind {kind} cannot be parted into several modules")
    cut = {}
    for name, entry in parts.items():
        if name in _ROWS[kind] and entry.shape:
            if entry.shape[0] != rows.total:
                raise WeightsError(f"{name!r} has {entry.shape[0]} rows, expected {rows.total}")
            entry = entry.rows(rows.first, rows.count)
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
        if kind == "rotate_columns":
            return self._terms()
        if kind == "rotate_rows":  # trainers limit the rotations of all blocks together
            alpha = record.shared("alpha")
            blocks = tensors.get("blocks")
            rows = math.prod(blocks.shape[-3:-1]) if blocks is not None else 0
            return 0.0 if alpha is None else _number(alpha) * rows
        rank = _rank(kind, tensors)
        if (stored := record.shared("factor")) is not None:
            return _number(stored)
        if (alpha := record.shared("alpha")) is not None:
            return _number(alpha) / rank if rank else 1.0
        return self._configured(module, rank) if rank else 1.0

    def _terms(self) -> float:
        """Terms of the series that PEFT's OFT computes rotations with; 0 for the exact ones."""
        prefix = next((p for p in _PREFIXES if f"{p}oft_block_size" in self.config), "")
        if self.config.get(f"{prefix}use_cayley_neumann", True) is not True:
            return 0.0
        terms = self.config.get(f"{prefix}num_cayley_neumann_terms", _NEUMANN_TERMS)
        return (
            float(terms) if isinstance(terms, int) and 0 < terms <= _MOST_TERMS else _NEUMANN_TERMS
        )

    def _configured(self, module: str, rank: int) -> float:
        for prefix in _PREFIXES:
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
    return float(_core.read_values(*entry.reshape((1,)).place)[0])


def open_adapter(path: Path) -> tuple[TensorIndex, _Ratios]:
    """The tensors of an adapter file, or of the one in PEFT's folder, and what its config says of alpha."""
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
