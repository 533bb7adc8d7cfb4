"""From the path of an IP-Adapter to all that is needed to run it in a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from sdengine import _core
from sdengine.errors import ParameterError, UnsupportedModelError, WeightsError
from sdengine.families import Component
from sdengine.families.control import IMAGE_ENCODER, IMAGE_PROMPT
from sdengine.formats import TensorIndex, open_index
from sdengine.keys.image_prompt import attention_table
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of, detect
from sdengine.loading.locate import Located, locate
from sdengine.loading.plan import ComponentPlan, ModelPlan

AnyPath: TypeAlias = "str | PathLike[str]"

# Where tencent-ailab/IP-Adapter's folders keep the encoders that belong to a file.
_ENCODERS = ("image_encoder", "../image_encoder", "../models/image_encoder")


@dataclass(frozen=True)
class ImagePromptPlan:
    """An IP-Adapter and what it reads pictures with."""

    projection: ComponentPlan
    encoder: ComponentPlan
    denoiser: ComponentPlan
    """The model's, with the adapter's projections in its cross-attentions."""

    @property
    def is_plus(self) -> bool:
        """It reads all patches of a picture, not its embedding."""
        return self.projection.kind == "image_resampler"


def plan_image_prompt(
    path: AnyPath, model: ModelPlan, encoder: AnyPath | None = None
) -> ImagePromptPlan:
    """Find out where every parameter of an IP-Adapter lies.

    Args:
        path: the adapter's file.
        model: the model whose cross-attentions are to read it.
        encoder: a file or folder with the CLIP vision encoder; None looks beside the adapter.

    Raises:
        ParameterError: the file holds no IP-Adapter, or one for other models, or there is no encoder.
        UnsupportedModelError: it is an IP-Adapter of another kind.
        WeightsError: a parameter is missing, or does not fit.
        FormatError: a file is damaged.
    """
    index = open_index(path)
    projection = _planned(index, IMAGE_PROMPT, model)
    if projection is None:
        if any(name.startswith("ip_adapter.") for name in index.tensors):
            raise UnsupportedModelError(
                f"{index.path} is an IP-Adapter of a kind that is not supported (FaceID, full face);"
                " supported are base and plus"
            )
        raise ParameterError(f"{index.path} holds no IP-Adapter: this is {detect(index).title}")
    denoiser = _with_adapter(index, model)
    width = denoiser.config["cross_attention_dim"]
    if projection.config["width"] != width:
        raise ParameterError(
            f"{index.path} is {IMAGE_PROMPT.title} for other models than {model.title}: its tokens"
            f" are {projection.config['width']} wide, expected {width}"
        )
    vision = _encoder(index.path, encoder, model)
    features = "hidden_size" if projection.kind == "image_resampler" else "projection_dim"
    if vision.config[features] != projection.config["features_dim"]:
        raise ParameterError(
            f"{vision.path} is not the image encoder of {index.path}: {features} is"
            f" {vision.config[features]}, expected {projection.config['features_dim']}. Give the"
            " right one with image_encoder="
        )
    return ImagePromptPlan(projection, vision, denoiser)


def _planned(index: TensorIndex, component: Component, model: ModelPlan) -> ComponentPlan | None:
    located = locate(index, component)
    if located is None:
        return None
    component, config = located.component, config_of(located, model.family)
    bindings, _ = bind(located, _core.parameters(component.kind, config))
    return ComponentPlan(
        component.name, component.kind, config, bindings, index.path, located.table.name
    )


def _with_adapter(index: TensorIndex, model: ModelPlan) -> ComponentPlan:
    """The model's denoiser with the adapter's projections."""
    denoiser = model.components[model.family.denoiser]
    if denoiser.kind != "unet":
        raise ParameterError(f"{index.path}: {model.title} takes no IP-Adapter")
    config = {**denoiser.config, "image_prompt": True}
    own = {binding.name for binding in denoiser.bindings}
    added = [(n, s) for n, s in _core.parameters(denoiser.kind, config) if n not in own]
    located = Located(IMAGE_PROMPT, index, "ip_adapter.", attention_table(config))
    try:
        bindings, _ = bind(located, added)
    except WeightsError as error:
        raise ParameterError(f"the IP-Adapter was made for other models: {error}") from None
    return replace(denoiser, config=config, bindings=(*denoiser.bindings, *bindings))


def _encoder(adapter: Path, given: AnyPath | None, model: ModelPlan) -> ComponentPlan:
    places = [Path(given)] if given is not None else [adapter.parent / at for at in _ENCODERS]
    for place in places:
        if given is None and not place.is_dir():
            continue
        index = open_index(place)
        plan = _planned(index, IMAGE_ENCODER, model)
        if plan is not None:
            return plan
        if given is not None:
            raise ParameterError(f"{index.path} holds no CLIP vision encoder with a projection")
    raise ParameterError(
        f"{adapter} needs the CLIP vision encoder that it was trained with (OpenCLIP ViT-H/14, or"
        " ViT-bigG/14 for the first one for SDXL): give its file or folder with image_encoder="
    )
