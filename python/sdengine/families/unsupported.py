"""What sdengine recognises but cannot run, as ordered data: the first match names the file.

The tests are those of ComfyUI's `model_detection.py`, stable-diffusion.cpp's loader and diffusers'
`single_file_utils.py`, written down as tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sdengine.families.family import Config, Shape

Sizes = tuple[int, ...]
"""A shape, torch order."""


class TensorNames:
    """The tensors of a file, to be asked for by the end of a name."""

    def __init__(self, shapes: Mapping[str, Sizes]) -> None:
        self._shapes = shapes
        self._ends: dict[str, Sizes] = {}
        for name, shape in shapes.items():
            for end in _ends(name):
                self._ends.setdefault(end, shape)

    def find(self, pattern: str) -> Sizes | None:
        """The shape of a tensor whose name, or what follows a prefix of it, is `pattern`.

        A pattern with ``*`` or ``[...]`` is matched as `fnmatch` does.
        """
        if "*" not in pattern:
            return self._ends.get(pattern)
        # A leading star takes in every prefix, so that whole names are enough.
        names = self._shapes if pattern.startswith("*") else self._ends
        return next((s for name, s in names.items() if fnmatchcase(name, pattern)), None)


def _ends(name: str) -> Iterator[str]:
    yield name
    for index, letter in enumerate(name):
        if letter in "./":
            yield name[index + 1 :]


@dataclass(frozen=True)
class Signature:
    """A test of tensor names and sizes. Names are patterns that may follow any prefix."""

    title: str
    present: tuple[str, ...]
    """Every one of these is there ..."""
    absent: tuple[str, ...] = ()
    """... and none of these."""
    sizes: tuple[tuple[str, int, int], ...] = ()
    """(name, axis, size) that must hold."""
    advice: str = ""

    def fits(self, names: TensorNames) -> bool:
        """True if names and sizes are as described."""
        return (
            all(names.find(name) is not None for name in self.present)
            and all(names.find(name) is None for name in self.absent)
            and all(_has_size(names.find(name), axis, size) for name, axis, size in self.sizes)
        )


def _has_size(shape: Sizes | None, axis: int, size: int) -> bool:
    return shape is not None and axis < len(shape) and shape[axis] == size


ADAPTER_ADVICE = (
    "It changes a model and is none itself: load the base model, and give this file with it."
)

UPSCALER_ADVICE = "It makes pictures larger: load it with sdengine.load_upscaler."
CONTROL_ADVICE = "Load the base model, and give this file as controlnets=[...]."
IMAGE_PROMPT_ADVICE = "Load the base model, and give this file as ip_adapter=..."

ADDITIONS: tuple[Signature, ...] = (
    *(
        Signature("a LoRA or a related adapter", (suffix,), advice=ADAPTER_ADVICE)
        for suffix in (
            "*.lora_up.weight",
            "*.lora_down.weight",
            "*.lora_A.weight",
            "*.lora_A.default.weight",
            "*_lora.up.weight",
            "*.lora.up.weight",
            "*.lora_linear_layer.up.weight",
            "*.hada_w1_a",
            "*.lokr_w1",
            "*.lokr_w1_a",
            "*.oft_blocks",
        )
    ),
    *(
        Signature("a ControlNet", (name,), advice=CONTROL_ADVICE)
        for name in (
            "controlnet_cond_embedding.conv_in.weight",
            "controlnet_blocks.0.weight",
            "control_model.zero_convs.0.0.weight",
            "zero_convs.0.0.weight",
            "lora_controlnet",
            "after_proj_list.18.bias",
            "control_blocks.0.after_proj.weight",
        )
    ),
    *(
        Signature("a T2I adapter", (name,), advice=CONTROL_ADVICE)
        for name in (
            "adapter.body.0.resnets.0.block1.weight",
            "body.0.block1.weight",
            "body.0.body.0.block1.weight",
        )
    ),
    Signature("an IP-Adapter", ("ip_adapter.1.to_k_ip.weight",), advice=IMAGE_PROMPT_ADVICE),
    Signature("FLUX.1 Redux", ("redux_up.weight",), advice=IMAGE_PROMPT_ADVICE),
    Signature(
        "a motion module (AnimateDiff)", ("*motion_modules.0.temporal_transformer.norm.weight",)
    ),
    *(
        Signature("an upscaler (ESRGAN)", names, advice=UPSCALER_ADVICE)
        for names in (
            ("conv_first.weight", "body.0.rdb1.conv1.weight"),
            ("conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight"),
            ("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"),
        )
    ),
    Signature(
        "an upscaler (SwinIR)",
        ("layers.0.residual_group.blocks.0.attn.relative_position_bias_table",),
        advice=UPSCALER_ADVICE,
    ),
    Signature(
        "an upscaler (Real-ESRGAN compact)",
        ("body.0.weight", "body.1.weight"),
        ("conv_in.weight",),
        advice=UPSCALER_ADVICE,
    ),
    Signature("a textual inversion embedding", ("emb_params",), advice=ADAPTER_ADVICE),
    Signature("a textual inversion embedding", ("string_to_param.[*]",), advice=ADAPTER_ADVICE),
    Signature("a textual inversion embedding (SDXL)", ("clip_l", "clip_g"), advice=ADAPTER_ADVICE),
)
"""Files that are no model; asked first."""

DENOISERS: tuple[Signature, ...] = (
    Signature("Stable Cascade", ("clf.1.weight",)),
    Signature("AuraFlow", ("double_layers.0.attn.w1q.weight",)),
    Signature("AuraFlow", ("joint_transformer_blocks.0.attn.add_k_proj.weight",)),
    Signature("HunyuanVideo", ("txt_in.individual_token_refiner.blocks.0.norm1.weight",)),
    Signature("FLUX.2", ("double_stream_modulation_img.lin.weight",)),
    Signature("FLUX.2", ("double_stream_modulation_img.linear.weight",)),
    Signature("Ovis-Image", ("double_blocks.0.img_mlp.gate_proj.*",)),
    Signature("Ovis-Image", ("context_embedder_norm.weight", "single_transformer_blocks.*")),
    Signature(
        "LongCat-Image",
        ("txt_in.weight", "double_blocks.0.img_attn.qkv.weight"),
        ("vector_in.in_layer.weight",),
        sizes=(("txt_in.weight", 1, 3584),),
    ),
    Signature(
        "LongCat-Image",
        ("time_embed.timestep_embedder.linear_1.weight", "single_transformer_blocks.*"),
        sizes=(("context_embedder.weight", 1, 3584),),
    ),
    Signature(
        "BRIA 3", ("time_embed.timestep_embedder.linear_1.weight", "single_transformer_blocks.*")
    ),
    Signature("Chroma", ("distilled_guidance_layer.*",)),
    Signature("PixArt with compressed keys", ("t_block.1.weight", "*.attn.sr.weight")),
    Signature("PixArt with normed heads", ("t_block.1.weight", "*.attn.q_norm.weight")),
    Signature(
        "LTX-Video",
        ("adaln_single.emb.timestep_embedder.linear_1.bias",),
        ("pos_embed.proj.bias",),
    ),
    Signature("Sana", ("caption_norm.weight", "time_embed.emb.timestep_embedder.linear_1.bias")),
    Signature(
        "LTX-Video",
        (
            "time_embed.emb.timestep_embedder.linear_1.bias",
            "transformer_blocks.0.scale_shift_table",
        ),
    ),
    Signature(
        "Z-Image",
        ("cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight"),
        sizes=(("cap_embedder.1.weight", 0, 3840),),
    ),
    Signature("Z-Image", ("all_x_embedder.2-1.weight",)),
    Signature("Lumina-Next", ("cap_embedder.0.weight", "layers.0.attention.wk_y.weight")),
    Signature("HiDream-I1", ("caption_projection.0.linear.weight",)),
    Signature("OmniGen2", ("ref_image_patch_embedder.*",)),
    Signature("Lumina-Next", ("time_caption_embed.*", "pad_token")),
    Signature(
        "OmniGen", ("llm.layers.0.self_attn.qkv_proj.weight", "input_x_embedder.proj.weight")
    ),
    Signature("OmniGen", ("patch_embedding.input_image_proj.weight",)),
    Signature(
        "Qwen-Image-Layered",
        ("txt_norm.weight", "time_text_embed.addition_t_embedding.weight"),
    ),
    Signature("Wan video", ("blocks.0.self_attn.norm_q.weight", "head.modulation")),
    Signature("Stable Video Diffusion", ("middle_block.0.time_stack.in_layers.0.weight",)),
    Signature("Stable Video Diffusion", ("mid_block.attentions.0.temporal_transformer_blocks.*",)),
    Signature("the Stable Diffusion x4 upscaler", ("label_emb.weight",)),
    Signature("unCLIP", ("class_embedding.linear_1.weight",)),
)
"""Models whose denoiser is another network."""


@dataclass(frozen=True)
class UnsupportedUnet:
    """A UNet that needs what its family would provide."""

    title: str
    shape: Shape

    def fits(self, config: Config) -> bool:
        """True if the hyper-parameters are this model's."""
        return self.shape.fits(config)


UNETS: tuple[UnsupportedUnet, ...] = (
    # One resnet per level of an SDXL-like UNet: a network of its own training, not tested here.
    UnsupportedUnet(
        "KOALA (pruned SDXL)", Shape({"class_embed_dim": (2816,), "layers_per_block": ([1, 1, 1],)})
    ),
    UnsupportedUnet(
        "unCLIP (Stable Diffusion 2.x)",
        Shape({"class_embed_dim": (1536, 2048), "cross_attention_dim": (1024,)}),
    ),
)
"""UNets by hyper-parameters; asked before the families."""
