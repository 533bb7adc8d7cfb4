"""Which type `convert` chooses for a parameter."""

from __future__ import annotations

import pytest

from sdengine.errors import ParameterError
from sdengine.formats import DTYPES
from sdengine.loading.weight_types import (
    DEFAULT_RULES,
    FALLBACKS,
    WEIGHT_TYPES,
    choose_type,
    parse_rules,
)

ATTENTION = "unet.down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q.weight"


@pytest.mark.parametrize("dtype", WEIGHT_TYPES)
def test_vectors_are_float32(dtype: str) -> None:
    assert choose_type("unet.conv_norm_out.bias", (320,), dtype).dtype == "f32"


@pytest.mark.parametrize("dtype", WEIGHT_TYPES)
def test_matrices_get_the_file_s_type(dtype: str) -> None:
    assert choose_type(ATTENTION, (1280, 1280), dtype).dtype == dtype


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("unet.conv_in.weight", (320, 4, 3, 3)),
        ("unet.conv_out.weight", (4, 320, 3, 3)),
        ("unet.time_embedding.linear_1.weight", (1280, 320)),
        ("unet.mid_block.resnets.0.time_emb_proj.weight", (1280, 1280)),
        ("text_encoder.text_model.embeddings.token_embedding.weight", (49408, 768)),
        ("vae.decoder.conv_in.weight", (512, 4, 3, 3)),
        ("vae.decoder.mid_block.attentions.0.to_q.weight", (512, 512)),
    ],
)
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q2_k"])
def test_sensitive_parameters_stay_f16_in_quantized_files(
    name: str, shape: tuple[int, ...], dtype: str
) -> None:
    assert choose_type(name, shape, dtype).dtype == "f16"


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_plain_files_are_plain_throughout(dtype: str) -> None:
    for name, shape in [
        ("unet.conv_in.weight", (320, 4, 3, 3)),
        ("vae.decoder.conv_in.weight", (512, 4, 3, 3)),
    ]:
        assert choose_type(name, shape, dtype).dtype == dtype


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q4_k", "q2_k"])
def test_kernels_keep_eight_bits(dtype: str) -> None:
    name = "unet.down_blocks.0.resnets.0.conv1.weight"
    assert choose_type(name, (320, 320, 3, 3), dtype).dtype == "q8_0"


@pytest.mark.parametrize(
    ("dtype", "row", "expected"),
    [
        ("q4_k", 768, "q4_k"),
        ("q4_k", 320, "q5_0"),
        ("q6_k", 320, "q8_0"),
        ("q2_k", 320, "q4_0"),
        ("q4_k", 40, "f16"),
        ("q4_0", 40, "f16"),
        ("q8_0", 40, "f16"),
    ],
)
def test_rows_that_do_not_fit_take_a_larger_type(dtype: str, row: int, expected: str) -> None:
    choice = choose_type(ATTENTION, (64, row), dtype)
    assert choice.dtype == expected
    assert choice.dtype == dtype or f"rows of {row}" in choice.reason


def test_every_quantized_type_has_a_way_out_that_is_not_smaller() -> None:
    def bits(dtype: str) -> float:
        return 8 * DTYPES[dtype].block_bytes / DTYPES[dtype].block_elements

    for dtype in WEIGHT_TYPES:
        if DTYPES[dtype].is_quantized:
            assert bits(FALLBACKS[dtype]) > bits(dtype)


def test_the_caller_s_rules_come_first_and_in_order() -> None:
    rules = parse_rules(
        {"unet.*attn1.*": "Q6_K", "unet.*": "f16", "kind:kernel": "q4_0", "kind:vector": "f16"}
    )
    assert choose_type(ATTENTION, (1280, 1280), "q4_0", rules).dtype == "q6_k"
    assert choose_type("unet.conv_in.weight", (320, 4, 3, 3), "q4_0", rules).dtype == "f16"
    assert choose_type("vae.decoder.conv_in.weight", (512, 32, 3, 3), "q4_0", rules).dtype == "q4_0"
    assert choose_type("vae.decoder.conv_in.bias", (512,), "f32", rules).dtype == "f16"


def test_no_rule_quantizes_vectors() -> None:
    for pattern in ("unet.*", "*", "kind:vector"):
        rules = parse_rules({pattern: "q4_0"})
        assert choose_type("unet.conv_norm_out.bias", (320,), "q8_0", rules).dtype == "f32"


def test_rules_as_text() -> None:
    assert parse_rules(["a.*=q8_0"]) == parse_rules({"a.*": "q8_0"}) == parse_rules("a.*=q8_0")
    assert parse_rules(None) == ()


@pytest.mark.parametrize(
    "rules", [["q8_0"], {"a": "q9_0"}, ["a=iq2_xs"], {"kind:conv": "f16"}, {"": "f16"}, {"a": 5}]
)
def test_bad_rules(rules: object) -> None:
    with pytest.raises(ParameterError):
        parse_rules(rules)  # type: ignore[arg-type]


def test_every_default_has_a_reason() -> None:
    assert all(len(rule.reason) > 20 for rule in DEFAULT_RULES)
