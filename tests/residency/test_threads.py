"""Several threads, over one network, one device and one store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from sdengine import _core
from sdengine.errors import ParameterError
from sdengine.stores import make_store

from .conftest import NAME, Tiny, assert_same, new_device
from .test_policies import POLICIES

RUNS = 4


@pytest.mark.parametrize("portable", [False, True], ids=["cpu", "own-memory"])
@pytest.mark.parametrize("policy", POLICIES)
def test_one_network_and_two(tiny_models: dict[str, Tiny], policy: str, portable: bool) -> None:
    device = new_device(2) if portable else _core.Device.cpu(2)
    tinies = [tiny_models[kind] for kind in ("unet", "clip_text")]
    networks = [tiny.on(device) for tiny in tinies]
    expected = [network.run(tiny.inputs) for tiny, network in zip(tinies, networks, strict=True)]
    for network in networks:
        network.set_residency(policy)

    def work(number: int) -> None:
        which = number % 2
        for _ in range(RUNS):
            assert_same(networks[which].run(tinies[which].inputs), expected[which])
            networks[which].release_weights()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_two_networks_over_one_store(tiny_models: dict[str, Tiny]) -> None:
    device = new_device()
    tiny = tiny_models["unet"]
    store = make_store(tiny.plan)
    pair = [_core.Network(tiny.kind, dict(tiny.plan.config), store, device) for _ in range(2)]
    expected = pair[0].run(tiny.inputs)
    pair[1].set_residency("stream")

    def work(number: int) -> None:
        for _ in range(RUNS):
            assert_same(pair[number].run(tiny.inputs), expected)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    with pytest.raises(ParameterError, match=f"prepared for the device '{NAME}'"):
        _core.Network(tiny.kind, dict(tiny.plan.config), store, _core.Device.cpu(1))
