"""For which family an adapter was made, as far as its names and widths tell: to explain one that does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

# (pattern over all names, title); the first that is found wins. Names are those of the families' own networks, with
# dots or underscores between them.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"single_transformer_blocks", "FLUX"),
    (r"img_mlp[._]net|txt_mlp[._]net|img_mod[._]1|txt_mod[._]1", "Qwen-Image"),
    (r"double_blocks|single_blocks", "FLUX"),
    (r"joint_blocks", "Stable Diffusion 3"),
    (r"lora_prior_", "Stable Cascade"),
    (r"noise_refiner|context_refiner", "Lumina 2 or Z-Image"),
    (r"Wqkv|mlp_t5|[._]skip_linear|skip_norm", "Hunyuan-DiT"),
    (r"adaln_single|caption_projection|y_embedder[._]y_proj", "PixArt"),
    (r"blocks[._]\d+[._]cross_attn[._]", "Wan"),
)
# The joint attention of Stable Diffusion 3, FLUX and Qwen-Image, which diffusers names alike; the width tells.
_JOINT = re.compile(
    r"transformer_blocks[._]\d+[._](norm1_context|ff_context|attn[._](add_[qkv]_proj|to_[qkv]))"
)
_JOINT_WIDTHS = {
    1536: "Stable Diffusion 3",
    2432: "Stable Diffusion 3.5 Large",
    3072: "FLUX or Qwen-Image",
}
# Width of the text that the denoiser's cross-attention reads.
_CONTEXT = re.compile(r"attn2_?\.?(?:processor\.)?to_k")
_WIDTHS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "the SDXL refiner",
    2048: "Stable Diffusion XL",
}


def seems_to_be_for(shapes: Shapes) -> str | None:
    """The family that tensors of these names and shapes were made for; None if they do not tell."""
    for pattern, title in _NAMES:
        if any(re.search(pattern, name) for name in shapes):
            return title
    for name, shape in shapes.items():
        if _JOINT.search(name) and len(shape) == 2 and re.search(r"down|lora_A", name):
            return _JOINT_WIDTHS.get(shape[1], "a transformer such as Stable Diffusion 3")
        if _CONTEXT.search(name) and len(shape) >= 2 and re.search(r"down|lora_A|_1_b|w1_b", name):
            return _WIDTHS.get(shape[1])
    return None
