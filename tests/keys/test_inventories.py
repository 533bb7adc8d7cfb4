"""Full-size Stable Diffusion 1.5 in every published naming: every tensor maps, none is left, none
is missing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from sdengine.families import SD1
from sdengine.keys.ignored import is_ignored
from sdengine.loading import detect
from sdengine.loading.bind import bind
from tests import inventories
from tests.renaming import clip_to_openclip, unet_to_ldm, vae_to_ldm

Shapes = list[tuple[str, tuple[int, ...]]]


def shapes(state: inventories.State) -> Shapes:
    return [(name, tuple(tensor.shape)) for name, tensor in state.items()]


EXPECTED: dict[str, Callable[[], inventories.State]] = {
    "unet": inventories.sd15_unet,
    "vae": inventories.sd15_vae,
    "text_encoder": inventories.clip_l,
}


# ------------------------------ the tests' renaming against diffusers' importer
def test_unet_names_are_those_that_diffusers_imports() -> None:
    reference = inventories.sd15_unet()
    ldm = inventories.with_prefix("model.diffusion_model.", unet_to_ldm(reference))
    found = convert_ldm_unet_checkpoint(ldm, {**inventories.SD15_UNET, "layers_per_block": 2})
    assert found.keys() == reference.keys()
    assert all(found[name] is reference[name] for name in reference)


def test_vae_names_are_those_that_diffusers_imports() -> None:
    reference = inventories.sd15_vae()
    ldm = inventories.with_prefix("first_stage_model.", vae_to_ldm(reference))
    found = convert_ldm_vae_checkpoint(ldm, inventories.SD15_VAE)
    assert {n: tuple(t.shape) for n, t in found.items()} == dict(shapes(reference))


def test_open_clip_names_are_those_that_diffusers_imports() -> None:
    reference = inventories.clip_l()

    class TextModel:
        config = type("Config", (), {"hidden_size": 768, "num_hidden_layers": 12})
        dtype = torch.float32

    ldm = inventories.with_prefix("cond_stage_model.model.", clip_to_openclip(reference))
    found = convert_open_clip_checkpoint(TextModel, ldm, prefix="cond_stage_model.model.")
    extra = {"text_model.embeddings.position_ids", "text_projection.weight"}
    assert found.keys() - extra == reference.keys()


# ------------------------------ every layout maps wholly
WHOLE = {
    "LDM": (inventories.ldm_file, "safetensors"),
    "LDM, old CLIP": (inventories.old_ldm_file, "torch"),
    "diffusers": (inventories.diffusers_folder, "diffusers"),
    "diffusers, old VAE": (inventories.old_diffusers_folder, "diffusers"),
    "diffusers, transformers 5": (inventories.transformers_5_folder, "diffusers"),
    "all-in-one GGUF": (inventories.all_in_one_gguf, "gguf"),
    "newer stable-diffusion.cpp": (inventories.new_sd_cpp_gguf, "gguf"),
    "OpenCLIP": (inventories.open_clip_file, "safetensors"),
}


@pytest.mark.parametrize("layout", WHOLE)
def test_every_tensor_of_a_whole_model_maps(layout: str) -> None:
    build, file_format = WHOLE[layout]
    index = inventories.index_of(build(), file_format)
    found = detect(index)
    assert found.family is SD1
    assert found.missing == ()
    used: set[str] = set()
    for name, located in found.components.items():
        expected = shapes(EXPECTED[name]())
        if layout == "OpenCLIP" and name == "text_encoder":
            expected.append(("text_projection.weight", (768, 768)))
        bindings, left = bind(located, expected)
        assert [(b.name, b.entry.shape) for b in bindings] == expected
        assert left == ()
        used |= {binding.entry.name for binding in bindings}
    assert [
        n for n in index.tensors if n not in used and not is_ignored(n) and "logit" not in n
    ] == []


def fold(state: inventories.State) -> inventories.State:
    """city96's storage of tensors with awkward rows, without the metadata that undoes it."""
    return {
        name: torch.empty(t.numel() // 256, 256, device="meta")
        if t.ndim > 1 and t.numel() >= 512 and t.numel() % 256 == 0 and t.shape[-1] % 256
        else t
        for name, t in state.items()
    }


PARTS = {
    "city96, LDM names": ("unet", lambda: unet_to_ldm(inventories.sd15_unet())),
    "city96, diffusers names": ("unet", inventories.sd15_unet),
    "city96, shapes folded": ("unet", lambda: fold(unet_to_ldm(inventories.sd15_unet()))),
    "VAE, LDM names": ("vae", lambda: vae_to_ldm(inventories.sd15_vae())),
    "VAE, prefix": (
        "vae",
        lambda: inventories.with_prefix("first_stage_model.", vae_to_ldm(inventories.sd15_vae())),
    ),
    "VAE, short prefix": (
        "vae",
        lambda: inventories.with_prefix("vae.", vae_to_ldm(inventories.sd15_vae())),
    ),
    "VAE, diffusers names": ("vae", inventories.sd15_vae),
    "VAE, training leftovers": (
        "vae",
        lambda: {
            **vae_to_ldm(inventories.sd15_vae()),
            "loss.discriminator.main.0.weight": torch.empty(64, 3, 4, 4, device="meta"),
            "loss.logvar": torch.empty((), device="meta"),
        },
    ),
    "CLIP-L": ("text_encoder", inventories.clip_l),
    "CLIP-L, full CLIP": (
        "text_encoder",
        lambda: {
            **inventories.clip_l(),
            "vision_model.embeddings.class_embedding": torch.empty(1024, device="meta"),
            "visual_projection.weight": torch.empty(768, 1024, device="meta"),
            "logit_scale": torch.empty((), device="meta"),
        },
    ),
    "CLIP-L, OpenCLIP names": ("text_encoder", lambda: clip_to_openclip(inventories.clip_l())),
}


@pytest.mark.parametrize("part", PARTS)
def test_every_tensor_of_a_single_component_maps(part: str) -> None:
    name, build = PARTS[part]
    found = detect(inventories.index_of(build()))
    assert list(found.components) == [name]
    expected = shapes(EXPECTED[name]())
    bindings, left = bind(found.components[name], expected)
    assert [(b.name, b.entry.shape) for b in bindings] == expected
    assert left == ()


def test_parameters_come_from_the_right_tensors() -> None:
    """Where diffusers' importer passes a tensor on unchanged, ours binds the same one."""
    reference = inventories.sd15_unet()
    ldm = unet_to_ldm(reference)
    origin = {id(tensor): name for name, tensor in ldm.items()}
    found = detect(inventories.index_of(ldm)).components["unet"]
    bindings, _ = bind(found, shapes(reference))
    assert {b.name: b.entry.name for b in bindings} == {
        n: origin[id(t)] for n, t in reference.items()
    }


# ------------------------------ pruned networks
@pytest.mark.parametrize("stride", [2, 3], ids=["compact", "stride-3"])
@pytest.mark.parametrize(
    "config",
    [inventories.SMALL_SD_UNET, inventories.TINY_SD_UNET, inventories.SDXS_UNET],
    ids=["small-sd", "tiny-sd", "sdxs"],
)
def test_pruned_networks_in_both_numberings(config: dict[str, object], stride: int) -> None:
    reference = inventories.unet_state(config)
    ldm = renumbered(unet_to_ldm(reference)) if stride == 3 else unet_to_ldm(reference)
    found = detect(inventories.index_of(ldm))
    assert found.family is SD1
    bindings, left = bind(found.components["unet"], shapes(reference))
    assert len(bindings) == len(reference)
    assert left == ()


def renumbered(compact: inventories.State) -> inventories.State:
    """From the compact numbering to the one of diffusers' export script, which keeps stride 3.

    There an upsampler is alone in its block: part 1 of the first level, part 2 of the others.
    """

    def rename(name: str) -> str:
        kind, number, rest = name.split(".", 2)
        n = int(number)
        if kind == "input_blocks" and n:
            level, slot = divmod(n - 1, 2)
            n = 3 * level + (slot + 1 if slot == 0 else 3)
        elif kind == "output_blocks":
            level, slot = divmod(n, 2)
            n = 3 * level + slot
            tail = rest.partition(".")[2]
            if tail.startswith("conv."):
                n, rest = 3 * level + 2, f"{1 if level == 0 else 2}.{tail}"
        return f"{kind}.{n}.{rest}"

    blocks = ("input_blocks.", "output_blocks.")
    return {rename(n) if n.startswith(blocks) else n: t for n, t in compact.items()}
