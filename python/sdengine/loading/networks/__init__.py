"""Per kind of native network: its hyper-parameters from shapes and from a config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


NETWORKS: Mapping[str, Network] = {
    "unet": Network(unet.from_shapes, unet.refine, unet.check, unet.UNTOLD),
    "mmdit": Network(mmdit.from_shapes, mmdit.refine, mmdit.check, mmdit.UNTOLD),
    "flux": Network(flux.from_shapes, flux.refine, flux.check, flux.UNTOLD),
    "lumina2": Network(lumina2.from_shapes, lumina2.refine, lumina2.check, lumina2.UNTOLD),
    "pixart": Network(pixart.from_shapes, pixart.refine, pixart.check, pixart.UNTOLD),
    "qwen_image": Network(
        qwen_image.from_shapes, qwen_image.refine, qwen_image.check, qwen_image.UNTOLD
    ),
    "hunyuan_dit": Network(
        hunyuan_dit.from_shapes, hunyuan_dit.refine, hunyuan_dit.check, hunyuan_dit.UNTOLD
    ),
    "controlnet": Network(
        controlnet.from_shapes, controlnet.refine, controlnet.check, controlnet.UNTOLD
    ),
    "controlnet_union": Network(
        controlnet.union_from_shapes, controlnet.refine, controlnet.check, controlnet.UNTOLD
    ),
    "mmdit_controlnet": Network(
        mmdit_controlnet.from_shapes,
        mmdit_controlnet.refine,
        mmdit_controlnet.check,
        mmdit_controlnet.UNTOLD,
    ),
    "flux_controlnet": Network(
        flux_controlnet.from_shapes,
        flux_controlnet.refine,
        flux_controlnet.check,
        flux_controlnet.UNTOLD,
    ),
    "t2i_adapter": Network(
        t2i_adapter.from_shapes, t2i_adapter.refine, t2i_adapter.check, t2i_adapter.UNTOLD
    ),
    "clip_vision": Network(
        clip_vision.from_shapes, clip_vision.refine, clip_vision.check, clip_vision.UNTOLD
    ),
    "qwen_vision": Network(
        qwen_vision.from_shapes, qwen_vision.refine, qwen_vision.check, qwen_vision.UNTOLD
    ),
    "siglip_vision": Network(
        siglip_vision.from_shapes, siglip_vision.refine, siglip_vision.check, siglip_vision.UNTOLD
    ),
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
    "clip_text": Network(
        clip_text.from_shapes, clip_text.refine, clip_text.check, clip_text.UNTOLD
    ),
    "decoder_text": Network(
        decoder_text.from_shapes, decoder_text.refine, decoder_text.check, decoder_text.UNTOLD
    ),
    "t5_text": Network(t5_text.from_shapes, t5_text.refine, t5_text.check, t5_text.UNTOLD),
    "bert_text": Network(
        bert_text.from_shapes, bert_text.refine, bert_text.check, bert_text.UNTOLD
    ),
    "autoencoder_kl": Network(
        autoencoder_kl.from_shapes,
        autoencoder_kl.refine,
        autoencoder_kl.check,
        autoencoder_kl.UNTOLD,
    ),
    "autoencoder_tiny": Network(
        autoencoder_tiny.from_shapes,
        autoencoder_tiny.refine,
        autoencoder_tiny.check,
        autoencoder_tiny.UNTOLD,
    ),
}

__all__ = ["NETWORKS", "Network", "Shapes"]
