"""FLUX.1: dev and its relatives, which were distilled with guidance, and schnell, which was not.

Figures: black-forest-labs/flux (util.py, sampling.py) and the configs of the published diffusers
folders; FLUX-mini: TencentARC/FluxKits.

What the denoiser reads as context: T5's last states. Pooled: CLIP-L's vector, not projected; the
states of CLIP-L have no reader.
"""

from __future__ import annotations

from dataclasses import replace

from sdengine.families.family import Component, Family, Shape, TextUse, Variant
from sdengine.families.sd1 import AUTOENCODER
from sdengine.families.sd3 import DENOISER as SD3_DENOISER
from sdengine.families.sd3 import TEXT_ENCODER_3
from sdengine.families.sdxl import TEXT_ENCODER
from sdengine.families.settings import Betas, Defaults, Flow, LatentFormat, References
from sdengine.keys import flux

DENOISER = replace(
    SD3_DENOISER,
    title="a diffusion transformer (FLUX.1)",
    kind="flux",
    tables=(flux.BFL, flux.DIFFUSERS),
    written=("model.diffusion_model.", flux.BFL.name),
)
TEXT_ENCODER_2: Component = replace(
    TEXT_ENCODER_3,
    name="text_encoder_2",
    optional=False,
    prefixes=(
        "text_encoders.t5xxl.transformer.",
        "text_encoder_2/",
        "text_encoders.t5xxl.",
        "cond_stage_model.1.transformer.",
        "t5xxl.transformer.",
        "t5xxl.",
        "",
    ),
)
# The sizes that Kontext was trained on (black-forest-labs/flux util.py), (width, height).
_HALF = (
    *((672, 1568), (688, 1504), (720, 1456), (752, 1392)),
    *((800, 1328), (832, 1248), (880, 1184), (944, 1104)),
)
KONTEXT_SIZES = (*_HALF, (1024, 1024), *((width, height) for height, width in reversed(_HALF)))
_OUT = {"out_channels": (16,), "pooled_width": (768,)}

FLUX = Family(
    name="flux",
    title="FLUX.1 dev",
    denoiser="transformer",
    shape=Shape({"in_channels": (16, 32, 96), "guidance": (True,), **_OUT}),
    components=(DENOISER, TEXT_ENCODER, TEXT_ENCODER_2, AUTOENCODER),
    tokenizers={"text_encoder": "clip", "text_encoder_2": "t5"},
    latents=LatentFormat(channels=16, scale=0.3611, shift=0.1159, factor=8),
    betas=Betas("linear", 0.0001, 0.02),
    prediction="flow",
    flow=Flow(dynamic=True),
    # The guidance is the one that the denoiser is told.
    defaults=Defaults(1024, 1024, steps=28, guidance=3.5, sampler="euler", schedule="trailing"),
    text=(
        TextUse("text_encoder", pooled=True, context=False),
        TextUse("text_encoder_2", length=512),
    ),
    patch=2,
    mask_layout="folded",
    draws_kept_image=True,
    # dev's networks look at references too, though only Kontext was trained to.
    references=References(KONTEXT_SIZES),
    # Steps and guidance of Fill, Kontext and the control models: the examples of diffusers' pipelines.
    variants=(
        Variant(
            "FLUX.1 Fill",
            Shape({"in_channels": (96,)}),
            task="inpaint",
            defaults={"steps": 50, "guidance": 30.0},
        ),
        Variant(
            "FLUX.1 Canny or Depth",
            Shape({"in_channels": (32,)}),
            task="control",
            defaults={"steps": 50, "guidance": 30.0},
        ),
        Variant(
            "FLUX.1 Kontext",
            Shape({"in_channels": (16,)}),
            task="reference",
            defaults={"guidance": 2.5},
            names=("kontext",),
        ),
        Variant("FLUX-mini", Shape({"layers": (5,), "single_layers": (10,)})),
    ),
)
SCHNELL = replace(
    FLUX,
    text=(FLUX.text[0], replace(FLUX.text[1], length=256)),
    name="flux_schnell",
    title="FLUX.1 schnell",
    shape=Shape({"in_channels": (16,), "guidance": (False,), **_OUT}),
    flow=Flow(),
    defaults=Defaults(1024, 1024, steps=4, guidance=1.0, sampler="euler", schedule="trailing"),
    variants=(),
)
