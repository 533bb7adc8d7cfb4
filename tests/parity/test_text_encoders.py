"""Language models and T5 as text encoders against diffusers and transformers, float32: relative L2
error <= 1e-5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from sdengine.errors import ParameterError
from tests import text_models
from tests.parity.conftest import relative_error

LIMIT = 1e-5
TOKENS = 13


def words(padding: int, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, mask and positions of two texts, the second shorter by `padding` tokens."""
    random = np.random.default_rng(3)
    ids = random.integers(3, 100, (2, TOKENS), dtype=np.int32)
    mask = np.ones_like(ids)
    positions = np.tile(np.arange(TOKENS, dtype=np.int32), (2, 1))
    if padding:
        hidden = slice(0, padding) if side == "left" else slice(TOKENS - padding, TOKENS)
        ids[1, hidden], mask[1, hidden] = 0, 0
        if side == "left":
            positions[1] = np.maximum(0, positions[1] - padding)
    return ids, mask, positions


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))


# ------------------------------ ChatGLM3
@pytest.mark.parametrize("padding", [0, 5, TOKENS - 1])
def test_chatglm_as_kolors_reads_it(tmp_path: Path, padding: int) -> None:
    model = text_models.glm()
    ids, mask, positions = words(padding, "left")
    with torch.no_grad():
        states = model(
            input_ids=tensor(ids),
            attention_mask=tensor(mask),
            position_ids=tensor(positions),
            output_hidden_states=True,
        ).hidden_states
    loaded = text_models.load(text_models.save(model, tmp_path), "decoder_text")
    assert loaded.unused == ()
    found = loaded.run(ids, {"skip": 1, "final_norm": 0, "last": 1}, positions=positions, mask=mask)
    assert loaded.plan.dialect == "ChatGLM"
    # Padding is compared too: Kolors' denoiser attends to it.
    assert relative_error(found["hidden"], states[-2].permute(1, 0, 2).numpy()) <= LIMIT
    assert relative_error(found["last"], states[-1][-1].numpy()) <= LIMIT
    if not padding:
        plain = loaded.run(ids, {"skip": 1, "final_norm": 0, "last": 1}, positions=positions)
        assert relative_error(plain["hidden"], found["hidden"]) <= 1e-6


def test_chatglm_after_the_final_norm(tmp_path: Path) -> None:
    model = text_models.glm(seed=4)
    ids, _, positions = words(0, "left")
    with torch.no_grad():
        expected = model(tensor(ids)).last_hidden_state.permute(1, 0, 2).numpy()
    loaded = text_models.load(text_models.save(model, tmp_path), "decoder_text")
    assert relative_error(loaded.run(ids, positions=positions)["hidden"], expected) <= LIMIT


def test_chatglm_needs_its_config_only_for_the_head_width(tmp_path: Path) -> None:
    model = text_models.glm(kv_channels=8)
    folder = text_models.save(model, tmp_path / "a")
    told = dict(text_models.load(folder, "decoder_text").plan.config)
    (folder / "config.json").unlink()
    guessed = dict(text_models.load(folder / "model.safetensors", "decoder_text").plan.config)
    # What no shape tells is as in Qwen where the vocabulary is not ChatGLM's.
    for key in ("padding_sees_all", "rope_interleaved", "rope_fraction", "layers", "qkv_bias"):
        assert guessed[key] == told[key], key
    assert guessed["heads"] * guessed["head_dim"] == told["heads"] * told["head_dim"]
    assert guessed["kv_heads"] * guessed["head_dim"] == told["kv_heads"] * told["head_dim"]


def test_chatglm_in_shards_of_a_diffusers_folder(tmp_path: Path) -> None:
    model = text_models.glm(seed=5)
    text_models.save(model, tmp_path / "text_encoder", max_shard_size="30KB")
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 2
    index = {"_class_name": "KolorsPipeline", "text_encoder": ["kolors", "ChatGLMModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index), "utf-8")
    loaded = text_models.load(tmp_path, "decoder_text")
    assert loaded.unused == ()
    ids, _, positions = words(0, "left")
    with torch.no_grad():
        expected = model(tensor(ids)).last_hidden_state.permute(1, 0, 2).numpy()
    assert relative_error(loaded.run(ids, positions=positions)["hidden"], expected) <= LIMIT


# ------------------------------ transformers' decoders
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", {"head_dim": 12}),
    # A small cap and a scale of its own, so that both show.
    "gemma2": (
        "Gemma2",
        {"head_dim": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0},
    ),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "llama": ("Llama", {}),
    "llama3": (
        "Llama",
        {"rope_parameters": text_models.LLAMA_3_ROPE, "max_position_embeddings": 512},
    ),
}


def states_of(
    model: torch.nn.Module, ids: np.ndarray, mask: np.ndarray | None, positions: np.ndarray
) -> list[np.ndarray]:
    with torch.no_grad():
        found = model(
            input_ids=tensor(ids),
            attention_mask=None if mask is None else tensor(mask),
            position_ids=tensor(positions),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
    return [state.numpy() for state in found]


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_decoders(tmp_path: Path, name: str, side: str) -> None:
    model = text_models.transformer(MODELS[name][0], **MODELS[name][1])
    ids, mask, positions = words(0 if side == "none" else 4, side)
    states = states_of(model, ids, None if side == "none" else mask, positions)
    loaded = text_models.load(text_models.save(model, tmp_path), "decoder_text")
    assert loaded.unused == ()
    inputs = {"positions": positions} if side == "none" else {"positions": positions, "mask": mask}
    # What stands at padding is not defined: families mask it.
    real = mask.astype(bool)
    for options, expected in (
        ({}, states[-1]),
        ({"skip": 1, "final_norm": 0}, states[-2]),
        ({"skip": 2, "final_norm": 0}, states[-3]),
    ):
        found = loaded.run(ids, options, **inputs)["hidden"]
        assert relative_error(found[real], expected[real]) <= LIMIT, options


def test_long_positions_are_exact(tmp_path: Path) -> None:
    model = text_models.transformer(
        "Llama", rope_parameters=text_models.LLAMA_3_ROPE, max_position_embeddings=2048
    )
    ids, _, positions = words(0, "left")
    positions = positions * 150
    loaded = text_models.load(text_models.save(model, tmp_path), "decoder_text")
    found = loaded.run(ids, positions=positions)["hidden"]
    # With a mask, or transformers takes leaps in the positions for several texts in one row.
    expected = states_of(model, ids, np.ones_like(ids), positions)[-1]
    # Angles of 1800 carry 1e-4 of rounding in the reference's single precision.
    assert relative_error(found, expected) <= 1e-4


@pytest.mark.parametrize("side", ["none", "right"])
def test_the_language_part_of_qwen2_5_vl(tmp_path: Path, side: str) -> None:
    import transformers

    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **text_models.SMALL,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 32,
            "out_hidden_size": 32,
        },
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    text_models.randomise(model, 5, 0.2)
    ids, mask, positions = words(0 if side == "none" else 4, side)
    given = None if side == "none" else tensor(mask)
    with torch.no_grad():
        states = model(
            input_ids=tensor(ids), attention_mask=given, output_hidden_states=True
        ).hidden_states
    loaded = text_models.load(text_models.save(model, tmp_path), "decoder_text")
    assert loaded.unused == ()
    inputs = {"positions": positions} if side == "none" else {"positions": positions, "mask": mask}
    found = loaded.run(ids, **inputs)["hidden"]
    real = mask.astype(bool)
    assert relative_error(found[real], states[-1].numpy()[real]) <= LIMIT


# ------------------------------ llama.cpp's files
ARCHITECTURES = {"gemma2": "gemma2", "qwen2": "qwen2vl", "qwen3": "qwen3", "llama": "llama"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_llama_cpp_files_give_the_same_states(tmp_path: Path, name: str) -> None:
    model = text_models.transformer(MODELS[name][0], **MODELS[name][1])
    ids, _, positions = words(0, "left")
    expected = states_of(model, ids, None, positions)[-1]
    config = dict(
        text_models.load(text_models.save(model, tmp_path / "m"), "decoder_text").plan.config
    )
    tensors = text_models.llm_to_gguf(model.state_dict(), ARCHITECTURES[name], 4, 2)
    path = text_models.write_gguf(tmp_path / "m.gguf", ARCHITECTURES[name], tensors)
    # A tiny model's figures are not the usual ones, so all but what the file implies is given.
    for key in ("norm_plus_one", "rope_interleaved"):
        del config[key]
    loaded = text_models.load(path, "decoder_text", **config)
    assert loaded.unused == ()
    assert relative_error(loaded.run(ids, positions=positions)["hidden"], expected) <= LIMIT
    # Matrices stay where they are in the file; only what is not a matrix may be copied.
    assert loaded.store.owned_bytes <= 4 * sum(v.numel() for v in tensors.values() if v.ndim < 2)


def dequantized(path: Path) -> dict[str, torch.Tensor]:
    reader = gguf.GGUFReader(str(path))
    return {
        t.name: torch.tensor(
            gguf.quants.dequantize(t.data, t.tensor_type)
            .reshape(t.shape[::-1].tolist())
            .astype(np.float32)
        )
        for t in reader.tensors
    }


@pytest.mark.parametrize("weight_type", ["q8_0", "q4_0", "bf16"])
def test_quantized_decoder_in_place(tmp_path: Path, weight_type: str) -> None:
    model = text_models.transformer("Qwen2", hidden_size=64, intermediate_size=96)
    tensors = text_models.llm_to_gguf(model.state_dict(), "qwen2vl", 4, 2)
    path = text_models.write_gguf(tmp_path / "q.gguf", "qwen2vl", tensors, weight_type)
    back = text_models.write_gguf(tmp_path / "f.gguf", "qwen2vl", dequantized(path))
    ids, mask, positions = words(4, "right")
    found, expected = (text_models.load(p, "decoder_text") for p in (path, back))
    assert {b.entry.dtype for b in found.plan.bindings if len(b.entry.shape) > 1} == {weight_type}
    # The words' table too: nothing but vectors is held outside of the file.
    assert found.store.owned_bytes <= 4 * sum(v.numel() for v in tensors.values() if v.ndim < 2)
    assert (
        relative_error(
            found.run(ids, positions=positions, mask=mask)["hidden"],
            expected.run(ids, positions=positions, mask=mask)["hidden"],
        )
        <= LIMIT
    )


# ------------------------------ T5
@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("name", ["T5", "MT5", "UMT5"])
def test_t5(tmp_path: Path, name: str, padding: int) -> None:
    model = text_models.t5(name)
    ids, mask, _ = words(padding, "right")
    with torch.no_grad():
        seen = model(tensor(ids), attention_mask=tensor(mask)).last_hidden_state.numpy()
        unmasked = model(tensor(ids)).last_hidden_state.numpy()
    loaded = text_models.load(text_models.save(model, tmp_path), "t5_text")
    assert loaded.unused == ()
    assert relative_error(loaded.run(ids, mask=mask)["hidden"], seen) <= LIMIT
    assert relative_error(loaded.run(ids)["hidden"], unmasked) <= LIMIT


def test_t5_with_distances_in_every_bucket(tmp_path: Path) -> None:
    model = text_models.t5(seed=2)
    ids = np.random.default_rng(0).integers(0, 100, (1, 300), dtype=np.int32)
    with torch.no_grad():
        expected = model(tensor(ids)).last_hidden_state.numpy()
    loaded = text_models.load(text_models.save(model, tmp_path), "t5_text")
    assert relative_error(loaded.run(ids)["hidden"], expected) <= LIMIT


@pytest.mark.parametrize("weight_type", ["f32", "q8_0"])
def test_t5_from_llama_cpp_files(tmp_path: Path, weight_type: str) -> None:
    model = text_models.t5(d_ff=64, num_heads=32, d_kv=4, d_model=64)
    tensors = text_models.t5_to_gguf(model.state_dict())
    path = text_models.write_gguf(tmp_path / "m.gguf", "t5encoder", tensors, weight_type)
    loaded = text_models.load(path, "t5_text")
    assert loaded.unused == ()
    ids, _, _ = words(0, "right")
    if weight_type == "f32":
        with torch.no_grad():
            expected = model(tensor(ids)).last_hidden_state.numpy()
    else:
        back = text_models.write_gguf(tmp_path / "f.gguf", "t5encoder", dequantized(path))
        expected = text_models.load(back, "t5_text").run(ids)["hidden"]
        assert loaded.store.owned_bytes <= 4 * sum(
            v.numel() for v in tensors.values() if v.ndim < 2
        )
    assert relative_error(loaded.run(ids)["hidden"], expected) <= LIMIT


# ------------------------------ large activations
HALF_LIMIT = 65504.0


def enlarge(model: torch.nn.Module, names: tuple[str, ...], factor: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(names):
                parameter.mul_(factor)


def test_activations_beyond_half_precision(tmp_path: Path) -> None:
    ids, _, positions = words(0, "left")
    t5 = text_models.t5()
    enlarge(t5, ("wi_0.weight", "wi_1.weight"), 200.0)
    seen: list[float] = []
    for block in t5.encoder.block:
        block.layer[1].DenseReluDense.wo.register_forward_pre_hook(
            lambda _, given: seen.append(float(given[0].abs().max()))
        )
    with torch.no_grad():
        expected = t5(tensor(ids)).last_hidden_state.numpy()
    assert min(seen) > HALF_LIMIT
    found = text_models.load(text_models.save(t5, tmp_path / "t5"), "t5_text").run(ids)["hidden"]
    assert relative_error(found, expected) <= LIMIT

    llama = text_models.transformer("Llama")
    enlarge(llama, ("gate_proj.weight", "up_proj.weight"), 200.0)
    seen.clear()
    for layer in llama.layers:
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, given: seen.append(float(given[0].abs().max()))
        )
    states = states_of(llama, ids, None, positions)
    assert min(seen) > HALF_LIMIT
    loaded = text_models.load(text_models.save(llama, tmp_path / "llama"), "decoder_text")
    found = loaded.run(ids, {"skip": 1, "final_norm": 0}, positions=positions)["hidden"]
    assert np.abs(found).max() > HALF_LIMIT
    assert relative_error(found, states[-2]) <= LIMIT


# ------------------------------ what the networks refuse
@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"positions": None}, {}, "'positions' is missing"),
        ({"positions": (2, 5)}, {}, r"'positions' has shape \[2, 5\], the ids have \[2, 13\]"),
        ({"mask": (1, 13)}, {}, r"'mask' has shape \[1, 13\], the ids have \[2, 13\]"),
        ({"mask": np.full((2, 13), 2)}, {}, "'mask' holds the id 2"),
        ({"positions": np.full((2, 13), 64)}, {}, "'positions' holds the id 64"),
        ({"ids": (2, 70), "positions": (2, 70)}, {}, "70 tokens, the encoder takes 64"),
        ({}, {"skip": 3}, "skip must leave at least one of 3 layers"),
        ({}, {"skip": -1}, "skip must leave"),
    ],
)
def test_decoder_inputs_that_do_not_fit(
    tmp_path: Path, changed: dict[str, Any], options: dict[str, int], message: str
) -> None:
    model = text_models.transformer("Llama", max_position_embeddings=64)
    loaded = text_models.load(text_models.save(model, tmp_path), "decoder_text")
    ids, _, positions = words(0, "left")
    inputs: dict[str, Any] = {"ids": ids, "positions": positions}
    for name, value in changed.items():
        inputs[name] = np.ones(value, np.int32) if isinstance(value, tuple) else value
    given = {name: value for name, value in inputs.items() if value is not None}
    with pytest.raises(ParameterError, match=message):
        loaded.run(options=options, **given)
    assert loaded.run(ids, positions=positions)["hidden"].shape == (2, TOKENS, 32)


def test_t5_inputs_that_do_not_fit(tmp_path: Path) -> None:
    loaded = text_models.load(text_models.save(text_models.t5(), tmp_path), "t5_text")
    ids, _, _ = words(0, "right")
    with pytest.raises(ParameterError, match="5000 tokens, the encoder takes 4096"):
        loaded.run(np.zeros((1, 5000)))
    with pytest.raises(ParameterError, match="'mask' has shape"):
        loaded.run(ids, mask=np.ones((2, 3)))
    with pytest.raises(ParameterError, match="no input 'positions'"):
        loaded.run(ids, positions=ids)
