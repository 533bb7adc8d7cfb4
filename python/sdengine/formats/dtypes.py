"""The element types a weight can have in a file, and how many bytes they take.

Plain types store one element per block. ggml's quantized types store a fixed number of elements in
a block of a fixed number of bytes; the blocks run along the last torch axis. Sizes and type ids are
those of ggml 0.25 (``ggml.h``, ``ggml-common.h``). Left out on purpose: ``q8_1`` and ``q8_k``,
which ggml uses only for intermediate results and cannot turn back into floats.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class DType(NamedTuple):
    """How one element type is stored."""

    block_elements: int
    """Elements per block (1 for plain types)."""
    block_bytes: int
    """Bytes per block."""
    ggml_type: int | None
    """ggml's type id, or None where ggml has no such type."""

    @property
    def is_quantized(self) -> bool:
        """True when several elements share one block."""
        return self.block_elements > 1

    def nbytes(self, elements: int) -> int:
        """Bytes of `elements` contiguous elements, which must be a whole number of blocks."""
        blocks, rest = divmod(elements, self.block_elements)
        if rest:
            raise ValueError(f"{elements} elements are not a multiple of {self.block_elements}")
        return blocks * self.block_bytes


DTYPES: Final[dict[str, DType]] = {
    # plain types
    "f64": DType(1, 8, 28),
    "f32": DType(1, 4, 0),
    "f16": DType(1, 2, 1),
    "bf16": DType(1, 2, 30),
    "f8_e4m3": DType(1, 1, None),
    "f8_e5m2": DType(1, 1, None),
    "i64": DType(1, 8, 27),
    "i32": DType(1, 4, 26),
    "i16": DType(1, 2, 25),
    "i8": DType(1, 1, 24),
    "u8": DType(1, 1, None),
    "bool": DType(1, 1, None),
    # one scale (and perhaps one minimum) per 32 elements
    "q4_0": DType(32, 18, 2),
    "q4_1": DType(32, 20, 3),
    "q5_0": DType(32, 22, 6),
    "q5_1": DType(32, 24, 7),
    "q8_0": DType(32, 34, 8),
    # "k" types: super-blocks of 256 elements
    "q2_k": DType(256, 84, 10),
    "q3_k": DType(256, 110, 11),
    "q4_k": DType(256, 144, 12),
    "q5_k": DType(256, 176, 13),
    "q6_k": DType(256, 210, 14),
    # codebook types
    "iq2_xxs": DType(256, 66, 16),
    "iq2_xs": DType(256, 74, 17),
    "iq3_xxs": DType(256, 98, 18),
    "iq1_s": DType(256, 50, 19),
    "iq4_nl": DType(32, 18, 20),
    "iq3_s": DType(256, 110, 21),
    "iq2_s": DType(256, 82, 22),
    "iq4_xs": DType(256, 136, 23),
    "iq1_m": DType(256, 56, 29),
    # ternary and one- or two-bit types
    "tq1_0": DType(256, 54, 34),
    "tq2_0": DType(256, 66, 35),
    "q1_0": DType(128, 18, 41),
    "q2_0": DType(64, 18, 42),
    # 4-bit floating point with shared scales
    "mxfp4": DType(32, 17, 39),
    "nvfp4": DType(64, 36, 40),
}
"""dtype name -> (block elements, block bytes, ggml type id or None)."""

GGML_TYPE_NAMES: Final[dict[int, str]] = {
    dtype.ggml_type: name for name, dtype in DTYPES.items() if dtype.ggml_type is not None
}
"""ggml type id -> dtype name."""
