"""From a path to all that is needed to run a model: networks, bytes, tokenizers, defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from sdengine import _core
from sdengine.errors import ParameterError, UnsupportedModelError, WeightsError
from sdengine.families import Defaults, Family, LatentFormat, Task
from sdengine.formats import TensorIndex, open_index
from sdengine.keys.ignored import is_ignored
from sdengine.loading.bind import Binding, bind
from sdengine.loading.detection import Detection, config_of, detect, stored_fields
from sdengine.loading.locate import Located, locate
from sdengine.loading.scheduler import SchedulerSettings, checked, from_diffusers
from sdengine.loading.tokenizer_source import TokenizerSource, find_tokenizer

AnyPath: TypeAlias = "str | PathLike[str]"
TextEncoders: TypeAlias = "AnyPath | Sequence[AnyPath] | Mapping[str, AnyPath]"

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


def plan_model(
    path: AnyPath,
    vae: AnyPath | None = None,
    text_encoders: TextEncoders | None = None,
    *,
    family: str | None = None,
) -> ModelPlan:
    """Find out what `path` is and where every parameter of it lies.

    Args:
        path: a model file, or a diffusers folder.
        vae: a file or folder whose autoencoder replaces the model's.
        text_encoders: the same for text encoders: one path, a list in the family's order, or a
            mapping from component names.
        family: take the model for a member of this family; None to find out.

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
    located = {**found.components, **_replacements(found.family, vae, text_encoders)}
    _require_all(index, found.family, located)
    components, unused = {}, list(_unlocated(index, found))
    for component in found.family.components:
        part, left = _plan_component(located[component.name], found.family, found.configs)
        components[component.name] = part
        unused += left
    tokenizers = {
        name: find_tokenizer(
            name, components[name].config["vocab_size"], index, located[name].index
        )
        for name in found.family.tokenizers
    }
    latents = _latents(found.family, components)
    scheduler = _scheduler(index, found.family)
    return ModelPlan(
        path=index.path,
        title=found.title,
        family=found.family,
        task=found.variant.task if found.variant else "text",
        components=components,
        tokenizers=tokenizers,
        latents=latents,
        scheduler=scheduler,
        defaults=_defaults(index, found, scheduler, latents.factor),
        unused=tuple(name for name in unused if not is_ignored(name)),
        metadata=index.metadata,
    )


def _plan_component(
    located: Located, family: Family, configs: Mapping[str, dict[str, Any]]
) -> tuple[ComponentPlan, tuple[str, ...]]:
    component = located.component
    config = configs.get(component.name) or config_of(located, family)
    bindings, left = bind(located, _core.parameters(component.kind, config))
    path, dialect = located.index.path, located.table.name
    return ComponentPlan(component.name, component.kind, config, bindings, path, dialect), left


def _replacements(
    family: Family, vae: AnyPath | None, text_encoders: TextEncoders | None
) -> dict[str, Located]:
    """The components that the caller gives as files of their own."""
    paths: dict[str, AnyPath] = {} if vae is None else {"vae": vae}
    encoders = list(family.tokenizers)
    if isinstance(text_encoders, Mapping):
        paths.update(text_encoders)
    elif isinstance(text_encoders, str | PathLike):
        paths[encoders[0]] = text_encoders
    elif text_encoders is not None:
        if len(text_encoders) > len(encoders):
            raise ParameterError(
                f"{len(text_encoders)} text encoders given; {family.title} has {len(encoders)}"
            )
        paths.update(zip(encoders, text_encoders, strict=False))
    names = {component.name for component in family.components}
    found: dict[str, Located] = {}
    for name, path in paths.items():
        if name not in names:
            raise ParameterError(
                f"{family.title} has no {name!r}; it has {', '.join(sorted(names))}"
            )
        index = open_index(path)
        located = locate(index, family.component(name))
        if located is None:
            reason = detect(index).reason or "it is a model without one"
            raise ParameterError(f"{index.path} holds no {name} of {family.title}: {reason}")
        found[name] = located
    return found


def _require_all(index: TensorIndex, family: Family, located: Mapping[str, Located]) -> None:
    missing = [c for c in family.components if c.name not in located]
    if missing:
        needed = " and ".join(c.title for c in missing)
        advice = ", ".join(f"{c.argument}=..." for c in missing)
        raise WeightsError(
            f"{index.path}: {family.title} also needs {needed}, which this file does not hold."
            f" Give it as {advice}"
        )


def _unlocated(index: TensorIndex, found: Detection) -> list[str]:
    """Tensors of the file that lie in none of its components."""
    prefixes = tuple(located.prefix for located in found.components.values())
    return [name for name in index.tensors if not name.startswith(prefixes)]


def _latents(family: Family, components: Mapping[str, ComponentPlan]) -> LatentFormat:
    """The family's latents, as this model's autoencoder makes them."""
    vae = components["vae"].config
    channels, expected = vae["latent_channels"], family.latents.channels
    if channels != expected:
        raise WeightsError(
            f"{components['vae'].path}: the autoencoder makes latents of {channels} channels,"
            f" {family.title} takes {expected}: it belongs to another model"
        )
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return LatentFormat(channels, vae["scaling_factor"], vae["shift_factor"], factor)


def _scheduler(index: TensorIndex, family: Family) -> SchedulerSettings:
    settings = SchedulerSettings.of_family(family)
    if "scheduler" in index.configs:
        return from_diffusers(index.configs["scheduler"], family)
    stored = stored_fields(index, "sdengine.scheduler", asdict(settings))
    if stored:
        return checked(replace(settings, **stored))
    # Empty tensors that mark models trained to predict the velocity (A1111, ComfyUI).
    if "v_pred" in index.tensors:
        settings = replace(settings, prediction="v_prediction")
    return replace(settings, rescale_zero_snr="ztsnr" in index.tensors)


def _defaults(
    index: TensorIndex, found: Detection, scheduler: SchedulerSettings, factor: int
) -> Defaults:
    assert found.family is not None
    defaults = found.family.defaults
    if found.variant is not None:
        defaults = replace(defaults, **found.variant.defaults)
    if scheduler.sampler and not (found.variant and "sampler" in found.variant.defaults):
        defaults = replace(defaults, sampler=scheduler.sampler)
        defaults = replace(defaults, schedule=scheduler.schedule or defaults.schedule)
    size = index.configs.get(found.family.denoiser, {}).get("sample_size")
    if type(size) is int and 0 < size <= _LARGEST_SAMPLE:
        defaults = replace(defaults, width=size * factor, height=size * factor)
    return replace(defaults, **stored_fields(index, "sdengine.defaults", asdict(defaults)))
