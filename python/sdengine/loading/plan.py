"""From a path to all that is needed to run a model: networks, bytes, tokenizers, defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from sdengine import _core
from sdengine.errors import ParameterError, UnsupportedModelError, WeightsError
from sdengine.families import Component, Defaults, Family, LatentFormat, Task
from sdengine.formats import TensorIndex, open_index
from sdengine.keys.ignored import is_ignored
from sdengine.loading.bind import Binding, bind
from sdengine.loading.detection import Detection, config_of, detect, stored_fields
from sdengine.loading.halves import open_halves
from sdengine.loading.locate import Located, locate
from sdengine.loading.scheduler import SchedulerSettings
from sdengine.loading.scheduler_source import default_size, find_scheduler
from sdengine.loading.text_parts import (
    TextEncoders,
    check_text_encoders,
    context_width,
    find_text_encoders,
)
from sdengine.loading.tokenizer_source import TokenizerSource, find_tokenizer

AnyPath: TypeAlias = "str | PathLike[str]"
Autoencoders: TypeAlias = "AnyPath | Sequence[AnyPath]"

_LARGEST_SAMPLE = 512  # latents; a config that claims more is not taken at its word


@dataclass(frozen=True)
class ComponentPlan:
    """One network with its hyper-parameters and the place of every parameter."""

    name: str
    kind: str
    """The native network (``autoencoder_kl`` covers its encoder and decoder)."""
    config: Mapping[str, Any]
    bindings: tuple[Binding, ...]
    """In the order of the native network's parameters."""
    path: Path
    """The file or folder that it comes from."""
    dialect: str
    """Whose parameter names the file uses."""

    @property
    def parameters(self) -> int:
        """Number of values."""
        return sum(binding.entry.elements for binding in self.bindings)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(binding.entry.nbytes for binding in self.bindings)


@dataclass(frozen=True)
class ModelPlan:
    """A model, validated and ready to be loaded; no tensor has been read."""

    path: Path
    title: str
    family: Family
    task: Task
    components: Mapping[str, ComponentPlan]
    """Every component of the family, by name."""
    tokenizers: Mapping[str, TokenizerSource]
    """By the name of the text encoder."""
    latents: LatentFormat
    scheduler: SchedulerSettings
    defaults: Defaults
    unused: tuple[str, ...]
    """Tensors of the model's file that nothing uses and that are not known to be superfluous."""
    metadata: Mapping[str, Any]

    @property
    def context_width(self) -> int:
        """Columns of the text that the denoiser reads."""
        return context_width(self.components[self.family.denoiser].config)

    @property
    def reads_guidance(self) -> bool:
        """True for models that were distilled to read the scale of guidance as an input."""
        config = self.components[self.family.denoiser].config
        return bool(config.get("time_cond_proj_dim") or config.get("guidance"))


def plan_model(
    path: AnyPath,
    vae: Autoencoders | None = None,
    text_encoders: TextEncoders | None = None,
    *,
    family: str | None = None,
    prediction: str | None = None,
) -> ModelPlan:
    """Find out what `path` is and where every parameter of it lies.

    Args:
        path: a model file, or a diffusers folder.
        vae: a file or folder whose autoencoder replaces the model's; or the encoder file and the
            decoder file of a tiny one.
        text_encoders: the same for text encoders: one path, several (each goes where its width
            belongs), or a mapping from component names.
        family: take the model for a member of this family; None to find out.
        prediction: what the denoiser predicts ("epsilon", "v_prediction", "sample"); None to find
            out.

    Raises:
        UnsupportedModelError: it is something that sdengine does not run; the message says what.
        WeightsError: a component or a parameter is missing, or does not fit.
        ParameterError: `vae` or `text_encoders` hold no such component.
        FormatError: a file is damaged.
    """
    index = open_index(path)
    found = detect(index, family)
    if found.family is None:
        raise UnsupportedModelError(f"{index.path}: {found.reason}")
    denoiser = found.configs[found.family.denoiser]
    located = {
        **found.components,
        **_replacements(found.family, vae),
        **find_text_encoders(found.family, text_encoders, denoiser),
    }
    _require_all(index, found.family, located)
    components, unused = {}, list(_unlocated(index, found))
    for component in found.family.components:
        if component.name not in located:
            continue  # optional
        part, left = _plan_component(located[component.name], found)
        components[component.name] = part
        unused += left
    check_text_encoders(
        found.family,
        {name: part.config for name, part in components.items()},
        {name: part.path for name, part in components.items()},
    )
    tokenizers = {
        name: find_tokenizer(
            name, components[name].config["vocab_size"], index, located[name].index, kind
        )
        for name, kind in found.family.tokenizers.items()
        if name in components
    }
    latents = _latents(found, components)
    bindings = components[found.family.denoiser].bindings
    scheduler = find_scheduler(index, found, bindings, prediction)
    return ModelPlan(
        path=index.path,
        title=found.title,
        family=_as_published(found, index),
        task=found.variant.task if found.variant else "text",
        components=components,
        tokenizers=tokenizers,
        latents=latents,
        scheduler=scheduler,
        defaults=_defaults(index, found, scheduler, latents.factor),
        unused=tuple(name for name in unused if not is_ignored(name)),
        metadata=index.metadata,
    )


def plan_preview_vae(plan: ModelPlan, vae: Autoencoders) -> ComponentPlan:
    """The tiny autoencoder that draws previews of a model.

    Args:
        plan: of the model.
        vae: its file or folder, or the encoder file and the decoder file.

    Raises:
        ParameterError: it is no tiny autoencoder, or one for other latents.
        WeightsError: a parameter is missing or does not fit.
        FormatError: a file is damaged.
    """
    located = _replacements(plan.family, vae)["vae"]
    if located.component.kind != "autoencoder_tiny":
        raise ParameterError(
            f"{located.index.path} is no tiny autoencoder (TAESD); previews with the model's own are"
            " the method 'full', and vae= replaces that"
        )
    family = replace(plan.family, latents=plan.latents)
    part, _ = _component(located, family, config_of(located, family))
    found = part.config["latent_channels"], 2 ** (len(part.config["block_out_channels"]) - 1)
    if found != (plan.latents.channels, plan.latents.factor):
        raise ParameterError(
            f"{part.path} reads latents of {found[0]} channels and 1/{found[1]} of the size;"
            f" {plan.title} makes {plan.latents.channels} channels and 1/{plan.latents.factor}: it belongs"
            " to another model"
        )
    return part


def _plan_component(located: Located, found: Detection) -> tuple[ComponentPlan, tuple[str, ...]]:
    assert found.family is not None
    family = found.family
    if found.variant is not None and found.variant.latents is not None:
        family = replace(family, latents=found.variant.latents)
    config = found.configs.get(located.component.name) or config_of(located, family)
    return _component(located, family, config)


def _component(
    located: Located, family: Family, config: dict[str, Any]
) -> tuple[ComponentPlan, tuple[str, ...]]:
    """A component with its bindings, and the tensors that nothing uses."""
    component = located.component
    for name in component.required:
        if name not in located.sources:
            raise WeightsError(
                f"{located.index.path}: the {component.name} has no {name!r}, which"
                f" {family.title} needs. Give another file of {component.title} with"
                f" {component.argument}="
            )
    bindings, left = bind(located, _core.parameters(component.kind, config))
    path, dialect = located.index.path, located.table.name
    return ComponentPlan(component.name, component.kind, config, bindings, path, dialect), left


def _replacements(family: Family, vae: Autoencoders | None) -> dict[str, Located]:
    """The autoencoder that the caller gives as a file of its own."""
    if vae is None:
        return {}
    index = open_index(vae) if isinstance(vae, str | PathLike) else open_halves(vae)
    located = locate(index, family.component("vae"))
    if located is None:
        reason = detect(index).reason or "it is a model without one"
        raise ParameterError(f"{index.path} holds no vae of {family.title}: {reason}")
    return {"vae": located}


def _as_published(found: Detection, index: TensorIndex) -> Family:
    """The family, with what its variant, a pipeline's model_index.json or ``convert`` says about it."""
    assert found.family is not None
    family = found.family
    if found.variant is not None and found.variant.text:
        family = replace(family, text=found.variant.text)
    stored = index.metadata.get("sdengine.empty_negative_is_zeros")
    zeros = index.configs.get("model_index", {}).get("force_zeros_for_empty_prompt", stored)
    if type(zeros) is not bool or zeros == family.empty_negative_is_zeros:
        return family
    return replace(family, empty_negative_is_zeros=zeros)


def _require_all(index: TensorIndex, family: Family, located: Mapping[str, Located]) -> None:
    missing = [c for c in family.components if c.name not in located and not c.optional]
    if missing:
        needed = " and ".join(c.title for c in missing)
        advice = ", ".join(dict.fromkeys(_advice(family, c) for c in missing))
        raise WeightsError(
            f"{index.path}: {family.title} also needs {needed}, which this file does not hold."
            f" Give it as {advice}"
        )


def _advice(family: Family, component: Component) -> str:
    """How to give a component; by name where several are given with one argument."""
    if len(family.tokenizers) > 1 and component.name in family.tokenizers:
        return f"{component.argument}={{{component.name!r}: ...}}"
    return f"{component.argument}=..."


def _unlocated(index: TensorIndex, found: Detection) -> list[str]:
    """Tensors of the file that lie in none of its components."""
    prefixes = tuple(located.prefix for located in found.components.values())
    return [name for name in index.tensors if not name.startswith(prefixes)]


def _latents(found: Detection, components: Mapping[str, ComponentPlan]) -> LatentFormat:
    """The family's latents, as this model's autoencoder makes them."""
    assert found.family is not None
    family, part, vae = found.family, components["vae"], components["vae"].config
    expected = (found.variant and found.variant.latents) or family.latents
    channels, scale = vae["latent_channels"], vae["scaling_factor"]
    if channels != expected.channels:
        raise WeightsError(
            f"{part.path}: the autoencoder makes latents of {channels} channels,"
            f" {family.title} takes {expected.channels}: it belongs to another model"
        )
    is_replaced = part.path != components[family.denoiser].path
    if (
        is_replaced
        and part.kind == "autoencoder_kl"
        and scale != expected.scale
        and not vae.get("latents_mean", ())
    ):
        raise WeightsError(
            f"{part.path}: the autoencoder's latents are scaled by {scale}, those of"
            f" {family.title} by {expected.scale}: it belongs to another model. Give vae= one that"
            " was made for this family"
        )
    mean, deviation = tuple(vae.get("latents_mean", ())), tuple(vae.get("latents_std", ()))
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return LatentFormat(channels, scale, vae["shift_factor"], factor, mean, deviation)


def _defaults(
    index: TensorIndex, found: Detection, scheduler: SchedulerSettings, factor: int
) -> Defaults:
    assert found.family is not None
    defaults = found.family.defaults
    if found.variant is not None:
        defaults = replace(defaults, **found.variant.defaults)
    config = found.configs[found.family.denoiser]
    defaults = replace(defaults, **default_size(found.family, config, scheduler.prediction))
    if scheduler.sampler and not (found.variant and "sampler" in found.variant.defaults):
        defaults = replace(defaults, sampler=scheduler.sampler)
        defaults = replace(defaults, schedule=scheduler.schedule or defaults.schedule)
    size = index.configs.get(found.family.denoiser, {}).get("sample_size")
    if type(size) is int and 0 < size <= _LARGEST_SAMPLE:
        defaults = replace(defaults, width=size * factor, height=size * factor)
    stored = stored_fields(index, "sdengine.defaults", asdict(defaults))
    defaults = replace(defaults, **stored)
    return replace(defaults, timesteps=_stored_timesteps(index) or defaults.timesteps)


def _stored_timesteps(index: TensorIndex) -> tuple[int, ...] | None:
    """The timesteps to visit that ``convert`` stored."""
    key = "sdengine.timesteps"
    if key not in index.metadata:
        return None
    value = index.metadata[key]
    if not (isinstance(value, list) and value and all(type(item) is int for item in value)):
        raise WeightsError(
            f"{index.path}: the metadata {key} is not a list of whole numbers. Convert the model"
            " again"
        )
    return tuple(value)
