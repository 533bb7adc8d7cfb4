"""For which family an adapter was made, as far as its names and widths tell: to explain one that does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

# (pattern over all names, title); the first that is found wins. Names are those of the families' own networks.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"double_blocks|single_transformer_blocks|single_blocks", "FLUX"),
    (r"joint_blocks", "Stable Diffusion 3"),
    (r"img_mlp|txt_mlp", "Qwen-Image"),
    (r"lora_prior_", "Stable Cascade"),
    (r"transformer_blocks.\d+.(norm1_context|ff_context|attn.add_q_proj)", "Stable Diffusion 3"),
    (r"adaln_single|caption_projection", "PixArt"),
    (r"blocks.\d+.cross_attn", "Wan"),
    (r"noise_refiner|context_refiner", "Lumina 2 or Z-Image"),
)
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
        if _CONTEXT.search(name) and len(shape) >= 2 and re.search(r"down|lora_A|_1_b|w1_b", name):
            return _WIDTHS.get(shape[1])
    return None
