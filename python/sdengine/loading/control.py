"""From the path of a control network to all that is needed to run it beside a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from sdengine import _core
from sdengine.errors import ParameterError, UnsupportedModelError
from sdengine.families import SD1, SD2, SDXL, Component
from sdengine.families.control import CONTROL, STEERS
from sdengine.formats import open_index
from sdengine.loading.bind import bind
from sdengine.loading.control_lora import title_of_changes
from sdengine.loading.detection import config_of, detect
from sdengine.loading.locate import Located, locate
from sdengine.loading.plan import ComponentPlan, ModelPlan
from sdengine.loading.scheduler_source import read_values

AnyPath: TypeAlias = "str | PathLike[str]"
Config: TypeAlias = "Mapping[str, Any]"

_SD2_CONTEXT = 1024  # width of its text

# What a ControlNet and the denoiser that it steers must have in common, in words.
_SHARED = {
    "in_channels": "latent channels",
    "block_out_channels": "channels per level",
    "layers_per_block": "resnets per level",
    "cross_attention_dim": "the width of the text",
    "class_embed_dim": "the width of the pooled text",
    "encoder_hid_dim": "the width of the text encoder",
}
_SHARED_BY_TRANSFORMERS = {
    "in_channels": "latent channels",
    "width": "the width of its tokens",
    "context_width": "the width of the text",
    "pooled_width": "the width of the pooled text",
    "patch_size": "the side of a patch",
}
_OF_KIND = {
    "unet": "Stable Diffusion 1.x, 2.x or XL",
    "mmdit": "Stable Diffusion 3",
    "flux": "FLUX.1",
}
_TYPE = "control_type"  # in Stability AI's files
_TYPES, _EDGES = ("blur", "canny", "depth"), 1
_FIRST_LAYER = (
    "pos_embed.proj.",
    "pos_embed.pos_embed",
)  # of a denoiser that a ControlNet reads latents through


def plan_control(path: AnyPath, model: ModelPlan) -> ComponentPlan:
    """Find out what `path` is and where every parameter of it lies.

    Args:
        path: a file or a diffusers folder with a control network of its own; those that change a base model's
            weights are planned by :func:`sdengine.loading.control_lora.plan_over_base`.
        model: the model that it is to steer.

    Raises:
        ParameterError: the file holds no control network, or one for other models.
        WeightsError: a parameter is missing, or does not fit.
        FormatError: the file is damaged.
    """
    index = open_index(path)
    located = locate(index, CONTROL)
    if located is None:
        raise ParameterError(
            f"{index.path} holds no control network that can steer {model.family.title}: this is"
            f" {detect(index).title}. Give a ControlNet, a ControlNet-Union or a T2I adapter for"
            " Stable Diffusion 1.x, 2.x or XL, or a ControlNet for Stable Diffusion 3 or FLUX.1"
        )
    component = located.component
    _check_kind(component, index.path, model)
    config = config_of(located, model.family)
    _check_fits(component.title, config, index.path, model)
    if component.kind == "t2i_adapter":
        _check_levels(config, index.path, model)
    return _with_first_layer(_plan(located, config), model)


def plan_control_alone(path: AnyPath) -> ComponentPlan | None:
    """A control network without a model to steer, as ``convert`` reads it; None for files of another kind.

    Raises:
        UnsupportedModelError: the file holds changes of a base model's weights, and no network by itself.
        WeightsError: a parameter is missing, or does not fit.
        FormatError: the file is damaged.
    """
    index = open_index(path)
    if title := title_of_changes(index):
        raise UnsupportedModelError(
            f"{index.path} holds {title}, and no network by itself. It is used as it is: give it as controlnets=[...]"
            " beside its base model"
        )
    located = None if "model_index" in index.configs else locate(index, CONTROL)
    if located is None:
        return None
    config = config_of(located, SD1)
    # How many heads an attention has is a matter of the family.
    family = SDXL if config.get("class_embed_dim") else SD1
    family = SD2 if config.get("cross_attention_dim") == _SD2_CONTEXT else family
    config = config_of(located, family)
    if "global_pool" in config:
        config["global_pool"] = config["global_pool"] or is_for_shuffled(index.path)
    return _plan(located, config)


def _plan(located: Located, config: dict[str, Any]) -> ComponentPlan:
    component, path = located.component, located.index.path
    _check_hint(component.title, config, path)
    if "edges" in config:
        config["edges"] = config["edges"] or _is_for_edges(located, config)
    bindings, _ = bind(located, _core.parameters(component.kind, config))
    return ComponentPlan(component.name, component.kind, config, bindings, path, located.table.name)


def _with_first_layer(plan: ComponentPlan, model: ModelPlan) -> ComponentPlan:
    """A ControlNet that reads latents through its base model's first layer gets it from there."""
    if plan.config.get("patches", True):
        return plan
    base = model.components[model.family.denoiser]
    layer = tuple(b for b in base.bindings if b.name.startswith(_FIRST_LAYER))
    config = {**plan.config, "patches": True, "position_side": base.config["position_side"]}
    return replace(plan, config=config, bindings=(*plan.bindings, *layer))


def is_for_shuffled(path: AnyPath) -> bool:
    """True if a file's name says that it was trained on the means of its residuals."""
    return "shuffle" in Path(path).stem.lower()


def _is_for_edges(located: Located, config: Config) -> bool:
    """True if a file of Stability AI's, which reads no text, is for edges by its number or by its name."""
    if config["context_width"]:
        return False
    number = located.index.tensors.get(located.prefix + _TYPE)
    if number is not None and number.elements == 1:
        return [round(value) for value in read_values(number)] == [_EDGES]
    # Of a folder in the Hub's cache only one further up has a name.
    named = (
        [t for t in _TYPES if t in part.lower()] for part in reversed(located.index.path.parts)
    )
    return next((types for types in named if types), []) == [_TYPES[_EDGES]]


def _check_hint(title: str, config: Config, path: AnyPath) -> None:
    """Refuse a network that reads something else than a picture's latents, or those and a mask."""
    if "width" not in config or config.get("hint_block_channels"):
        return  # it reads pixels
    read, latents = config["hint_channels"], config["in_channels"]
    if read - latents not in (0, 1):
        raise UnsupportedModelError(
            f"{path} is {title} that reads {read} channels of a picture; supported are the {latents} of latents, and"
            " one more for a mask. It computes something else than sdengine does"
        )


def _check_kind(component: Component, path: AnyPath, model: ModelPlan) -> None:
    """Raise ParameterError unless this kind of network steers this kind of denoiser."""
    denoiser = model.components[model.family.denoiser].kind
    if STEERS[component.kind] == denoiser:
        return
    kinds = [kind for kind, steered in STEERS.items() if steered == denoiser]
    advice = (
        f"give {' or '.join(CONTROL.of_kind(kind).title for kind in kinds)}"
        if kinds
        else "no control networks are supported for it"
    )
    raise ParameterError(
        f"{path} is {component.title}, made for {_OF_KIND[STEERS[component.kind]]}, and cannot steer"
        f" {model.title}: {advice}"
    )


def _check_fits(title: str, config: Config, path: AnyPath, model: ModelPlan) -> None:
    """Raise ParameterError for a control network that was made for other models."""
    denoiser = dict(model.components[model.family.denoiser].config)
    denoiser["in_channels"] = model.latents.channels
    of_unet = "block_out_channels" in denoiser
    for key, words in (_SHARED if of_unet else _SHARED_BY_TRANSFORMERS).items():
        absent = not of_unet and key == "context_width" and not config[key]
        if key in config and not absent and config[key] != denoiser[key]:
            raise ParameterError(
                f"{path} is {title} for other models than {model.title}: {words} is"
                f" {config[key]}, expected {denoiser[key]}. Give one that was made for"
                f" {model.family.title}"
            )


def _check_levels(config: Config, path: AnyPath, model: ModelPlan) -> None:
    """Raise ParameterError unless an adapter has features for each level of the denoiser.

    One for SDXL has features for the middle too.
    """
    widths = list(model.components[model.family.denoiser].config["block_out_channels"])
    if config["channels"] not in (widths, [*widths, widths[-1]]):
        raise ParameterError(
            f"{path} is a T2I adapter for other models than {model.title}: its features have"
            f" {config['channels']} channels, expected {widths}. Give one that was made for"
            f" {model.family.title}"
        )
