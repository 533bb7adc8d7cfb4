"""Which family a file is of: the supported ones, and the many that are only recognised."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sdengine.families import FAMILIES, SD1, SD2, SDXL
from sdengine.families.unsupported import ADDITIONS, DENOISERS, UNETS, Signature, TensorNames
from sdengine.loading import detect
from tests import inventories
from tests.inventories import index_of, with_prefix
from tests.renaming import unet_to_ldm

PREFIX = "model.diffusion_model."


KOALA_UNET = inventories.SDXL_UNET | {
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 2, 5),
    "mid_block_type": None,
}
UNCLIP_UNET = inventories.SD2_UNET | {
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 2048,
}
REFUSED = {
    "KOALA (pruned SDXL)": KOALA_UNET,
    "KOALA (pruned SDXL) ": KOALA_UNET
    | {"mid_block_type": "UNetMidBlock2DCrossAttn", "transformer_layers_per_block": (1, 2, 6)},
    "unCLIP": UNCLIP_UNET,
}


@pytest.mark.parametrize("layout", ["LDM", "diffusers"])
@pytest.mark.parametrize("title", REFUSED)
def test_other_unets_are_named_and_refused(title: str, layout: str) -> None:
    state = inventories.unet_state(REFUSED[title])
    if layout == "LDM":
        names = {
            "class_embedding.linear_1": "label_emb.0.0",
            "class_embedding.linear_2": "label_emb.0.2",
        }
        own = {n: t for n, t in state.items() if n.startswith("class_embedding.")}
        state = unet_to_ldm({n: t for n, t in state.items() if n not in own})
        for name, tensor in own.items():
            stem, kind = name.rsplit(".", 1)
            state[f"{names[stem]}.{kind}"] = tensor
    found = detect(index_of(with_prefix(PREFIX if layout == "LDM" else "unet/", state)))
    assert found.family is None
    assert found.title.startswith(title.strip())
    assert title.strip() in found.reason
    assert SD1.title in found.reason


def test_unet_of_no_family_is_refused_with_what_comes_nearest() -> None:
    config = inventories.SDXL_UNET | {"in_channels": 7}
    found = detect(index_of(with_prefix("unet/", inventories.unet_state(config))))
    assert found.family is None
    assert "The nearest is Stable Diffusion XL, but for in_channels = 7 (expected 4 or 8 or 9)" in (
        found.reason
    )


def test_a_family_can_be_asked_for_but_not_forced() -> None:
    index = index_of(with_prefix("unet/", inventories.unet_state(inventories.SD2_UNET)))
    assert detect(index).family is SD2
    assert detect(index, "sd1").family is SD1
    refused = detect(index, "sdxl")
    assert refused.family is None
    assert "class_embed_dim = 0 (expected 1537 to 65535)" in refused.reason


@pytest.mark.parametrize(
    ("marks", "title", "prediction"),
    [
        (("edm_mean", "edm_std"), "Playground 2.5 (SDXL)", "edm"),
        (("edm_vpred.sigma_max",), "continuous noise", "edm_v_prediction"),
        (("edm_mean",), "Stable Diffusion XL", None),
        (("v_pred", "ztsnr"), "Stable Diffusion XL", None),
    ],
)
def test_marks_beside_the_networks(
    marks: tuple[str, ...], title: str, prediction: str | None
) -> None:
    state = with_prefix(PREFIX, unet_to_ldm(inventories.unet_state(inventories.SDXL_UNET)))
    state |= {mark: torch.empty(4, device="meta") for mark in marks}
    found = detect(index_of(state))
    assert found.family is SDXL
    assert title in found.title
    assert (found.variant.prediction if found.variant else None) == prediction


@pytest.mark.parametrize(
    ("width", "title"), [(768, "CLIP ViT-L"), (1024, "OpenCLIP ViT-H"), (1280, "OpenCLIP ViT-bigG")]
)
def test_text_encoders_are_named_by_their_width(width: int, title: str) -> None:
    names = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.encoder.layers.0.mlp.fc1.weight": (4 * width, width),
        "text_model.encoder.layers.0.mlp.fc1.bias": (4 * width,),
    }
    found = detect(index_of(names))
    assert title in found.title
    assert "text_encoders=..." in found.reason


SD1_TITLES = {
    "sd1.5": (inventories.SD15_UNET, "Stable Diffusion 1.x", "text"),
    "inpaint": (inventories.SD15_UNET | {"in_channels": 9}, "inpainting", "inpaint"),
    "pix2pix": (inventories.SD15_UNET | {"in_channels": 8}, "InstructPix2Pix", "edit"),
    "lcm": (inventories.SD15_UNET | {"time_cond_proj_dim": 256}, "latent consistency", "text"),
    "small": (inventories.SMALL_SD_UNET, "small", "text"),
    "tiny": (inventories.TINY_SD_UNET, "tiny", "text"),
    "sdxs": (inventories.SDXS_UNET, "SDXS", "text"),
}


@pytest.mark.parametrize("name", SD1_TITLES)
def test_members_of_stable_diffusion_1(name: str) -> None:
    config, title, task = SD1_TITLES[name]
    found = detect(index_of(with_prefix("unet/", inventories.unet_state(config))))
    assert found.family is SD1
    assert title in found.title
    assert (found.variant.task if found.variant else "text") == task
    assert found.missing == ("text_encoder", "vae")


def test_unusual_channels_are_refused_with_the_reason() -> None:
    config = inventories.SD15_UNET | {"in_channels": 7}
    found = detect(index_of(with_prefix("unet/", inventories.unet_state(config))))
    assert found.family is None
    assert "in_channels = 7 (expected 4 or 8 or 9)" in found.reason


def on_meta(build: Callable[[], torch.nn.Module]) -> inventories.State:
    with torch.device("meta"):
        return dict(build().state_dict())


def reference(name: str, **config: Any) -> Callable[[], inventories.State]:
    """A denoiser class of diffusers, small where its defaults are large."""

    def build() -> torch.nn.Module:
        import diffusers

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Chroma's class uses one of them
            module: torch.nn.Module = getattr(diffusers, name)(**config)
        return module

    return lambda: on_meta(build)


CLASSES = {
    "Lumina-Next": reference(
        "LuminaNextDiT2DModel",
        hidden_size=4,
        num_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=8,
    ),
    "HiDream-I1": reference(
        "HiDreamImageTransformer2DModel",
        num_layers=1,
        num_single_layers=1,
        caption_channels=[8, 4],
        text_emb_dim=8,
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    ),
    "AuraFlow": reference(
        "AuraFlowTransformer2DModel", num_mmdit_layers=1, num_single_dit_layers=1
    ),
    "FLUX.2": reference("Flux2Transformer2DModel", num_layers=1, num_single_layers=1),
    "Chroma": reference("ChromaTransformer2DModel", num_layers=1, num_single_layers=1),
    "Z-Image": reference("ZImageTransformer2DModel", n_layers=1),
    "Ovis-Image": reference("OvisImageTransformer2DModel", num_layers=1, num_single_layers=1),
    "LongCat-Image": reference("LongCatImageTransformer2DModel", num_layers=1, num_single_layers=1),
    "BRIA 3": reference("BriaTransformer2DModel", num_layers=1, num_single_layers=1),
    "Sana": reference("SanaTransformer2DModel", num_layers=1),
    "LTX-Video": reference("LTXVideoTransformer3DModel", num_layers=1),
    "Stable Video Diffusion": reference("UNetSpatioTemporalConditionModel"),
    "a ControlNet": reference("ControlNetModel"),
}


@pytest.mark.parametrize("title", CLASSES)
@pytest.mark.parametrize("prefix", ["", "transformer/"])
def test_other_networks_of_diffusers_are_named(title: str, prefix: str) -> None:
    found = detect(index_of(with_prefix(prefix, CLASSES[title]())))
    assert found.family is None
    assert found.title == title


NAMES: dict[str, dict[str, tuple[int, ...]]] = {
    "FLUX.2": {"double_stream_modulation_img.lin.weight": (3072, 3072)},
    "Chroma": {
        "distilled_guidance_layer.in_proj.weight": (64, 64),
        "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
        "img_in.weight": (3072, 64),
    },
    "Ovis-Image": {
        "double_blocks.0.img_mlp.gate_proj.weight": (8192, 3072),
        "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
        "img_in.weight": (3072, 64),
    },
    "LongCat-Image": {
        "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
        "img_in.weight": (3072, 64),
        "txt_in.weight": (3072, 3584),
    },
    "Stable Cascade": {"clf.1.weight": (64, 2048, 1, 1)},
    "Z-Image": {
        "cap_embedder.1.weight": (3840, 2560),
        "noise_refiner.0.attention.k_norm.weight": (128,),
    },
    "OmniGen": {
        "llm.layers.0.self_attn.qkv_proj.weight": (9216, 3072),
        "input_x_embedder.proj.weight": (3072, 4, 2, 2),
    },
    "a LoRA or a related adapter": {
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (320, 8),
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (8, 320),
    },
    "a ControlNet": {"control_model.zero_convs.0.0.weight": (320, 320, 1, 1)},
    "an upscaler (ESRGAN)": {
        "conv_first.weight": (64, 3, 3, 3),
        "body.0.rdb1.conv1.weight": (32, 64, 3, 3),
    },
    "a textual inversion embedding": {"<my-word>": (4, 768)},
    "a textual inversion embedding (SDXL)": {"clip_l": (4, 768), "clip_g": (4, 1280)},
    "no model that is known here": {"a.weight": (10, 10, 3, 3), "b.weight": (1000, 300)},
}


@pytest.mark.parametrize("title", NAMES)
def test_files_are_named_by_their_tensors(title: str) -> None:
    found = detect(index_of(NAMES[title]))
    assert found.family is None
    assert found.title == title
    assert found.reason


def test_what_is_unknown_is_reported_by_its_names() -> None:
    names = {f"tensor_{i}": (300, 300, 3) for i in range(30)}
    reason = detect(index_of(names)).reason
    assert "30 tensors" in reason
    assert "tensor_19" in reason
    assert "tensor_20" not in reason


def test_patterns_follow_any_prefix_but_not_any_letters() -> None:
    names = TensorNames({"a.b/c.d.weight": (1,)})
    assert names.find("c.d.weight") == (1,)
    assert names.find("d.weight") == (1,)
    assert names.find("*.weight") == (1,)
    assert names.find(".weight") is None
    assert names.find("eight") is None


def test_signatures_ask_for_absence_and_sizes() -> None:
    names = TensorNames({"x.w": (3, 4), "y": ()})
    assert Signature("t", ("w",), sizes=(("w", 1, 4),)).fits(names)
    assert not Signature("t", ("w",), sizes=(("w", 1, 3),)).fits(names)
    assert not Signature("t", ("w",), sizes=(("w", 2, 4),)).fits(names)
    assert not Signature("t", ("w",), absent=("y",)).fits(names)


def test_lists_are_well_formed() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.denoiser in {component.name for component in family.components}
        assert set(family.tokenizers) <= {component.name for component in family.components}
        for component in family.components:
            tables = {table.name for table in component.tables}
            assert component.written[1] in tables or not tables
    assert all(signature.present for signature in (*ADDITIONS, *DENOISERS))
    assert all(unet.shape.allowed for unet in UNETS)
