"""What a model file is, what it holds and how it is sampled, without loading it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from sdengine import _core
from sdengine.errors import SDEngineError
from sdengine.families import Family
from sdengine.formats import TensorEntry, TensorIndex, open_index
from sdengine.keys.ignored import is_ignored
from sdengine.loading import Detection, detect
from sdengine.loading.bind import bind, unused
from sdengine.loading.detection import config_of
from sdengine.loading.locate import Located
from sdengine.loading.scheduler_source import find_scheduler
from sdengine.recipes import Recipe, find_recipe, prediction_of, titles

_LIST_SHOWN = 16  # items of a metadata array that are kept
_TEXT_SHOWN = 200  # characters of a metadata text that are kept
_NAMES_SHOWN = 5
_APPLIED = "comfy.gguf.orig_shape."  # metadata that the shapes already take into account


@dataclass(frozen=True)
class ComponentInfo:
    """One network in a file."""

    name: str
    title: str
    dialect: str
    """Whose parameter names the file uses."""
    prefix: str
    """What stands before them."""
    tensors: int
    parameters: int
    nbytes: int
    types: Mapping[str, int]
    """Type -> number of tensors, the most frequent first."""
    config: Mapping[str, Any]
    """Hyper-parameters; empty where the file is too damaged, or too foreign, to tell them."""


@dataclass(frozen=True)
class ModelInfo:
    """What `inspect` found."""

    path: Path
    format: str
    """"gguf", "safetensors", "torch" or "diffusers"."""
    title: str
    """What it is, in words."""
    family: str | None
    """Name of the family that runs it; None if sdengine does not run it by itself."""
    reason: str
    """Why it is not run by itself; empty if it is."""
    components: tuple[ComponentInfo, ...]
    prediction: str | None
    """What the denoiser predicts; None where that cannot be told."""
    text_encoders: Mapping[str, str]
    """Component -> title, of those that its family reads, in this file or elsewhere."""
    size_conditioning: tuple[str, ...]
    """The numbers about the picture that the denoiser is told."""
    recipe: str | None
    """How its publisher says that it is sampled (docs/recipes.md), if its name tells."""
    missing: tuple[str, ...]
    """Components that must come from other files."""
    not_understood: tuple[str, ...]
    """Tensors that belong to nothing known."""
    tensors: int
    nbytes: int
    types: Mapping[str, int]
    metadata: Mapping[str, Any] = field(repr=False)
    """Long arrays and texts are shortened."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as values that JSON can hold."""
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        lines = [str(self.path), f"  {self.title}", f"  {self._facts()}"]
        if self.prediction:
            lines.append(f"  predicts {self.prediction}")
        if self.text_encoders:
            lines.append(f"  reads text with {', '.join(self.text_encoders.values())}")
        if self.size_conditioning:
            lines.append(f"  is told {', '.join(self.size_conditioning)}")
        if self.recipe:
            lines.append(f"  recipe: {self.recipe}")
        lines += _table(self.components)
        if self.missing:
            lines.append(f"  needs from elsewhere: {', '.join(self.missing)}")
        if self.not_understood:
            shown = ", ".join(self.not_understood[:_NAMES_SHOWN])
            dots = ", ..." if len(self.not_understood) > _NAMES_SHOWN else ""
            lines.append(f"  not understood ({len(self.not_understood)}): {shown}{dots}")
        if self.reason:
            lines.append(f"  {self.reason}")
        return "\n".join(lines)

    def _facts(self) -> str:
        family = f"family {self.family}" if self.family else "not run by sdengine"
        types = _histogram(self.types)
        return f"{family}; {self.format}; {self.tensors} tensors, {_bytes(self.nbytes)}; {types}"


def inspect(path: str | PathLike[str]) -> ModelInfo:
    """Read the headers of a model file or folder and say what it is.

    Works for every readable file, also for models that sdengine does not run. No weights are read, but for one vector
    of a Stable Diffusion 2 whose file does not say what it predicts.

    Raises:
        ParameterError: there is nothing at `path`.
        FormatError: it is no weight file, or it is damaged.
    """
    index = open_index(path)
    try:
        found = detect(index)
    except SDEngineError as error:
        found = Detection("a damaged, incomplete or unusual model", reason=str(error))
    entries, family = index.tensors.values(), found.family
    names = (index.path.stem, *titles(index.metadata))
    recipe = None if family is None else find_recipe(family.name, *names)
    return ModelInfo(
        path=index.path,
        format=index.format,
        title=found.title,
        family=family.name if family else None,
        reason=found.reason,
        prediction=_prediction(index, found, recipe),
        text_encoders=_text_encoders(family),
        size_conditioning=family.size_conditioning.names
        if family and family.size_conditioning
        else (),
        recipe=None if recipe is None else _recipe(recipe),
        components=tuple(_component(located, found) for located in found.components.values()),
        missing=found.missing,
        not_understood=_not_understood(index, found) if found.components else (),
        tensors=len(index.tensors),
        nbytes=sum(entry.nbytes for entry in entries),
        types=_types(entries),
        metadata={k: _short(v) for k, v in index.metadata.items() if not k.startswith(_APPLIED)},
    )


def _prediction(index: TensorIndex, found: Detection, recipe: Recipe | None) -> str | None:
    """As loading would find it; None for a file that could not be loaded."""
    if found.family is None:
        return None
    denoiser = found.components[found.family.denoiser]
    try:
        parameters = _core.parameters(denoiser.component.kind, found.configs[found.family.denoiser])
        bindings, _ = bind(denoiser, parameters)
        return prediction_of(recipe, find_scheduler(index, found, bindings).prediction)
    except SDEngineError:
        return None


def _text_encoders(family: Family | None) -> dict[str, str]:
    if family is None:
        return {}
    return {use.component: family.component(use.component).title for use in family.text}


def _recipe(recipe: Recipe) -> str:
    levels = "timesteps " + ", ".join(map(str, recipe.timesteps)) if recipe.timesteps else None
    schedule = levels or (recipe.schedule and f"schedule {recipe.schedule}")
    eta = None if recipe.eta is None else f"eta {recipe.eta:g}"
    steps = f"{recipe.steps} step{'s' if recipe.steps > 1 else ''} of {recipe.sampler}"
    how = (steps, schedule, f"guidance {recipe.guidance:g}", eta)
    return f"{recipe.title}: {', '.join(part for part in how if part)} ({recipe.source})"


def _config(located: Located, found: Detection) -> Mapping[str, Any]:
    """Hyper-parameters; empty where the family is unknown or the file is damaged there."""
    if found.family is None:
        return {}
    try:
        return found.configs.get(located.component.name) or config_of(located, found.family)
    except SDEngineError:
        return {}


def _component(located: Located, found: Detection) -> ComponentInfo:
    entries = located.entries.values()
    return ComponentInfo(
        name=located.component.name,
        title=located.component.title,
        dialect=located.table.name,
        prefix=located.prefix,
        tensors=len(located.entries),
        parameters=sum(entry.elements for entry in entries),
        nbytes=sum(entry.nbytes for entry in entries),
        types=_types(entries),
        config=_config(located, found),
    )


def _not_understood(index: TensorIndex, found: Detection) -> tuple[str, ...]:
    parts = found.components.values()
    prefixes = tuple(located.prefix for located in parts)
    outside = [n for n in index.tensors if not n.startswith(prefixes) and not is_ignored(n)]
    inside = [name for located in parts for name in _unused(located, found)]
    return (*outside, *(name for name in inside if not is_ignored(name)))


def _unused(located: Located, found: Detection) -> tuple[str, ...]:
    """Tensors of a component that its network does not have; none where it cannot be told."""
    config = _config(located, found)
    if not config:
        return ()
    parameters = _core.parameters(located.component.kind, config)
    return unused(located, [name for name, _ in parameters])


def _types(entries: Iterable[TensorEntry]) -> dict[str, int]:
    return dict(Counter(entry.dtype for entry in entries).most_common())


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and len(value) > _LIST_SHOWN:
        return f"<{len(value)} values>"
    if isinstance(value, str) and len(value) > _TEXT_SHOWN:
        return value[:_TEXT_SHOWN] + "..."
    return value


def _table(components: Iterable[ComponentInfo]) -> list[str]:
    rows = [("component", "names", "tensors", "parameters", "size", "types")]
    rows += [
        (
            part.name,
            part.dialect,
            str(part.tensors),
            f"{part.parameters:,}",
            _bytes(part.nbytes),
            _histogram(part.types),
        )
        for part in components
    ]
    if len(rows) == 1:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["    " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _histogram(types: Mapping[str, int]) -> str:
    return ", ".join(f"{dtype} {count}" for dtype, count in types.items())


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
