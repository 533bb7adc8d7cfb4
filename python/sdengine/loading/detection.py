"""What a file is: a model of a family, a part of one, something known elsewhere, or unknown."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdengine.errors import ParameterError, WeightsError
from sdengine.families import FAMILIES, Component, Family, Variant
from sdengine.families.naming import titles
from sdengine.families.unsupported import ADAPTER_ADVICE, ADDITIONS, DENOISERS, UNETS, TensorNames
from sdengine.formats import TensorIndex
from sdengine.loading.locate import Located, locate
from sdengine.loading.networks import NETWORKS, Shapes

_NAMES_SHOWN = 20
_EMBEDDING_TENSORS = 3  # at most, in a textual inversion file
_EMBEDDING_ROWS = 256  # far above every published embedding


@dataclass(frozen=True)
class Detection:
    """What a file was found to be."""

    title: str
    """In words, to follow "this is"."""
    family: Family | None = None
    """The family that runs it; None if no supported one does."""
    variant: Variant | None = None
    components: Mapping[str, Located] = field(default_factory=dict)
    """The family's components that are in the file."""
    configs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Hyper-parameters of the located denoiser (and of other parts once they are planned)."""
    reason: str = ""
    """Why it cannot be run by itself; empty if it can, given its missing components."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The family's components that the file does not hold."""
        if self.family is None:
            return ()
        return tuple(c.name for c in self.family.components if c.name not in self.components)


def detect(index: TensorIndex, family: str | None = None) -> Detection:
    """Find out what `index` is, from names and shapes; metadata decides only between families.

    Args:
        index: the opened file.
        family: name of the family to take it for; None to find out.

    Raises:
        WeightsError: it is of a supported family, but damaged.
        ParameterError: there is no such family.
    """
    if family is not None and not any(str(family) == known.name for known in FAMILIES):
        choices = ", ".join(known.name for known in FAMILIES)
        raise ParameterError(f"there is no family {family!r}; choose one of {choices}")
    names = TensorNames({name: entry.shape for name, entry in index.tensors.items()})
    if "model_index" not in index.configs:  # a pipeline's folder may hold additions beside a model
        for signature in ADDITIONS:
            if signature.fits(names):
                return _unsupported(signature.title, signature.advice)
        if _is_embedding(index):
            return _unsupported("a textual inversion embedding", ADAPTER_ADVICE)
    known = next((s for s in DENOISERS if s.fits(names)), None)
    if known is not None:
        return _unsupported(known.title, known.advice)
    wanted = family or index.metadata.get("sdengine.family") or _of_pipeline(index)
    families = [f for f in FAMILIES if f.name == wanted] or list(FAMILIES)
    strangers: list[tuple[Family, dict[str, Any]]] = []
    parts = _Parts(index)
    for candidate in families:
        components = parts.of(candidate)
        denoiser = components.get(candidate.denoiser)
        if denoiser is None:
            continue
        config = config_of(denoiser, candidate)
        relative = next((u for u in UNETS if u.fits(config)), None)
        if relative is not None:
            return _unsupported(relative.title, "", components)
        if candidate.shape.fits(config):
            stored = index.metadata.get("sdengine.variant")
            variant = candidate.variant(config, index.tensors.keys(), stored, _names(index))
            title = variant.title if variant else candidate.title
            return Detection(title, candidate, variant, components, {candidate.denoiser: config})
        strangers.append((candidate, config))
    if strangers:
        return _stranger(strangers, parts)
    return _without_denoiser(parts)


def _names(index: TensorIndex) -> list[str]:
    """What the model is called: its file, its metadata, the pipeline that diffusers runs it with."""
    pipeline = index.configs.get("model_index", {}).get("_class_name")
    called = [index.path.stem if index.path.is_file() else index.path.name, *titles(index.metadata)]
    return [*called, pipeline] if isinstance(pipeline, str) else called


def _of_pipeline(index: TensorIndex) -> str | None:
    """The family that a diffusers folder's pipeline is for, where its tensors alone do not tell."""
    pipeline = index.configs.get("model_index", {}).get("_class_name")
    return next((f.name for f in FAMILIES if pipeline in f.pipelines), None)


class _Parts:
    """The components of families in a file; those that families share are looked for once."""

    def __init__(self, index: TensorIndex) -> None:
        self._index = index
        self._found: dict[int, Located | None] = {}
        self.names = list(index.tensors)

    def of(self, family: Family) -> dict[str, Located]:
        found = {component.name: self._locate(component) for component in family.components}
        return {name: located for name, located in found.items() if located is not None}

    def _locate(self, component: Component) -> Located | None:
        if id(component) not in self._found:
            self._found[id(component)] = locate(self._index, component)
        return self._found[id(component)]


def _stranger(strangers: list[tuple[Family, dict[str, Any]]], parts: _Parts) -> Detection:
    """A UNet that no family has, and the family that comes nearest."""

    def odd(family: Family, config: dict[str, Any]) -> list[str]:
        return [
            f"{key} = {config[key]!r} (expected {choices(allowed)})"
            for key, allowed in family.shape.allowed.items()
            if config[key] not in allowed
        ]

    nearest = min(strangers, key=lambda pair: len(odd(*pair)))
    title = "a UNet of no supported family"
    reason = (
        f"this is {title}. The nearest is {nearest[0].title}, but for {', '.join(odd(*nearest))};"
        f" sdengine runs {_supported()}"
    )
    return Detection(title, components=parts.of(nearest[0]), reason=reason)


def choices(allowed: Collection[Any]) -> str:
    """Allowed values of a hyper-parameter, in words."""
    if isinstance(allowed, range):
        return f"{allowed.start} to {allowed.stop - 1}"
    return " or ".join(map(repr, allowed))


def _supported() -> str:
    return ", ".join(family.title for family in FAMILIES)


def config_of(located: Located, family: Family) -> dict[str, Any]:
    """A located component's hyper-parameters.

    From its shapes; a config.json adds what shapes cannot tell and must agree with them; what
    `sdengine convert` wrote into a GGUF wins.

    Raises:
        WeightsError: parts that tell its size are missing, or its config contradicts them.
        UnsupportedModelError: its config asks for what the native network does not compute.
    """
    index, name = located.index, located.component.name
    network = NETWORKS[located.component.kind]
    shapes = Shapes({canonical: source.shape for canonical, source in located.sources.items()})
    told_by = located.component.config or name
    beside = index.configs.get(told_by) or index.configs.get("config")
    try:
        config = {**network.from_shapes(shapes, family), **located.component.known}
        if beside is not None:
            config = network.refine(config, beside)
        config = {**config, **located.table.implies}
        stored = stored_fields(index, f"sdengine.config.{name}", config)
        for key, value in stored.items():
            if key not in network.untold and value != config[key]:
                raise WeightsError(
                    f"the metadata has {key} = {value!r}, the tensors show {config[key]!r}."
                    " The file was changed after its conversion: convert the model again"
                )
        config = {**config, **stored}
        network.check(config)
    except WeightsError as error:
        raise WeightsError(f"{index.path}: {name}: {error}") from None
    return config


def stored_fields(index: TensorIndex, key: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object under a metadata key that `sdengine convert` wrote; empty without one.

    Fields that `like` does not have are passed over; the others must have the same type as there.
    """
    text = index.metadata.get(key)
    if text is None:
        return {}
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise WeightsError(f"the metadata {key} is not a JSON object. Convert the model again")
    known = {name: item for name, item in value.items() if name in like}
    for name, item in known.items():
        if not _alike(item, like[name]):
            raise WeightsError(
                f"the metadata {key} has {name} = {item!r}; expected a value such as"
                f" {like[name]!r}. Convert the model again"
            )
    return known


def _alike(value: Any, example: Any) -> bool:
    if isinstance(example, list) and not example:  # numbers, one per channel or none
        return isinstance(value, list) and all(type(item) in (int, float) for item in value)
    if isinstance(example, list):
        same_length = isinstance(value, list) and len(value) == len(example)
        return same_length and all(map(_alike, value, example))
    if example is None:  # an optional text or number
        return isinstance(value, str | float | None)
    if isinstance(example, float):
        return type(value) in (int, float)
    return type(value) is type(example)


def _is_embedding(index: TensorIndex) -> bool:
    """A few short lists of vectors: what a prompt's learned words are stored as."""
    shapes = [entry.shape for entry in index.tensors.values()]
    return 0 < len(shapes) <= _EMBEDDING_TENSORS and all(
        len(shape) == 1 or (len(shape) == 2 and shape[0] <= _EMBEDDING_ROWS) for shape in shapes
    )


def _unsupported(
    title: str, advice: str, components: Mapping[str, Located] | None = None
) -> Detection:
    reason = f"this is {title}, which cannot be run by itself. {advice}".strip()
    if not advice:
        reason = f"this is {title}; sdengine runs {_supported()}"
    return Detection(title, components=components or {}, reason=reason)


_CLIP_WIDTHS = {
    768: "a CLIP ViT-L text encoder",
    1024: "an OpenCLIP ViT-H text encoder",
    1280: "an OpenCLIP ViT-bigG text encoder",
}
_T5_WORDS = {250112: "an mT5 text encoder", 256384: "a UMT5 text encoder"}


def _title(located: Located) -> str:
    """A part in words. The encoders of CLIP have the same names, and are told by their width; T5's by their words."""
    if located.component.kind == "decoder_text" and "ChatGLM" not in located.table.name:
        return "a language model"
    if located.component.kind == "t5_text":
        words = located.sources["shared.weight"].shape[:1]
        return _T5_WORDS.get(sum(words), "a T5 text encoder")
    if located.component.kind != "clip_text":
        return located.component.title
    norm = located.sources.get("text_model.final_layer_norm.weight")
    width = norm.shape[0] if norm is not None and norm.shape else 0
    return _CLIP_WIDTHS.get(width, "a CLIP text encoder")


def _without_denoiser(parts: _Parts) -> Detection:
    for family in FAMILIES:
        components = parts.of(family)
        if components:
            titles = " and ".join(dict.fromkeys(map(_title, components.values())))
            arguments = dict.fromkeys(f"{c.component.argument}=..." for c in components.values())
            reason = (
                f"this is {titles} without a denoiser. Load a model, and give this file as"
                f" {', '.join(arguments)}"
            )
            return Detection(titles, components=components, reason=reason)
    shown = ", ".join(parts.names[:_NAMES_SHOWN]) or "none"
    return Detection(
        "no model that is known here",
        reason=f"no known model has these {len(parts.names)} tensors: {shown}",
    )
