"""From the path of a control network to all that is needed to run it beside a model."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeAlias

from sdengine import _core
from sdengine.errors import ParameterError, UnsupportedModelError
from sdengine.families.control import CONTROL
from sdengine.formats import open_index
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of, detect
from sdengine.loading.locate import locate
from sdengine.loading.plan import ComponentPlan, ModelPlan

AnyPath: TypeAlias = "str | PathLike[str]"
Config: TypeAlias = "Mapping[str, Any]"

# Tensors that mark control networks which are no use without the weights of a base model.
_INCOMPLETE = {
    "difference": "the difference between a ControlNet and its base model",
    "control_model.difference": "the difference between a ControlNet and its base model",
    "lora_controlnet": "a Control-LoRA, low-rank changes of a base model's weights",
}

# What a ControlNet and the denoiser that it steers must have in common, in words.
_SHARED = {
    "in_channels": "latent channels",
    "block_out_channels": "channels per level",
    "layers_per_block": "resnets per level",
    "cross_attention_dim": "the width of the text",
    "class_embed_dim": "the width of the pooled text",
    "encoder_hid_dim": "the width of the text encoder",
}


def plan_control(path: AnyPath, model: ModelPlan) -> ComponentPlan:
    """Find out what `path` is and where every parameter of it lies.

    Args:
        path: a file or a diffusers folder with a control network of its own.
        model: the model that it is to steer.

    Raises:
        ParameterError: the file holds no control network, or one for other models.
        UnsupportedModelError: it cannot be used by itself.
        WeightsError: a parameter is missing, or does not fit.
        FormatError: the file is damaged.
    """
    index = open_index(path)
    for name, title in _INCOMPLETE.items():
        if name in index.tensors:
            raise UnsupportedModelError(
                f"{index.path} holds {title}, which is not supported; give a whole ControlNet"
            )
    located = locate(index, CONTROL)
    if located is None:
        raise ParameterError(
            f"{index.path} holds no control network that can steer {model.family.title}: this is"
            f" {detect(index).title}. Give a ControlNet, a ControlNet-Union or a T2I adapter for"
            " Stable Diffusion 1.x, 2.x or XL"
        )
    config = config_of(located, model.family)
    component = located.component
    _check_fits(component.title, config, index.path, model)
    if component.kind == "t2i_adapter":
        _check_levels(config, index.path, model)
    bindings, _ = bind(located, _core.parameters(component.kind, config))
    return ComponentPlan(
        component.name, component.kind, config, bindings, index.path, located.table.name
    )


def _check_fits(title: str, config: Config, path: AnyPath, model: ModelPlan) -> None:
    """Raise ParameterError for a control network that was made for other models."""
    denoiser = dict(model.components[model.family.denoiser].config)
    denoiser["in_channels"] = model.latents.channels
    for key, words in _SHARED.items():
        if key in config and config[key] != denoiser[key]:
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
