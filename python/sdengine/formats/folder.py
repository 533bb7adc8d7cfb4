"""Diffusers folders: of a pipeline, or of a single component.

A pipeline has a ``model_index.json`` and a subfolder per component.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sdengine.errors import ParameterError
from sdengine.formats.files import read_weight_file
from sdengine.formats.index import TensorEntry, TensorIndex
from sdengine.formats.sharded import is_plain_name, read_sharded
from sdengine.formats.source import format_error, load_json_object, quoted

_MODEL_INDEX = "model_index.json"
_CONFIG_FILES: Final = ("config.json", "scheduler_config.json")
_STEMS: Final = ("diffusion_pytorch_model", "model", "pytorch_model")
_ENDINGS: Final = (".safetensors", ".bin")  # in the order of preference
_WEIGHT_ENDINGS: Final = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
_VARIANT: Final = re.compile(r"[A-Za-z0-9_-]+")
_VARIANT_FILE: Final = re.compile(
    rf"(?:{'|'.join(_STEMS)})\."
    rf"(?:({_VARIANT.pattern})\.(?:safetensors|bin)"
    rf"|(?:safetensors|bin)\.index\.({_VARIANT.pattern})\.json)"
)


def read_folder(path: Path, variant: str | None) -> TensorIndex:
    """The index of a diffusers folder.

    `variant` asks for files such as ``model.fp16.safetensors``; components without that variant use
    their usual file. Without it, a variant is taken only by components that have nothing else.
    Raises FormatError if the folder holds no readable weights, or none of the variant;
    ParameterError for a variant that is not a word.
    """
    if variant is not None and not _VARIANT.fullmatch(variant):
        raise ParameterError(f"variant {variant!r} is not a word such as 'fp16'")
    if (path / _MODEL_INDEX).is_file():
        return _read_pipeline(path, variant)
    return _read_single(path, variant)


def _read_pipeline(path: Path, variant: str | None) -> TensorIndex:
    model_index = load_json_object(path / _MODEL_INDEX)
    folders = _component_folders(path, model_index)
    configs: dict[str, dict[str, Any]] = {"model_index": model_index}
    metadata: dict[str, Any] = {}
    tensors: dict[str, TensorEntry] = {}
    chosen: list[Path] = []
    for component, folder in folders.items():
        config = _read_config(folder)
        if config is not None:
            configs[component] = config
        weight_file = _choose_weights(folder, variant)
        if weight_file is None:
            continue
        chosen.append(weight_file)
        index = _read_weights(weight_file)
        for name, entry in index.tensors.items():
            full_name = f"{component}/{name}"
            tensors[full_name] = replace(entry, name=full_name)
        if index.metadata:
            metadata[component] = index.metadata
    _check_chosen(path, [*folders.values()], chosen, variant)
    return TensorIndex(path, "diffusers", tensors, metadata, configs, folders)


def _component_folders(path: Path, model_index: dict[str, Any]) -> dict[str, Path]:
    """The component folders that exist. Components are the entries ``name: [library, class]``."""
    folders: dict[str, Path] = {}
    for name, value in model_index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2:
            continue
        if not is_plain_name(name):
            expected = "the name of a subfolder"
            remedy = "Do not trust this folder: get the model from its publisher."
            raise format_error(path / _MODEL_INDEX, f"component {quoted(name)}", expected, remedy)
        folder = path / name
        if folder.is_dir():
            folders[name] = folder
    return folders


def _read_single(path: Path, variant: str | None) -> TensorIndex:
    """The folder of one component: no prefix before the names, the config under ``config``."""
    chosen = [file for file in [_choose_weights(path, variant)] if file is not None]
    _check_chosen(path, [path], chosen, variant)
    index = _read_weights(chosen[0])
    config = _read_config(path)
    configs = {} if config is None else {"config": config}
    return TensorIndex(path, "diffusers", index.tensors, index.metadata, configs)


def _check_chosen(path: Path, folders: list[Path], chosen: list[Path], variant: str | None) -> None:
    """Raise FormatError if no weights were chosen, or none of the variant asked for."""
    if not chosen:
        names = sorted(file.name for folder in folders for file in folder.iterdir())
        weights = [name for name in names if name.endswith(_WEIGHT_ENDINGS)]
        found = f"a folder with {quoted(', '.join(weights or names), 300) if names else 'nothing'}"
        remedy = (
            "Give the path of a weight file instead." if weights else "Download the model again."
        )
        raise format_error(path, found, "model_index.json or a component's weights", remedy)
    if variant and not any(_variant_of(file.name) == variant for file in chosen):
        offered = {_variant_of(file.name) for folder in folders for file in folder.iterdir()}
        listed = ", ".join(sorted(name for name in offered if name)) or "none"
        remedy = "Choose one of these, or leave the variant out."
        raise format_error(path, f"variants: {listed}", f"variant {variant!r}", remedy)


def _read_config(folder: Path) -> dict[str, Any] | None:
    for name in _CONFIG_FILES:
        if (folder / name).is_file():
            return load_json_object(folder / name)
    return None


def _read_weights(path: Path) -> TensorIndex:
    return read_sharded(path) if path.suffix == ".json" else read_weight_file(path)


def _choose_weights(folder: Path, variant: str | None) -> Path | None:
    """The weight file, or the shard index, that a component folder offers for `variant`."""
    names = {file.name for file in folder.iterdir()}
    offered = sorted({found for found in map(_variant_of, names) if found})
    for choice in [variant, None] if variant else [None, *offered]:
        for name in _file_names(choice):
            if name in names:
                return folder / name
    return None


def _file_names(variant: str | None) -> list[str]:
    """The names under which diffusers and transformers save weights, best first."""
    infix = f".{variant}" if variant else ""
    return [
        name
        for ending in _ENDINGS
        for stem in _STEMS
        for name in (f"{stem}{infix}{ending}", f"{stem}{ending}.index{infix}.json")
    ]


def _variant_of(name: str) -> str | None:
    """The variant in a file name, if there is one: ``fp16`` in ``model.fp16.safetensors``."""
    match = _VARIANT_FILE.fullmatch(name)
    return (match[1] or match[2]) if match else None
