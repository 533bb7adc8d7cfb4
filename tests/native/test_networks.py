"""The native networks' edges: what they refuse, and that a run can be stopped."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sdengine import _core
from sdengine.errors import Cancelled, NumericError, ParameterError, WeightsError

CLIP = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "layers": 2,
    "heads": 4,
    "max_positions": 16,
    "activation": "quick_gelu",
    "eps": 1e-5,
    "projection_dim": 0,
    "eos_token_id": 49,
    "has_projection": False,
}


def make_store(
    path: Path, config: dict[str, object] = CLIP, scale: float = 0.1
) -> _core.WeightStore:
    """A store with random float32 weights for a CLIP text encoder."""
    store, random, offset = _core.WeightStore(), np.random.default_rng(0), 0
    with path.open("wb") as file:
        for _, shape in _core.parameters("clip_text", config):
            values = (random.standard_normal(shape) * scale).astype(np.float32)
            file.write(values.tobytes())
    for name, shape in _core.parameters("clip_text", config):
        nbytes = 4 * int(np.prod(shape))
        store.add(name, "f32", list(shape), str(path), offset, nbytes)
        offset += nbytes
    return store


def make_network(path: Path, config: dict[str, object] = CLIP, scale: float = 0.1) -> _core.Network:
    return _core.Network("clip_text", config, make_store(path, config, scale), _core.Device.cpu(2))


def ids(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


def test_one_truth_about_parameters() -> None:
    names = dict(_core.parameters("clip_text", CLIP))
    assert names["text_model.embeddings.token_embedding.weight"] == (50, 32)
    assert len(names) == 2 + 2 * 16 + 2


def test_unknown_network_and_incomplete_config(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no network 'unicorn'; known are .*unet"):
        _core.parameters("unicorn", CLIP)
    with pytest.raises(ParameterError, match="no 'hidden_size'"):
        _core.parameters("clip_text", {k: v for k, v in CLIP.items() if k != "hidden_size"})
    with pytest.raises(ParameterError, match="not a whole number"):
        _core.parameters("clip_text", {**CLIP, "layers": "two"})


def test_missing_and_misshaped_parameters(tmp_path: Path) -> None:
    device = _core.Device.cpu(1)
    with pytest.raises(WeightsError, match="token_embedding.weight' .* is missing"):
        _core.Network("clip_text", CLIP, _core.WeightStore(), device)
    store = make_store(tmp_path / "w")
    with pytest.raises(WeightsError, match="expected"):
        _core.Network("clip_text", {**CLIP, "vocab_size": 51}, store, device)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ({}, {}, "'ids' is missing"),
        ({"ids": ids(16)}, {}, "must have 2 axes"),
        ({"ids": ids(0, 16)}, {}, "none of them empty"),
        ({"ids": ids(1, 17)}, {}, "17 tokens, the encoder takes 16"),
        ({"ids": ids(1, 4) + 50}, {}, "holds the id 50; this model knows 0 to 49"),
        ({"ids": ids(1, 4) - 1}, {}, "holds the id -1"),
        ({"ids": ids(1, 4), "extra": ids(1, 4)}, {}, "no input 'extra'"),
        ({"ids": np.zeros((1, 4), np.float32)}, {}, "ids"),
        ({"ids": ids(1, 4)}, {"skip": 2}, "clip_skip must leave"),
        ({"ids": ids(1, 4)}, {"skip": -1}, "clip_skip must leave"),
    ],
)
def test_inputs_that_do_not_fit(
    tmp_path: Path, inputs: dict[str, np.ndarray], options: dict[str, int], message: str
) -> None:
    network = make_network(tmp_path / "w")
    with pytest.raises(ParameterError, match=message):
        network.run(inputs, options)
    # The network still works afterwards.
    assert network.run({"ids": ids(1, 4)})["hidden"].shape == (1, 4, 32)


def test_nan_in_weights_is_named(tmp_path: Path) -> None:
    network = make_network(tmp_path / "w", scale=float("nan"))
    with pytest.raises(WeightsError, match="parameter '.*' holds NaN"):
        network.run({"ids": ids(1, 4)})


def test_overflow_is_reported(tmp_path: Path) -> None:
    network = make_network(tmp_path / "w", scale=1e25)
    with pytest.raises(NumericError, match="NaN or infinity in 'hidden'"):
        network.run({"ids": ids(1, 4)})


def test_cancel_from_another_thread(tmp_path: Path) -> None:
    config = {
        **CLIP,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "layers": 8,
        "max_positions": 512,
    }
    network = make_network(tmp_path / "w", config, 0.02)
    token = _core.CancelToken()
    threading.Timer(0.05, token.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        for _ in range(1000):
            network.run({"ids": ids(8, 512)}, {}, token)
    assert time.monotonic() - started < 20
    assert network.run({"ids": ids(1, 4)})["hidden"].shape == (1, 4, 512)


def test_the_gil_is_released(tmp_path: Path) -> None:
    config = {
        **CLIP,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "layers": 6,
        "max_positions": 512,
    }
    network = make_network(tmp_path / "w", config, 0.02)
    done = threading.Event()
    ticks = 0

    def work() -> None:
        network.run({"ids": ids(8, 512)})
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 3


def test_two_threads_share_one_network(tmp_path: Path) -> None:
    network = make_network(tmp_path / "w")
    inputs = [np.full((1, 8), i, np.int32) for i in range(8)]
    expected = [network.run({"ids": i})["hidden"] for i in inputs]
    results: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        for _ in range(20):
            results[index] = network.run({"ids": inputs[index]})["hidden"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, value in enumerate(expected):
        assert np.array_equal(results[index], value)
