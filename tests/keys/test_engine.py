"""The engine behind the key tables: templates, longest match, parts, and both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdengine.keys import KeyTable, NameMap, Rule, autoencoder_kl, clip_text, nearest, unet
from sdengine.keys.engine import count_at, numbers_at
from sdengine.keys.templates import assignments, expand, variable_names

TABLE = KeyTable(
    name="test",
    rules=(
        Rule("block.{i}.", "layers.{2*i+1}."),
        Rule("block.{i}.norm.", "layers.{2*i+1}.n."),
        Rule("q.{i}", "fused.{i}", part=(0, 2)),
        Rule("k.{i}", "fused.{i}", part=(1, 2)),
        Rule("out", "tuo", transpose=True),
    ),
    markers=("tuo",),
    ignored=("junk.*", "*ids"),
)
MAP = NameMap(TABLE, {"i": range(3)})


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("a.{i}.b", {"i": 7}, "a.7.b"),
        ("{3*i+j+1}", {"i": 2, "j": 1}, "8"),
        ("{top-i}", {"top": 3, "i": 1}, "2"),
        ("{s*i+s-1}.{i}", {"s": 3, "i": 1}, "5.1"),
        ("plain", {}, "plain"),
    ],
)
def test_expressions(template: str, values: dict[str, int], expected: str) -> None:
    assert expand(template, values) == expected
    assert variable_names(template) == set(values)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_expressions_are_arithmetic(a: int, b: int, c: int) -> None:
    values = {"a": a, "b": b, "c": c}
    assert expand("{a*b-c+2*a*c-7}", values) == str(a * b - c + 2 * a * c - 7)


def test_templates_run_no_code() -> None:
    with pytest.raises(KeyError):
        expand("{__import__('os')}", {})


def test_assignments_are_all_combinations() -> None:
    found = list(assignments({"i", "j"}, {"i": [0, 1], "j": [5], "unused": range(9)}))
    assert found == [{"i": 0, "j": 5}, {"i": 1, "j": 5}]


def test_the_longest_match_wins_both_ways() -> None:
    assert [m.name for m in MAP.to_file("block.2.norm.weight")] == ["layers.5.n.weight"]
    assert [m.name for m in MAP.to_canonical("layers.5.n.weight")] == ["block.2.norm.weight"]
    assert [m.name for m in MAP.to_file("block.2.conv.weight")] == ["layers.5.conv.weight"]


def test_a_fused_tensor_has_several_parameters() -> None:
    assert [(m.name, m.part) for m in MAP.to_canonical("fused.1")] == [
        ("q.1", (0, 2)),
        ("k.1", (1, 2)),
    ]
    assert [(m.name, m.part) for m in MAP.to_file("k.1")] == [("fused.1", (1, 2))]


def test_whole_names_match_whole_names_only() -> None:
    assert MAP.to_canonical("tuo")[0].transpose
    assert MAP.to_canonical("tuo.weight") == []
    assert MAP.to_canonical("layers.2.x") == []  # even numbers are nobody's
    assert MAP.to_canonical("layers.7.x") == []  # out of range


def test_ignored_names() -> None:
    assert TABLE.ignores("junk.a.b")
    assert TABLE.ignores("embeddings.position_ids")
    assert not TABLE.ignores("block.0.norm.weight")


def test_counting() -> None:
    names = ["x.0.a", "x.1.a", "x.3.a", "y.0", "x.²", "x.a", "x.12345678901.a"]
    assert numbers_at(names, "x.") == [0, 1, 3, 12345678901]
    assert count_at(names, "x.") == 2
    assert count_at(names, "z.") == 0


def test_nearest_names() -> None:
    names = ["middle_block.0.in_layer.2.weight", "out.2.weight", "zzz"]
    assert nearest("middle_block.0.in_layers.2.weight", names) == [names[0]]
    assert nearest("qqqqqqqq", names) == []


UNET_CONFIG = {
    "layers_per_block": [2, 2, 2],
    "up_transformer_layers": [[0, 0, 0], [1, 1, 1], [1, 1, 1]],
}


@pytest.mark.parametrize(
    ("table", "config", "canonical", "file"),
    [
        (
            unet.LDM,
            UNET_CONFIG,
            "down_blocks.1.resnets.0.conv1.bias",
            "input_blocks.4.0.in_layers.2.bias",
        ),
        (
            unet.LDM,
            UNET_CONFIG,
            "down_blocks.1.downsamplers.0.conv.bias",
            "input_blocks.6.0.op.bias",
        ),
        (
            unet.LDM,
            UNET_CONFIG,
            "mid_block.resnets.1.norm1.bias",
            "middle_block.2.in_layers.0.bias",
        ),
        (
            unet.LDM,
            UNET_CONFIG,
            "up_blocks.0.upsamplers.0.conv.bias",
            "output_blocks.2.1.conv.bias",
        ),
        (
            unet.LDM,
            UNET_CONFIG,
            "up_blocks.1.upsamplers.0.conv.bias",
            "output_blocks.5.2.conv.bias",
        ),
        (
            unet.LDM,
            UNET_CONFIG,
            "up_blocks.2.attentions.2.norm.bias",
            "output_blocks.8.1.norm.bias",
        ),
        (unet.LDM, UNET_CONFIG, "conv_norm_out.weight", "out.0.weight"),
        (
            autoencoder_kl.LDM,
            {"block_out_channels": [1, 1, 1], "layers_per_block": 2},
            "decoder.up_blocks.0.resnets.2.conv_shortcut.bias",
            "decoder.up.2.block.2.nin_shortcut.bias",
        ),
    ],
)
def test_published_names(
    table: KeyTable, config: dict[str, object], canonical: str, file: str
) -> None:
    names = NameMap.of_network(table, config)
    assert [m.name for m in names.to_file(canonical)] == [file]
    assert [m.name for m in names.to_canonical(file)] == [canonical]


def test_open_clip_fuses_and_transposes() -> None:
    names = NameMap.of_file(clip_text.OPEN_CLIP, ["transformer.resblocks.0.ln_1.weight"])
    fused = names.to_canonical("transformer.resblocks.0.attn.in_proj_bias")
    prefix = "text_model.encoder.layers.0.self_attn"
    assert [m.name for m in fused] == [f"{prefix}.{x}_proj.bias" for x in "qkv"]
    assert [m.part for m in fused] == [(0, 3), (1, 3), (2, 3)]
    assert names.to_file("text_projection.weight")[0].transpose
