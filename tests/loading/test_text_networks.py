"""Hyper-parameters of text encoders that no model can have: they may come from a hostile file."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sdengine.errors import WeightsError
from sdengine.loading.networks import NETWORKS

DECODER: dict[str, Any] = {
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "query_scale": 128**-0.5,
    "activation": "silu",
    "eps": 1e-5,
    "norm_plus_one": False,
    "rope_theta": 5e5,
    "rope_fraction": 1.0,
    "rope_interleaved": False,
    "rope_sections": [16, 24, 24],
    "rope_factor": 8.0,
    "rope_low": 1.0,
    "rope_high": 4.0,
    "rope_trained": 8192,
    "softcap": 0.0,
    "embedding_scale": 1.0,
    "max_positions": 4096,
    "padding_sees_all": False,
}
T5: dict[str, Any] = {
    "heads": 64,
    "head_dim": 64,
    "buckets": 32,
    "eps": 1e-6,
    "max_distance": 128,
    "max_positions": 4096,
}


def test_usual_values_and_every_untold_one_is_checked_here() -> None:
    for kind, config in (("decoder_text", DECODER), ("t5_text", T5)):
        NETWORKS[kind].check(config)
        assert NETWORKS[kind].untold == config.keys()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kv_heads": 0}, "kv_heads = 0"),
        ({"kv_heads": 5}, "kv_heads = 5 does not divide 32"),
        ({"heads": -32, "head_dim": -128}, "heads = -32|expected"),
        ({"head_dim": 1}, "one pair at least|rotary"),
        ({"head_dim": 127}, "rotary pairs"),
        ({"rope_fraction": 0.0}, "rope_fraction = 0.0"),
        ({"rope_fraction": 1.5}, "rope_fraction = 1.5"),
        ({"rope_theta": 0.0}, "rope_theta = 0.0"),
        ({"rope_theta": math.inf}, "rope_theta = inf"),
        ({"rope_factor": 0.0}, "rope_factor = 0.0"),
        ({"rope_low": 4.0}, "rope_low = 4.0"),
        ({"rope_trained": 0}, "rope_trained = 0"),
        ({"eps": 0.0}, "eps = 0.0"),
        ({"eps": math.nan}, "eps = nan"),
        ({"rope_sections": [16, -24, 24]}, r"rope_sections = \[16, -24, 24\]"),
        ({"query_scale": 0.0}, "query_scale = 0.0"),
        ({"softcap": -1.0}, "softcap = -1.0"),
        ({"embedding_scale": 0.0}, "embedding_scale = 0.0"),
        ({"max_positions": 0}, "max_positions = 0"),
        ({"max_positions": 1 << 30}, "max_positions = 1073741824"),
        ({"norm_plus_one": True, "rope_interleaved": True}, "the first Gemma under llama.cpp's"),
        ({"activation": "relu"}, "activation = 'relu'; expected silu or gelu_tanh"),
    ],
    ids=str,
)
def test_impossible_decoders(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        NETWORKS["decoder_text"].check({**DECODER, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"buckets": 0}, "buckets = 0"),
        ({"buckets": 30}, "buckets"),
        ({"heads": 0}, "heads = 0"),
        ({"head_dim": -64}, "head_dim = -64"),
        ({"max_distance": 8}, "max_distance = 8"),
        ({"max_positions": 0}, "max_positions = 0"),
        ({"eps": 1.0}, "eps = 1.0"),
    ],
    ids=str,
)
def test_impossible_t5(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        NETWORKS["t5_text"].check({**T5, **changed})
