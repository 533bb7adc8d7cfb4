"""Full-size inventories of every member of the UNet families, in every published layout.

``python -m tests.unet_inventories`` prints the table of docs/model-files.md, which
`tests/keys/test_unet_inventories.py` keeps true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch

from sdengine import _core
from sdengine.families import KOLORS, SD1, SD2, SDXL, SDXL_REFINER, Family
from sdengine.keys.ignored import is_ignored
from sdengine.loading import Detection, detect
from sdengine.loading.bind import bind
from sdengine.loading.detection import config_of
from tests import inventories
from tests.inventories import (
    KOLORS_UNET,
    REFINER_UNET,
    SD2_UNET,
    SD15_UNET,
    SDXL_UNET,
    SDXS_UNET,
    SMALL_SD_UNET,
    SSD1B_UNET,
    TINY_SD_UNET,
    VEGA_UNET,
    State,
    index_of,
    with_prefix,
)
from tests.keys.test_text_inventories import chatglm3
from tests.renaming import clip_to_hf, clip_to_openclip, unet_to_ldm, vae_to_ldm

BK_SDM_V2_TINY = TINY_SD_UNET | {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
}
SDXS_09 = BK_SDM_V2_TINY | {"only_cross_attention": (True, False, False)}

MEMBERS: dict[str, tuple[Family, str, dict[str, Any]]] = {
    "SD 1.4, 1.5": (SD1, "Stable Diffusion 1.x", SD15_UNET),
    "SD 1.5 inpainting": (SD1, "Stable Diffusion 1.x inpainting", SD15_UNET | {"in_channels": 9}),
    "InstructPix2Pix": (SD1, "InstructPix2Pix (SD 1.x)", SD15_UNET | {"in_channels": 8}),
    "SD 1.5 LCM": (
        SD1,
        "Stable Diffusion 1.x, latent consistency",
        SD15_UNET | {"time_cond_proj_dim": 256},
    ),
    "small-sd": (SD1, "Stable Diffusion 1.x small (pruned)", SMALL_SD_UNET),
    "tiny-sd": (SD1, "Stable Diffusion 1.x tiny (pruned)", TINY_SD_UNET),
    "SDXS-512-DreamShaper": (SD1, "SDXS-512 (SD 1.x, one step)", SDXS_UNET),
    "SD 2.x, Turbo": (SD2, "Stable Diffusion 2.x", SD2_UNET),
    "SD 2 inpainting": (SD2, "Stable Diffusion 2.x inpainting", SD2_UNET | {"in_channels": 9}),
    "SD 2 depth": (SD2, "Stable Diffusion 2.x depth", SD2_UNET | {"in_channels": 5}),
    "bk-sdm-v2-tiny": (SD2, "Stable Diffusion 2.x tiny (pruned)", BK_SDM_V2_TINY),
    "SDXS-512-0.9": (SD2, "SDXS-512-0.9 (SD 2.x, one step)", SDXS_09),
    "SDXL, Turbo, ...": (SDXL, "Stable Diffusion XL", SDXL_UNET),
    "SDXL inpainting": (SDXL, "Stable Diffusion XL inpainting", SDXL_UNET | {"in_channels": 9}),
    "SDXL pix2pix": (SDXL, "InstructPix2Pix (SDXL)", SDXL_UNET | {"in_channels": 8}),
    "SDXL LCM": (
        SDXL,
        "Stable Diffusion XL, latent consistency",
        SDXL_UNET | {"time_cond_proj_dim": 256},
    ),
    "SSD-1B": (SDXL, "SSD-1B (SDXL, pruned)", SSD1B_UNET),
    "Segmind-Vega": (SDXL, "Segmind-Vega (SDXL, pruned)", VEGA_UNET),
    "SDXL refiner": (SDXL_REFINER, "Stable Diffusion XL refiner", REFINER_UNET),
    "Kolors": (KOLORS, "Kolors", KOLORS_UNET),
}
PRUNED = ("small-sd", "tiny-sd", "SDXS-512-DreamShaper", "bk-sdm-v2-tiny", "SDXS-512-0.9")

CLIP_H = inventories.CLIP_L | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}
CLIP_G = inventories.CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}


@cache
def unet(member: str) -> State:
    return inventories.unet_state(MEMBERS[member][2])


def _encoder(config: Mapping[str, Any], projected: bool) -> State:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        kind = CLIPTextModelWithProjection if projected else CLIPTextModel
        return clip_to_hf(kind(CLIPTextConfig(**config)).state_dict())


@cache
def clip_h() -> State:
    """As diffusers folders have it: without the last layer, which is not read."""
    return _encoder(CLIP_H, projected=False)


@cache
def whole_clip_h() -> State:
    """As OpenCLIP published it, and single files have it."""
    return _encoder({**CLIP_H, "num_hidden_layers": 24}, projected=True)


@cache
def clip_g() -> State:
    return _encoder(CLIP_G, projected=True)


def encoders(family: Family) -> dict[str, State]:
    """The text encoders of a family as its diffusers folders have them."""
    states = {
        "sd1": {"text_encoder": inventories.clip_l},
        "sd2": {"text_encoder": clip_h},
        "sdxl": {"text_encoder": inventories.clip_l, "text_encoder_2": clip_g},
        "sdxl_refiner": {"text_encoder_2": clip_g},
        "kolors": {},
    }[family.name]
    return {name: state() for name, state in states.items()}


# ------------------------------ layouts
def single_file(member: str) -> State:
    """CompVis, Stability, A1111 and ComfyUI, with what real files carry besides."""
    family = MEMBERS[member][0]
    state = {
        **with_prefix("model.diffusion_model.", unet_to_ldm(unet(member))),
        **with_prefix("first_stage_model.", vae_to_ldm(inventories.sd15_vae())),
    }
    if family is SD1:
        state |= with_prefix("cond_stage_model.transformer.", inventories.clip_l())
        state |= inventories.bookkeeping()
    elif family is SD2:
        state |= with_prefix("cond_stage_model.model.", clip_to_openclip(whole_clip_h()))
        state["cond_stage_model.model.attn_mask"] = torch.empty(77, 77, device="meta")
        state["betas"] = torch.empty(1000, device="meta")
    elif family is SDXL:
        positions = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
        state |= with_prefix("conditioner.embedders.0.transformer.", inventories.clip_l())
        state |= with_prefix("conditioner.embedders.1.model.", clip_to_openclip(clip_g()))
        state |= {
            positions: torch.empty(1, 77, device="meta"),
            "denoiser.sigmas": torch.empty(1000, device="meta"),
        }
    elif family is SDXL_REFINER:
        state |= with_prefix("conditioner.embedders.0.model.", clip_to_openclip(clip_g()))
        state["denoiser.sigmas"] = torch.empty(1000, device="meta")
    return state


def folder(member: str) -> State:
    state = {**with_prefix("unet/", unet(member)), **with_prefix("vae/", inventories.sd15_vae())}
    for name, encoder in encoders(MEMBERS[member][0]).items():
        state |= with_prefix(f"{name}/", encoder)
    if member == "Kolors":
        state |= with_prefix("text_encoder/", chatglm3())
    return state


_OPEN_CLIP_TO_SD_CPP = (
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    (".attn.in_proj_", ".self_attn.in_proj."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_SD_CPP_PREFIXES = (
    ("cond_stage_model.model.", "cond_stage_model.transformer."),
    ("conditioner.embedders.1.model.", "cond_stage_model.1.transformer."),
    ("conditioner.embedders.0.model.", "cond_stage_model.transformer."),
    ("conditioner.embedders.0.transformer.", "cond_stage_model.transformer."),
)


def sd_cpp_name(name: str) -> str:
    """stable-diffusion.cpp's name for one of a single file (name_conversion.cpp)."""
    for old, new in _SD_CPP_PREFIXES:
        if name.startswith(old):
            rest = name[len(old) :]
            if old.endswith(".model."):
                if rest == "text_projection":
                    return f"{new}text_model.text_projection"
                for ours, theirs in _OPEN_CLIP_TO_SD_CPP:
                    rest = rest.replace(ours, theirs)
            return new + rest
    return name


def all_in_one(member: str) -> State:
    """stable-diffusion.cpp and GPUStack."""
    extra = inventories.bookkeeping()
    state = {sd_cpp_name(n): t for n, t in single_file(member).items() if n not in extra}
    for name, tensor in state.items():
        if name.endswith((".proj_in.weight", ".proj_out.weight")) and tensor.ndim == 2:
            state[name] = tensor[:, :, None, None]
    return state


def newer_all_in_one(member: str) -> State:
    """The text encoders' names in newer stable-diffusion.cpp files."""
    names = {
        "cond_stage_model.1.transformer.": "text_encoders.clip_g.transformer.",
        "cond_stage_model.transformer.": (
            "text_encoders.clip_g.transformer."
            if MEMBERS[member][0] is SDXL_REFINER
            else "text_encoders.clip_l.transformer."
        ),
    }

    def renamed(name: str) -> str:
        for old, new in names.items():
            name = name.replace(old, new)
        return name

    return {renamed(name): tensor for name, tensor in all_in_one(member).items()}


def sgm_file(member: str) -> State:
    """Stable Diffusion 2 as generative-models names its text encoder."""
    old, new = "cond_stage_model.model.", "conditioner.embedders.0.model."
    return {name.replace(old, new): tensor for name, tensor in single_file(member).items()}


def folded(state: State) -> State:
    """city96's storage of tensors with awkward rows, without the metadata that undoes it."""
    return {
        name: torch.empty(t.numel() // 256, 256, device="meta")
        if t.ndim > 1 and t.numel() >= 512 and t.numel() % 256 == 0 and t.shape[-1] % 256
        else t
        for name, t in state.items()
    }


def stride_3(compact: State) -> State:
    """From the compact numbering of a pruned UNet to that of diffusers' export script.

    There an upsampler is alone in its block: part 1 of the first level, part 2 of the others.
    """

    def rename(name: str) -> str:
        match = re.match(r"(input|output)_blocks\.(\d+)\.(.*)", name)
        if match is None or name.startswith("input_blocks.0."):
            return name
        kind, n, rest = match[1], int(match[2]), match[3]
        if kind == "input":
            level, slot = divmod(n - 1, 2)
            return f"input_blocks.{3 * level + (1 if slot == 0 else 3)}.{rest}"
        level, slot = divmod(n, 2)
        part, _, tail = rest.partition(".")
        if tail.startswith("conv."):
            return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.{tail}"
        return f"output_blocks.{3 * level + slot}.{part}.{tail}"

    return {rename(name): tensor for name, tensor in compact.items()}


LAYOUTS: dict[str, tuple[str, Callable[[str], State]]] = {
    "single file": ("safetensors", single_file),
    "diffusers": ("diffusers", folder),
    "all-in-one GGUF": ("gguf", all_in_one),
    "its newer names": ("gguf", newer_all_in_one),
    "UNet GGUF, LDM": ("gguf", lambda member: folded(unet_to_ldm(unet(member)))),
    "UNet GGUF, diffusers": ("gguf", lambda member: folded(unet(member))),
    "stride 3": ("safetensors", lambda member: stride_3(unet_to_ldm(unet(member)))),
    "sgm": ("safetensors", sgm_file),
}
ONLY = {"stride 3": PRUNED, "sgm": tuple(n for n, m in MEMBERS.items() if m[0] is SD2)}


def cases() -> Iterator[tuple[str, str]]:
    """(member, layout) of every inventory that exists."""
    for member in MEMBERS:
        yield from ((member, layout) for layout in LAYOUTS if member in ONLY.get(layout, MEMBERS))


def detected(member: str, layout: str) -> Detection:
    file_format, build = LAYOUTS[layout]
    return detect(index_of(build(member), file_format))


def mapped(member: str, layout: str) -> int:
    """How many tensors of the inventory hold parameters; AssertionError unless all fit, and none
    is left.
    """
    found = detected(member, layout)
    family, title, _ = MEMBERS[member]
    assert (found.family, found.title) == (family, title)
    references = {"unet": unet(member), "vae": inventories.sd15_vae(), **encoders(family)}
    used: set[str] = set()
    for name, located in found.components.items():
        config = found.configs.get(name) or config_of(located, family)
        expected = _core.parameters(located.component.kind, config)
        native = {n: _essential(shape) for n, shape in expected}
        # ChatGLM's own names are fused; `test_text_inventories` compares them.
        reference = {n: _essential(t.shape) for n, t in references.get(name, {}).items()}
        assert not reference or native.keys() - reference.keys() <= {"text_projection.weight"}
        assert reference.items() <= native.items()
        bindings, left = bind(located, expected)
        assert left == ()
        used |= {binding.entry.name for binding in bindings}
    index = next(iter(found.components.values())).index
    left_over = [n for n in index.tensors if n not in used and not is_ignored(n)]
    assert [n for n in left_over if not _known(found, n)] == []
    return len(used)


def _essential(shape: Iterable[int]) -> tuple[int, ...]:
    """A folded 1x1 kernel is taken for the matrix that it is."""
    return tuple(size for size in shape if size != 1)


def _known(found: Detection, name: str) -> bool:
    """Below a component's prefix, and ignored there."""
    return any(
        name.startswith(part.prefix) and name[len(part.prefix) :] not in part.entries
        for part in found.components.values()
    )


def table() -> str:
    """The table of docs/model-files.md."""
    rows = [["model", *LAYOUTS], ["---"] * (len(LAYOUTS) + 1)]
    present = set(cases())
    for member in MEMBERS:
        counts = [
            str(mapped(member, layout)) if (member, layout) in present else "" for layout in LAYOUTS
        ]
        rows.append([member, *counts])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
