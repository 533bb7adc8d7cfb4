"""Full-size models as one file with everything: every tensor of every part maps, none is left, none is missing.

The layouts are those of gpustack's GGUFs (stable-diffusion.cpp's names) and of ComfyUI's checkpoints.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import AutoencoderKL

from sdengine import _core
from sdengine.families import FLUX, SCHNELL, SD3, Family
from sdengine.families.control import IMAGE_PROMPT, SIGLIP_ENCODER
from sdengine.formats import TensorIndex
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of, detect
from sdengine.loading.locate import locate
from sdengine.loading.text_parts import check_text_encoders
from tests.inventories import index_of
from tests.keys.test_dit_inventories import full_size
from tests.renaming import vae_to_ldm
from tests.renaming_dit import State, flux_to_bfl, sd3_to_reference

from .layouts import COMFYUI, DENOISER, GPUSTACK

LAYOUTS = {"gpustack": GPUSTACK, "ComfyUI": COMFYUI}
MODELS: dict[str, tuple[Family, str]] = {
    "SD3-Medium": (SD3, "Stable Diffusion 3 Medium"),
    "SD3.5-Medium": (SD3, "Stable Diffusion 3.5 Medium"),
    "SD3.5-Large": (SD3, "Stable Diffusion 3.5 Large"),
    "FLUX.1-dev": (FLUX, "FLUX.1 dev"),
    "FLUX.1-schnell": (SCHNELL, "FLUX.1 schnell"),
    "FLUX.1-Fill": (FLUX, "FLUX.1 Fill"),
}


@cache
def text_encoders() -> dict[str, State]:
    """CLIP-L, bigG and T5-XXL as transformers has them."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

    def clip(width: int, inner: int, layers: int, heads: int) -> torch.nn.Module:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=width,
                intermediate_size=inner,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                projection_dim=width,
            )
        )

    with torch.device("meta"):
        t5 = T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
        models = {
            "clip_l": clip(768, 3072, 12, 12),
            "clip_g": clip(1280, 5120, 32, 20),
            "t5xxl": T5EncoderModel(t5),
        }
        return {name: dict(model.state_dict()) for name, model in models.items()}


@cache
def autoencoder() -> State:
    with torch.device("meta"):
        widths = (128, 256, 512, 512)
        vae = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return vae_to_ldm(vae.state_dict())


def whole(model: str, layout: str) -> TensorIndex:
    is_sd3 = model.startswith("SD3")
    denoiser = (sd3_to_reference if is_sd3 else flux_to_bfl)(full_size(model))
    state = {DENOISER + name: tensor for name, tensor in denoiser.items()}
    encoders = ("clip_l", "clip_g", "t5xxl") if is_sd3 else ("clip_l", "t5xxl")
    prefixes = LAYOUTS[layout]["sd3" if is_sd3 else "flux"]
    for encoder, prefix in zip(encoders, prefixes, strict=True):
        for name, tensor in text_encoders()[encoder].items():
            state[f"{prefix}transformer.{name}"] = tensor
    state |= {f"first_stage_model.{name}": tensor for name, tensor in autoencoder().items()}
    return index_of(state)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_has_a_use(model: str, layout: str) -> None:
    family, title = MODELS[model]
    index = whole(model, layout)
    found = detect(index)
    assert (found.family, found.title) == (family, title)
    assert found.missing == ()
    configs = {}
    for name, located in found.components.items():
        configs[name] = found.configs.get(name) or config_of(located, family)
        _, left = bind(located, _core.parameters(located.component.kind, configs[name]))
        # FLUX.1 reads CLIP-L's pooled vector before its projection.
        assert [n for n in left if "text_projection" not in n] == [], name
    check_text_encoders(family, configs, dict.fromkeys(configs, index.path))


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_redux_and_its_encoder(prefix: str) -> None:
    """FLUX.1-Redux-dev, and SigLIP SO400M as transformers 4 and 5 name it."""
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    with torch.device("meta"):
        vision = SiglipVisionModel(config).state_dict()
        redux = ReduxImageEncoder().state_dict()
    bare = {name.removeprefix("vision_model."): tensor for name, tensor in vision.items()}
    assert any(name.startswith("head.") for name in bare)
    encoder = {prefix + name: tensor for name, tensor in bare.items()}
    for component, state in ((SIGLIP_ENCODER, encoder), (IMAGE_PROMPT, redux)):
        located = locate(index_of(state), component)
        assert located is not None
        found = config_of(located, FLUX)
        bindings, left = bind(located, _core.parameters(located.component.kind, found))
        assert left == ()
        assert bindings
        if component is SIGLIP_ENCODER:
            assert (found["image_size"], found["heads"], found["layers"]) == (384, 16, 27)
        else:
            assert (found["features_dim"], found["width"]) == (1152, 4096)
