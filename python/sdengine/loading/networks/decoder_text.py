"""The hyper-parameters of a decoder language model that reads prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sdengine.errors import WeightsError
from sdengine.families import Family
from sdengine.loading.networks.checks import check_between, check_divides
from sdengine.loading.networks.json_config import Json, check_facts, check_options, integer, number
from sdengine.loading.networks.shapes import Shapes

# Longer prompts than any family takes. Up to here Gemma 2's sliding window of 4096 changes nothing.
_LONGEST = 4096
_GEMMA_WORDS = 256000  # google/gemma-2b, google/gemma-2-2b
_CHATGLM_WORDS = 65024  # THUDM/chatglm3-6b-base
_LLAMA_3_WORDS = 128256  # meta-llama/Llama-3.1-8B


def from_shapes(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The config of the model with these parameters; what no shape tells as its relatives have it."""
    width = shapes.length("norm.weight")
    layer = "layers.0."
    queries = shapes.columns(f"{layer}self_attn.o_proj.weight", width)
    keys = shapes.columns(f"{layer}self_attn.k_proj.weight", width)
    if keys > queries:  # the fused q, k and v, see Source.shape
        keys, rest = divmod(keys - queries, 2)
        if rest or not keys:
            raise WeightsError(
                f"a fused attention has {queries + 2 * keys + rest} rows, {queries} of them for"
                " queries; expected equally many for keys and values. Is the file damaged?"
            )
    config = {
        "vocab_size": shapes.columns("embed_tokens.weight", width),
        "hidden_size": width,
        "intermediate_size": shapes.columns(f"{layer}mlp.down_proj.weight", width),
        "layers": shapes.count("layers."),
        "qkv_bias": f"{layer}self_attn.q_proj.bias" in shapes,
        "output_bias": f"{layer}self_attn.o_proj.bias" in shapes,
        "qk_norm": f"{layer}self_attn.q_norm.weight" in shapes,
        "post_norms": f"{layer}post_feedforward_layernorm.weight" in shapes,
    }
    config.update(_usual(config))
    if config["qk_norm"]:
        config["head_dim"] = shapes.length(f"{layer}self_attn.q_norm.weight")
    # Of the usual width if that divides them; a config.json tells the others.
    return _with_heads(config, queries, keys, math.gcd(config["head_dim"], queries, keys))


def _usual(config: Mapping[str, Any]) -> dict[str, Any]:
    """What no shape tells, as the published models of this kind have it (their config.json)."""
    usual: dict[str, Any] = {
        "head_dim": 128,
        "activation": "silu",
        "eps": 1e-6,
        "norm_plus_one": False,
        "rope_theta": 1e6,  # Qwen2.5, Qwen3
        "rope_fraction": 1.0,
        "rope_interleaved": False,
        "rope_factor": 1.0,
        "rope_low": 1.0,
        "rope_high": 4.0,
        "rope_trained": 8192,
        "softcap": 0.0,
        "embedding_scale": 1.0,
        "max_positions": _LONGEST,
        "padding_sees_all": False,
    }
    if config["post_norms"] or config["vocab_size"] == _GEMMA_WORDS:
        return usual | {
            "head_dim": 256,
            "activation": "gelu_tanh",
            "norm_plus_one": True,
            "rope_theta": 1e4,
            "softcap": 50.0 if config["post_norms"] else 0.0,
            "embedding_scale": math.sqrt(config["hidden_size"]),
        }
    if config["vocab_size"] == _CHATGLM_WORDS:
        return usual | {"eps": 1e-5, "rope_theta": 1e4}
    if not config["qkv_bias"] and not config["qk_norm"]:
        scaled = config["vocab_size"] == _LLAMA_3_WORDS
        return usual | {"eps": 1e-5, "rope_theta": 5e5, "rope_factor": 8.0 if scaled else 1.0}
    return usual


def _with_heads(config: Mapping[str, Any], queries: int, keys: int, width: int) -> dict[str, Any]:
    """The config with heads of this width."""
    return {
        **config,
        "heads": queries // width,
        "kv_heads": keys // width,
        "head_dim": width,
        "query_scale": width**-0.5,
        "rope_sections": _sections(width // 2),
    }


def _sections(pairs: int) -> list[int]:
    """Pairs of a head that time, row and column of a picture's token turn: 16, 24, 24 (Qwen2.5-VL)."""
    row = 3 * pairs // 8
    return [pairs // 4, row, pairs - pairs // 4 - row]


UNTOLD = frozenset(
    {
        "heads",
        "kv_heads",
        "head_dim",
        "query_scale",
        "activation",
        "eps",
        "norm_plus_one",
        "rope_theta",
        "rope_fraction",
        "rope_interleaved",
        "rope_sections",
        "rope_factor",
        "rope_low",
        "rope_high",
        "rope_trained",
        "softcap",
        "embedding_scale",
        "max_positions",
        "padding_sees_all",
    }
)
"""Hyper-parameters that no shape tells."""

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_MODELS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen2_vl",
    "qwen2_vl_text",
    "qwen2_5_vl",
    "qwen2_5_vl_text",
    "qwen3",
    "gemma",
    "gemma2",
    "chatglm",
)


def refine(config: dict[str, Any], json: Json) -> dict[str, Any]:
    """The config with what only config.json tells. Raises WeightsError for a contradiction."""
    text = json.get("text_config")
    json = text if isinstance(text, dict) else json  # a model that sees pictures nests its words
    check_options(json, {"model_type": _MODELS})
    if json.get("model_type") == "chatglm" or "padded_vocab_size" in json:
        return _refine_chatglm(config, json)
    check_facts(
        json,
        {
            "vocab_size": config["vocab_size"],
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"],
            "num_hidden_layers": config["layers"],
        },
    )
    heads = integer(json, "num_attention_heads", config["heads"])
    queries, usual_width = config["heads"] * config["head_dim"], config["head_dim"]
    if heads and queries % heads == 0:
        usual_width = queries // heads
    config = _heads_of(config, json, usual_width, _HEAD_NAMES)
    gemma = str(json.get("model_type", "")).startswith("gemma") or config["norm_plus_one"]
    scalar = number(json, "query_pre_attn_scalar", float(config["head_dim"]))
    check_between("query_pre_attn_scalar", scalar, 0, math.inf)
    return {
        **_rotary(config, json),
        "activation": _activation(json, gemma, config["activation"]),
        "eps": number(json, "rms_norm_eps", config["eps"]),
        "norm_plus_one": gemma,
        "embedding_scale": math.sqrt(config["hidden_size"]) if gemma else 1.0,
        "query_scale": scalar**-0.5,
        # A null turns it off.
        "softcap": number(json, "attn_logit_softcapping", 0.0) if gemma else 0.0,
        "max_positions": _longest(json, "max_position_embeddings", "sliding_window"),
    }


def _activation(json: Json, gemma: bool, otherwise: str) -> str:
    if gemma:  # the first Gemma's config says gelu and means its tanh form
        return "gelu_tanh"
    name = json.get("hidden_act")
    check_options(json, {"hidden_act": (None, *_ACTIVATIONS)})
    return otherwise if name is None else _ACTIVATIONS[name]


def _rotary(config: Mapping[str, Any], json: Json) -> dict[str, Any]:
    """Rotary positions, as transformers 5 (one table) or older versions (two keys) write them."""
    table = json.get("rope_parameters")
    scaling = json.get("rope_scaling")
    found = dict(scaling) if isinstance(scaling, dict) else {}
    found.update(table if isinstance(table, dict) else {})
    kind = found.get("rope_type", found.get("type", "default"))
    # For text alone the three parts of Qwen's positions are equal, which is the default.
    check_options({"rope_type": kind}, {"rope_type": (None, "default", "mrope", "llama3")})
    theta = number(json, "rope_theta", config["rope_theta"])
    fraction = number(json, "partial_rotary_factor", config["rope_fraction"])
    refined = {
        **config,
        "rope_theta": number(found, "rope_theta", theta),
        "rope_fraction": number(found, "partial_rotary_factor", fraction),
        "rope_factor": 1.0,
        "rope_sections": found.get("mrope_section") or config["rope_sections"],
    }
    if kind == "llama3":
        refined["rope_factor"] = number(found, "factor", 8.0)
        refined["rope_low"] = number(found, "low_freq_factor", config["rope_low"])
        refined["rope_high"] = number(found, "high_freq_factor", config["rope_high"])
        trained = integer(found, "original_max_position_embeddings", config["rope_trained"])
        refined["rope_trained"] = trained
    return refined


def _refine_chatglm(config: Mapping[str, Any], json: Json) -> dict[str, Any]:
    """ChatGLM's config has names of its own; every figure that the code does not vary is fixed."""
    check_options(
        json,
        {
            "rmsnorm": (True,),
            "post_layer_norm": (True,),
            "apply_residual_connection_post_layernorm": (False,),
            "add_bias_linear": (False,),
            "multi_query_attention": (True,),
            "original_rope": (True,),
            "quantization_bit": (0, None),
            "pre_seq_len": (None,),
            "rope_ratio": (1, 1.0, None),
        },
    )
    check_facts(
        json,
        {
            "padded_vocab_size": config["vocab_size"],
            "hidden_size": config["hidden_size"],
            "ffn_hidden_size": config["intermediate_size"],
            "num_layers": config["layers"],
        },
    )
    config = _heads_of(config, json, config["head_dim"], _CHATGLM_HEAD_NAMES)
    return {
        **config,
        "eps": number(json, "layernorm_epsilon", 1e-5),
        "rope_theta": 1e4,
        "max_positions": _longest(json, "seq_length"),
    }


_HEAD_NAMES = ("head_dim", "num_attention_heads", "num_key_value_heads")
_CHATGLM_HEAD_NAMES = ("kv_channels", "num_attention_heads", "multi_query_group_num")


def _heads_of(
    config: Mapping[str, Any], json: Json, usual_width: int, names: tuple[str, str, str]
) -> dict[str, Any]:
    """The config with the heads that config.json tells, which must fit the tensors.

    `names`: its keys for a head's width, and for the numbers of query and of key heads.
    """
    width = integer(json, names[0], usual_width)
    queries = config["heads"] * config["head_dim"]
    keys = config["kv_heads"] * config["head_dim"]
    check_divides(names[0], width, [queries, keys])
    check_facts(json, {names[1]: queries // width, names[2]: keys // width})
    return _with_heads(config, queries, keys, width)


def _longest(json: Json, *keys: str) -> int:
    return min(_LONGEST, *(integer(json, key, _LONGEST) or _LONGEST for key in keys))


def check(config: Mapping[str, Any]) -> None:
    """Raises WeightsError for values that no such model can have."""
    check_between("heads", config["heads"], 0, 1 << 16)
    check_divides("kv_heads", config["kv_heads"], [config["heads"]])
    check_divides("rotary pairs", 2, [int(config["head_dim"] * config["rope_fraction"])])
    check_between("eps", config["eps"], 0, 1)
    check_between("rope_theta", config["rope_theta"], 1, 1e12)
    check_between("rope_fraction", config["rope_fraction"], 0, 1.000001)
    sections = config["rope_sections"]
    if not isinstance(sections, list) or not all(type(n) is int and n >= 0 for n in sections):
        raise WeightsError(f"rope_sections = {sections!r}; expected three whole numbers")
    check_between("rope_factor", config["rope_factor"], 0, 1e6)
    check_between("rope_low", config["rope_low"], 0, config["rope_high"])
    check_between("rope_high", config["rope_high"], 0, 1e6)
    check_between("rope_trained", config["rope_trained"], 0, 1 << 40)
    check_between("query_scale", config["query_scale"], 0, 1e3)
    check_between("softcap", config["softcap"], -1e-6, 1e6)
    check_between("embedding_scale", config["embedding_scale"], 0, 1e6)
    check_between("max_positions", config["max_positions"], 0, _LONGEST + 1)
    if int(config["head_dim"] * config["rope_fraction"]) < 2:
        raise WeightsError(
            f"rope_fraction = {config['rope_fraction']} of a head of {config['head_dim']};"
            " expected one pair at least"
        )
    if config["norm_plus_one"] and config["rope_interleaved"]:
        # Its names are Llama's, but its rows are in order and its norms have their one.
        raise WeightsError(
            "this is the first Gemma under llama.cpp's names; expected those of transformers."
            " Give the safetensors files that it was published with"
        )
    if config["activation"] not in _ACTIVATIONS.values():
        choices = " or ".join(_ACTIVATIONS.values())
        raise WeightsError(f"activation = {config['activation']!r}; expected {choices}")
