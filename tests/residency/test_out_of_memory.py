"""Every allocation may fail: with a typed error, nothing lost, and the next run works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdengine import _core
from sdengine.errors import Cancelled, OutOfMemoryError

from .conftest import Tiny, assert_same, new_device
from .test_policies import POLICIES


@pytest.fixture(autouse=True)
def no_failures_left() -> Iterator[None]:
    yield
    _core.fail_allocation(0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["unet", "flux", "autoencoder_kl_decoder"])
def test_every_allocation(
    tiny_models: dict[str, Tiny], device: _core.Device, kind: str, policy: str
) -> None:
    tiny = tiny_models[kind]
    expected = tiny.on(new_device()).run(tiny.inputs)
    network = tiny.on(device)
    network.set_residency(policy)
    failures = 0
    while True:
        network.release()
        network.set_residency("stream" if policy != "stream" else "disk")
        network.set_residency(policy)
        assert device.allocated_bytes == 0
        _core.fail_allocation(failures + 1)
        try:
            found = network.run(tiny.inputs)
        except OutOfMemoryError:
            failures += 1
            assert_same(network.run(tiny.inputs), expected)  # only one allocation failed
            continue
        assert_same(found, expected)
        break
    assert failures >= 2  # activations and weights at least


def test_on_the_cpu(tiny_models: dict[str, Tiny]) -> None:
    tiny, cpu = tiny_models["unet"], _core.Device.cpu(1)
    network = tiny.on(cpu)
    _core.fail_allocation(1)
    with pytest.raises(OutOfMemoryError, match="no memory for a network's activations"):
        network.run(tiny.inputs)
    assert cpu.allocated_bytes == 0
    expected = tiny.on(_core.Device.cpu(1)).run(tiny.inputs)
    assert_same(network.run(tiny.inputs), expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_cancelled(tiny_models: dict[str, Tiny], device: _core.Device, policy: str) -> None:
    tiny = tiny_models["unet"]
    network = tiny.on(device)
    network.set_residency(policy)
    token = _core.CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        network.run(tiny.inputs, {}, token)
    expected = tiny.on(new_device()).run(tiny.inputs)
    assert_same(network.run(tiny.inputs), expected)
