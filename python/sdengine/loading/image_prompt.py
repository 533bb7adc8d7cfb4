"""From the path of an image prompt (IP-Adapter, FLUX.1 Redux) to all that is needed to run it in a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from sdengine import _core
from sdengine.errors import ParameterError, UnsupportedModelError, WeightsError
from sdengine.families import Component
from sdengine.families.control import IMAGE_ENCODER, IMAGE_PROMPT, SIGLIP_ENCODER
from sdengine.formats import TensorIndex, open_index
from sdengine.keys.image_prompt import attention_table
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of, detect
from sdengine.loading.locate import Located, locate
from sdengine.loading.plan import ComponentPlan, ModelPlan

AnyPath: TypeAlias = "str | PathLike[str]"

_TRAINED = {
    "clip_vision": "OpenCLIP ViT-H/14, or ViT-bigG/14 for the first one for SDXL",
    "siglip_vision": "SigLIP SO400M, patches of 14, pictures of 384",
}
# Where tencent-ailab/IP-Adapter's folders keep the encoders that belong to a file.
_ENCODERS = ("image_encoder", "../image_encoder", "../models/image_encoder")


@dataclass(frozen=True)
class ImagePromptPlan:
    """An image prompt and what it reads pictures with."""

    projection: ComponentPlan
    encoder: ComponentPlan
    denoiser: ComponentPlan
    """The model's; with an IP-Adapter's projections in its cross-attentions."""

    @property
    def is_plus(self) -> bool:
        """It reads all patches of a picture, not its embedding."""
        return self.projection.kind == "image_resampler"

    @property
    def is_context(self) -> bool:
        """Its tokens stand behind the text's (Redux)."""
        return self.projection.kind == "redux_projection"


def plan_image_prompt(
    path: AnyPath, model: ModelPlan, encoder: AnyPath | None = None
) -> ImagePromptPlan:
    """Find out where every parameter of an image prompt lies.

    Args:
        path: the file, or a diffusers folder of Redux.
        model: the model that is to read it.
        encoder: a file or folder with the vision encoder; None looks inside, and beside it.

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
        raise ParameterError(
            f"{index.path} holds no IP-Adapter and no Redux: this is {detect(index).title}"
        )
    prepared = _for_redux if projection.kind == "redux_projection" else _with_adapter
    denoiser = prepared(index, model)
    width = model.context_width
    if projection.config["width"] != width:
        raise ParameterError(
            f"{index.path} is {IMAGE_PROMPT.of_kind(projection.kind).title} for other models than"
            f" {model.title}: its tokens are {projection.config['width']} wide, expected {width}"
        )
    vision = _encoder(index, encoder, model, projection.kind)
    features = "projection_dim" if projection.kind == "image_projection" else "hidden_size"
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


def _for_redux(index: TensorIndex, model: ModelPlan) -> ComponentPlan:
    denoiser = model.components[model.family.denoiser]
    if denoiser.kind != "flux":
        raise ParameterError(f"{index.path}: {model.title} takes no Redux; FLUX.1 does")
    return denoiser


def _encoder(
    prompt: TensorIndex, given: AnyPath | None, model: ModelPlan, kind: str
) -> ComponentPlan:
    """The vision encoder of an image prompt whose projection is of that kind."""
    wanted = SIGLIP_ENCODER if kind == "redux_projection" else IMAGE_ENCODER
    if given is None and prompt.path.is_dir():
        plan = _planned(prompt, wanted, model)
        if plan is not None:
            return plan
    places = [Path(given)] if given is not None else [prompt.path.parent / at for at in _ENCODERS]
    for place in places:
        if given is None and not place.is_dir():
            continue
        index = open_index(place)
        plan = _planned(index, wanted, model)
        if plan is not None:
            return plan
        if given is not None:
            raise ParameterError(
                f"{index.path} does not hold {wanted.title}; this is {detect(index).title}"
            )
    raise ParameterError(
        f"{prompt.path} needs {wanted.title}, the one that it was trained with ({_TRAINED[wanted.kind]}):"
        " give its file or folder with image_encoder="
    )
