"""The networks that steer a denoiser with pictures, and where files keep them.

Figures: lllyasviel/ControlNet, TencentARC/T2I-Adapter, XLabs-AI/x-flux, and the published diffusers folders.
"""

from __future__ import annotations

from sdengine.families.family import Component
from sdengine.keys import controlnet, dit_controlnet, image_prompt, t2i_adapter

T2I_ADAPTER = Component(
    name="controlnet",
    title="a T2I adapter",
    kind="t2i_adapter",
    prefixes=("", "t2i_adapter/", "t2i_adapter."),
    tables=(t2i_adapter.DIFFUSERS, t2i_adapter.TENCENT, t2i_adapter.TENCENT_LIGHT),
    argument="controlnets",
    written=("", t2i_adapter.DIFFUSERS.name),
)
_PREFIXES = ("control_model.", "controlnet/", "controlnet.", "")
CONTROLNET = Component(
    name="controlnet",
    title="a ControlNet",
    kind="controlnet",
    prefixes=_PREFIXES,
    tables=(controlnet.LDM, controlnet.DIFFUSERS),
    argument="controlnets",
    written=("control_model.", controlnet.LDM.name),
)
SD3_CONTROLNET = Component(
    name="controlnet",
    title="a ControlNet for Stable Diffusion 3",
    kind="mmdit_controlnet",
    prefixes=_PREFIXES,
    tables=(dit_controlnet.STABILITY, dit_controlnet.MMDIT),
    argument="controlnets",
    written=("", dit_controlnet.MMDIT.name),
)
FLUX_CONTROLNET = Component(
    name="controlnet",
    title="a ControlNet for FLUX.1",
    kind="flux_controlnet",
    prefixes=_PREFIXES,
    tables=(dit_controlnet.XLABS, dit_controlnet.FLUX),
    argument="controlnets",
    written=("", dit_controlnet.FLUX.name),
)
# A union has all that a ControlNet has, so it is looked for first.
CONTROL = Component(
    name="controlnet",
    title="a ControlNet-Union",
    kind="controlnet_union",
    prefixes=_PREFIXES,
    tables=(controlnet.UNION_VALUES, controlnet.UNION),
    argument="controlnets",
    written=("", controlnet.UNION_VALUES.name),
    alternatives=(CONTROLNET, T2I_ADAPTER, SD3_CONTROLNET, FLUX_CONTROLNET),
)
STEERS = {
    "controlnet": "unet",
    "controlnet_union": "unet",
    "t2i_adapter": "unet",
    "mmdit_controlnet": "mmdit",
    "flux_controlnet": "flux",
}
"""The kind of denoiser that a kind of control network was made for."""

IMAGE_PROMPT = Component(
    name="ip_adapter",
    title="an IP-Adapter",
    kind="image_projection",
    prefixes=("image_proj.",),
    tables=(image_prompt.PROJECTION,),
    argument="ip_adapter",
    written=("image_proj.", image_prompt.PROJECTION.name),
    alternatives=(
        Component(
            name="ip_adapter",
            title="an IP-Adapter plus",
            kind="image_resampler",
            prefixes=("image_proj.",),
            tables=(image_prompt.RESAMPLER,),
            argument="ip_adapter",
            written=("image_proj.", image_prompt.RESAMPLER.name),
        ),
        Component(
            name="ip_adapter",
            title="FLUX.1 Redux",
            kind="redux_projection",
            prefixes=("image_embedder/", ""),
            tables=(image_prompt.REDUX,),
            argument="ip_adapter",
            written=("", image_prompt.REDUX.name),
        ),
    ),
)
IMAGE_ENCODER = Component(
    name="image_encoder",
    title="a CLIP vision encoder",
    kind="clip_vision",
    prefixes=("", "image_encoder/", "clip_vision."),
    tables=(image_prompt.VISION,),
    argument="image_encoder",
    written=("", image_prompt.VISION.name),
)
SIGLIP_ENCODER = Component(
    name="image_encoder",
    title="a SigLIP vision encoder",
    kind="siglip_vision",
    prefixes=("image_encoder/", "", "siglip."),
    tables=(image_prompt.SIGLIP, image_prompt.SIGLIP_BARE),
    argument="image_encoder",
    written=("", image_prompt.SIGLIP.name),
)
