"""Qwen-Image and Qwen-Image-Edit (Wu et al. 2025, arXiv 2508.02324).

Figures: Qwen/Qwen-Image (README.md, and the configs of the published diffusers folders) and diffusers' pipelines.

What the denoiser reads as context: the last states of Qwen2.5-VL, without those of the system's words in front.
"""

from __future__ import annotations

from dataclasses import replace

from sdengine.families.family import Component, Family, Shape, Sight, TextUse, Variant
from sdengine.families.sd3 import DENOISER as SD3_DENOISER
from sdengine.families.settings import Betas, Defaults, Flow, LatentFormat, References
from sdengine.keys import autoencoder_wan, decoder_text, qwen_image, qwen_vision

DENOISER = replace(
    SD3_DENOISER,
    title="a diffusion transformer (Qwen-Image)",
    kind="qwen_image",
    tables=(qwen_image.DIFFUSERS,),
    written=("model.diffusion_model.", qwen_image.DIFFUSERS.name),
)
AUTOENCODER = Component(
    name="vae",
    title="Wan's autoencoder (Qwen-Image)",
    kind="autoencoder_kl",
    prefixes=("first_stage_model.", "vae/", "vae.", ""),
    tables=(autoencoder_wan.WAN, autoencoder_wan.DIFFUSERS),
    argument="vae",
    written=("vae.", autoencoder_wan.WAN.name),
)
TEXT_ENCODER = Component(
    name="text_encoder",
    title="a Qwen2.5-VL text encoder",
    kind="decoder_text",
    prefixes=(
        "text_encoders.qwen25_7b.transformer.",
        "text_encoder/",
        "text_encoders.qwen25_7b.",
        "",
    ),
    tables=decoder_text.QWEN2,
    argument="text_encoders",
    written=("text_encoders.qwen25_7b.transformer.", decoder_text.TRANSFORMERS_CAUSAL.name),
    # Gemma 2 of 9B is as wide.
    told_by={"qkv_bias": (True,), "post_norms": (False,)},
)

_PARTS = ("text_encoders.qwen25_7b.transformer.", "text_encoder/", "text_encoders.qwen25_7b.", "")
VISION_ENCODER = Component(
    name="vision_encoder",
    title="Qwen2.5-VL's vision encoder",
    kind="qwen_vision",
    prefixes=(
        "vision_encoder.",
        *(f"{part}{eyes}" for part in _PARTS for eyes in ("visual.", "model.visual.")),
        "",
    ),
    tables=(qwen_vision.LLAMA_CPP, qwen_vision.TRANSFORMERS),
    argument="text_encoders",
    written=("vision_encoder.", qwen_vision.LLAMA_CPP.name),
    optional=True,  # only references need it
    config=TEXT_ENCODER.name,
)

# diffusers' AutoencoderKLQwenImage, which has them of Wan 2.1.
LATENTS = LatentFormat(
    channels=16,
    scale=1.0,
    shift=0.0,
    factor=8,
    mean=(
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    deviation=(
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
)

# diffusers' pipelines: what the denoiser looks at has about a million pixels; what the text encoder sees of it has as
# many in the first Edit, and 384 x 384 in its successors (2509, 2511), which take several pictures. Steps of
# the latter: README of Qwen/Qwen-Image-Edit-2509.
_AREA, _SMALL_AREA = 1024 * 1024, 384 * 384
_SEES_ONE = TextUse(TEXT_ENCODER.name, sight=Sight(VISION_ENCODER.name, "qwen_image_edit", _AREA))
_SEES_SEVERAL = TextUse(
    TEXT_ENCODER.name, sight=Sight(VISION_ENCODER.name, "qwen_image_edit_plus", _SMALL_AREA)
)
_PLUS = Variant(
    "Qwen-Image-Edit-Plus",
    Shape({}),
    task="reference",
    defaults={"steps": 40},
    names=("edit plus", "edit 25(?:09|11)"),
    text=(_SEES_SEVERAL,),
)

QWEN_IMAGE = Family(
    name="qwen_image",
    title="Qwen-Image",
    denoiser="transformer",
    shape=Shape({"in_channels": (16,), "out_channels": (16,)}),
    components=(DENOISER, TEXT_ENCODER, VISION_ENCODER, AUTOENCODER),
    tokenizers={"text_encoder": "qwen_image"},
    latents=LATENTS,
    betas=Betas("linear", 0.0001, 0.02),
    prediction="flow",
    flow=Flow(dynamic=True, max_shift=0.9, max_tokens=8192, terminal=0.02),
    defaults=Defaults(1328, 1328, steps=50, guidance=4.0, sampler="euler", schedule="trailing"),
    # Edit's tensors are those of the base model: whatever is given pictures to look at reads them as Edit-Plus does.
    text=(_SEES_SEVERAL,),
    references=References(area=_AREA, multiple=32),
    norms="token",
    usual_negative=" ",
    patch=2,
    resolutions=(
        *((928, 1664), (1056, 1584), (1104, 1472), (1328, 1328)),
        *((1472, 1104), (1584, 1056), (1664, 928)),
    ),
    variants=(
        # The one that 2511 is told by without its name.
        replace(_PLUS, shape=Shape({"still_references": (True,)}), names=()),
        _PLUS,
        Variant("Qwen-Image-Edit", Shape({}), task="reference", names=("edit",), text=(_SEES_ONE,)),
    ),
)
