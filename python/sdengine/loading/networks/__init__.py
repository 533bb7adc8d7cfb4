"""Per kind of native network: its hyper-parameters from shapes and from a config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from sdengine.families import Family
from sdengine.loading.networks import (
    autoencoder_kl,
    autoencoder_tiny,
    bert_text,
    clip_text,
    clip_vision,
    controlnet,
    decoder_text,
    flux,
    flux_controlnet,
    hunyuan_dit,
    image_prompt,
    lumina2,
    mmdit,
    mmdit_controlnet,
    pixart,
    qwen_image,
    qwen_vision,
    siglip_vision,
    t2i_adapter,
    t5_text,
    unet,
)
from sdengine.loading.networks.json_config import Json
from sdengine.loading.networks.shapes import Shapes


@dataclass(frozen=True)
class Network:
    """What Python knows about one kind of native network; the native module knows the rest."""

    from_shapes: Callable[[Shapes, Family], dict[str, Any]]
    """Hyper-parameters from the shapes of parameters under canonical names."""
    refine: Callable[[dict[str, Any], Json], dict[str, Any]]
    """The same with what only a config.json tells; contradictions raise WeightsError."""
    check: Callable[[Mapping[str, Any]], None]
    """Raises WeightsError for values that no such network can have."""
    untold: frozenset[str]
    """The hyper-parameters that no shape tells."""


def _of(module: ModuleType) -> Network:
    """What a module of this package says under the usual names."""
    return Network(module.from_shapes, module.refine, module.check, module.UNTOLD)


NETWORKS: Mapping[str, Network] = {
    "unet": _of(unet),
    "mmdit": _of(mmdit),
    "flux": _of(flux),
    "lumina2": _of(lumina2),
    "pixart": _of(pixart),
    "qwen_image": _of(qwen_image),
    "hunyuan_dit": _of(hunyuan_dit),
    "controlnet": _of(controlnet),
    "controlnet_union": Network(
        controlnet.union_from_shapes, controlnet.refine, controlnet.check, controlnet.UNTOLD
    ),
    "mmdit_controlnet": _of(mmdit_controlnet),
    "flux_controlnet": _of(flux_controlnet),
    "t2i_adapter": _of(t2i_adapter),
    "clip_vision": _of(clip_vision),
    "qwen_vision": _of(qwen_vision),
    "siglip_vision": _of(siglip_vision),
    "redux_projection": Network(
        image_prompt.redux_from_shapes,
        image_prompt.refine,
        image_prompt.check,
        image_prompt.REDUX_UNTOLD,
    ),
    "image_projection": Network(
        image_prompt.projection_from_shapes,
        image_prompt.refine,
        image_prompt.check,
        image_prompt.UNTOLD,
    ),
    "image_resampler": Network(
        image_prompt.resampler_from_shapes,
        image_prompt.refine,
        image_prompt.check,
        image_prompt.UNTOLD,
    ),
    "clip_text": _of(clip_text),
    "decoder_text": _of(decoder_text),
    "t5_text": _of(t5_text),
    "bert_text": _of(bert_text),
    "autoencoder_kl": _of(autoencoder_kl),
    "autoencoder_tiny": _of(autoencoder_tiny),
}

__all__ = ["NETWORKS", "Network", "Shapes"]
