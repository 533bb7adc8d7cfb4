"""How adapter files name their tensors: the module that is changed, and the tensor's role in the change.

Sources: kohya-ss/sd-scripts (networks/lora.py), KohakuBlueleaf/LyCORIS, huggingface/peft, and the list of dialects
that diffusers' lora_conversion_utils.py and ComfyUI's comfy/lora.py read.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Role(NamedTuple):
    """What a tensor is for: the kind of change, and its part in it (csrc/adapters/change.h)."""

    kind: str
    part: str


SHARED: Final = "shared"
"""Kind of what several kinds read: alpha, a factor, a magnitude."""

_LOW_RANK: Final = {
    "up": (
        *(".lora_up.weight", ".lora.up.weight", "_lora.up.weight"),
        *(".lora_linear_layer.up.weight", ".lora_B.weight", ".lora_B", ".up.weight"),
    ),
    "down": (
        *(".lora_down.weight", ".lora.down.weight", "_lora.down.weight"),
        *(".lora_linear_layer.down.weight", ".lora_A.weight", ".lora_A", ".down.weight"),
    ),
    "mid": (".lora_mid.weight",),
    "bias": (".lora_B.bias", ".lora_up.bias"),
}
_HADAMARD: Final = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
_KRONECKER: Final = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")

_ENDINGS: Final[dict[str, Role]] = {
    **{end: Role("low_rank", part) for part, ends in _LOW_RANK.items() for end in ends},
    **{f".hada_{part}": Role("hadamard", part) for part in _HADAMARD},
    **{f".lokr_{part}": Role("kronecker", part) for part in _KRONECKER},
    **{f".{part}.weight": Role("glora", part) for part in ("a1", "a2", "b1", "b2")},
    ".oft_blocks": Role("rotate_rows", "blocks"),
    ".rescale": Role("rotate_rows", "rescale"),
    ".oft_R.weight": Role("rotate_columns", "skew"),
    ".diff": Role("add", "weight"),
    ".diff_b": Role("add", "bias"),
    ".w_norm": Role("add", "weight"),
    ".b_norm": Role("add", "bias"),
    ".set_weight": Role("replace", "weight"),
    ".alpha": Role(SHARED, "alpha"),
    "_lora.alpha": Role(SHARED, "alpha"),
    ".scale": Role(SHARED, "factor"),
    ".dora_scale": Role(SHARED, "magnitude"),
    ".lora_magnitude_vector": Role(SHARED, "row_magnitude"),
    ".lora_magnitude_vector.weight": Role(SHARED, "row_magnitude"),
}
_BY_LENGTH: Final = sorted(_ENDINGS, key=len, reverse=True)

# PEFT may keep the adapter's own name ("default") between the role and "weight".
_PEFT: Final = re.compile(
    r"\.(lora_A|lora_B|lora_magnitude_vector|oft_R)\.(?!weight$|bias$)[^.]+(\.weight|\.bias|)$"
)


def split_name(name: str) -> tuple[str, Role] | None:
    """The module that a tensor belongs to, as its file spells it, and the tensor's role; None for another tensor."""
    name = _PEFT.sub(r".\1\2", name)
    for ending in _BY_LENGTH:
        if name.endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)], _ENDINGS[ending]
    return None
