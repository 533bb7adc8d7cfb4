"""Which type `convert` stores a parameter in: rules as data, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sdengine.errors import ParameterError
from sdengine.formats import DTYPES

WEIGHT_TYPES: tuple[str, ...] = (
    "f32",
    "f16",
    "bf16",
    "q8_0",
    "q6_k",
    "q5_k",
    "q5_1",
    "q5_0",
    "q4_k",
    "q4_1",
    "q4_0",
    "q3_k",
    "q2_k",
)
"""What can be written, best first."""

_PLAIN = ("f32", "f16", "bf16")

FALLBACKS: Mapping[str, str] = {
    # The k types need rows of whole super-blocks of 256, the others of 32. As in llama.cpp
    # (`llama_tensor_get_type`), a row that does not fit takes the next larger 32-type, and at last
    # f16.
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "q4_0": "f16",
    "q4_1": "f16",
    "q5_0": "f16",
    "q5_1": "f16",
    "q8_0": "f16",
}
"""Type -> what to take where rows do not divide into its blocks."""

KINDS = ("vector", "kernel", "matrix")


@dataclass(frozen=True)
class TypeRule:
    """Parameters that match `pattern` are stored as `dtype`."""

    pattern: str
    """``kind:vector``, ``kind:kernel``, ``kind:matrix``, or an `fnmatch` pattern over
    ``<component>.<canonical name>``.
    """
    dtype: str
    reason: str
    always: bool = False
    """Also where the file as a whole is f32, f16 or bf16; else only where it is quantized."""

    def matches(self, name: str, kind: str) -> bool:
        """True if the rule is about the parameter `name` (component included).

        Vectors are never quantized, so that ``unet.*=q4_0`` means the matrices and kernels.
        """
        if kind == "vector" and DTYPES[self.dtype].is_quantized:
            return False
        if self.pattern.startswith("kind:"):
            return self.pattern == f"kind:{kind}"
        return fnmatchcase(name, self.pattern)


DEFAULT_RULES: tuple[TypeRule, ...] = (
    TypeRule(
        "kind:vector",
        "f32",
        "biases and norms are under 0.3 % of the bytes, and each value acts on a whole channel",
        always=True,
    ),
    TypeRule("vae.*", "f16", "the autoencoder's errors reach the picture without being denoised"),
    TypeRule("*_embedding.*", "f16", "embeddings are looked up, not averaged over a long sum"),
    TypeRule("*time_emb_proj.*", "f16", "the time embedding acts on every pixel at every step"),
    TypeRule("unet.conv_in.*", "f16", "few values, through which the whole picture passes"),
    TypeRule("unet.conv_out.*", "f16", "few values, through which the whole picture passes"),
    TypeRule("*encoder_hid_proj.*", "f16", "few values, through which the whole prompt passes"),
    TypeRule("*text_projection.*", "f16", "few values, through which the whole prompt passes"),
    TypeRule(
        "*relative_attention_bias.*", "f16", "few values, added to every score of every layer"
    ),
    # As in city96's files of SD3 and FLUX.1.
    TypeRule("transformer.*_embedder.*", "f16", "few values, through which everything passes"),
    TypeRule("transformer.img_in.*", "f16", "few values, through which the whole picture passes"),
    TypeRule("transformer.txt_in.*", "f16", "few values, through which the whole prompt passes"),
    TypeRule("transformer.pos_embed.*", "f16", "positions are looked up, not averaged over a sum"),
    TypeRule("transformer.norm_out.*", "f16", "few values, through which everything passes"),
    # PixArt's modulation, of all blocks and of each.
    TypeRule("transformer.adaln_single.*", "f16", "few values, which act on every token"),
    TypeRule("transformer.*scale_shift_table", "f16", "few values, which act on every token"),
    TypeRule("transformer.proj_out.*", "f16", "few values, through which everything passes"),
    # Hunyuan-DiT's pooled text and padding, and BERT's embeddings.
    TypeRule("transformer.*.pooler.*", "f16", "few values, through which the whole prompt passes"),
    TypeRule("transformer.text_embedding_padding", "f16", "looked up, not averaged over a sum"),
    TypeRule("*_embeddings.*", "f16", "embeddings are looked up, not averaged over a long sum"),
    TypeRule("kind:kernel", "q8_0", "convolutions lose far more than attention below 8 bits"),
)
"""Asked after the caller's rules; the first match decides. Everything else gets the file's type."""


@dataclass(frozen=True)
class Choice:
    """A parameter's type in the file and why."""

    dtype: str
    reason: str


def check_type(dtype: str) -> str:
    """The type's usual spelling. Raises ParameterError for one that cannot be written."""
    lowered = dtype.lower() if isinstance(dtype, str) else ""
    if lowered not in WEIGHT_TYPES:
        raise ParameterError(f"weight type {dtype!r}: choose one of {', '.join(WEIGHT_TYPES)}")
    return lowered


def parse_rules(rules: Mapping[str, str] | Sequence[str] | None) -> tuple[TypeRule, ...]:
    """The caller's rules: a mapping from pattern to type, or strings ``"pattern=type"``.

    Raises ParameterError for a rule without a type, or with one that cannot be written.
    """
    if rules is None:
        return ()
    if isinstance(rules, str):
        rules = [rules]
    pairs = (
        rules.items()
        if isinstance(rules, Mapping)
        else [rule.rpartition("=")[::2] for rule in rules]
    )
    parsed = []
    for pattern, dtype in pairs:
        if not pattern:
            raise ParameterError(
                f'rule {dtype!r}: expected "pattern=type", such as "unet.mid_block.*=q8_0"'
            )
        if pattern.startswith("kind:") and pattern[5:] not in KINDS:
            raise ParameterError(f"rule {pattern!r}: the kinds are {', '.join(KINDS)}")
        parsed.append(TypeRule(pattern, check_type(dtype), "the caller's rule", always=True))
    return tuple(parsed)


def kind_of(shape: Sequence[int]) -> str:
    """One of KINDS."""
    return KINDS[2] if len(shape) == 2 else KINDS[1] if len(shape) > 2 else KINDS[0]


def choose_type(
    name: str, shape: Sequence[int], weight_type: str, rules: Sequence[TypeRule] = ()
) -> Choice:
    """The type of the parameter `name` (component included) in a file of `weight_type`."""
    kind = kind_of(shape)
    quantized = weight_type not in _PLAIN
    choice = Choice(weight_type, "the file's type")
    for rule in (*rules, *DEFAULT_RULES):
        if rule.matches(name, kind) and (rule.always or quantized):
            choice = Choice(rule.dtype, rule.reason)
            break
    row = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    while row % DTYPES[choice.dtype].block_elements:
        wanted = choice.dtype
        choice = Choice(
            FALLBACKS[wanted], f"rows of {row} values do not divide into blocks of {wanted}"
        )
    return choice
