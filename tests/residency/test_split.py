"""One network over two devices: the same values, and each takes its share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdengine import _core
from sdengine.devices import PORTABLE
from sdengine.errors import OutOfMemoryError, ParameterError

from .conftest import KINDS, NAME, Tiny, assert_same, new_device, on_device
from .test_policies import POLICIES


@pytest.fixture
def devices() -> tuple[_core.Device, _core.Device]:
    return new_device(), new_device()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_same_values(
    tiny_models: dict[str, Tiny],
    device: _core.Device,
    devices: tuple[_core.Device, _core.Device],
    kind: str,
    policy: str,
) -> None:
    tiny = tiny_models[kind]
    expected = tiny.on(device).run(tiny.inputs)
    network = tiny.on(*devices)
    network.set_residency(policy)
    for _ in range(2):
        assert_same(network.run(tiny.inputs), expected)
    planned = network.planned_by_device(tiny.shapes, {}, policy)
    whole = tiny.on(device).planned(tiny.shapes, {}, policy)["activations"]
    assert all(bytes_of["activations"] <= 2 * whole for bytes_of in planned)
    taken, expected_bytes = [d.peak_bytes for d in devices], [on_device(b) for b in planned]
    if NAME == PORTABLE:
        assert taken == expected_bytes
    else:  # one card twice: ggml takes the activations of both at once
        assert sum(taken) <= sum(expected_bytes)
    assert min(taken) > 0
    network.release()
    network.release_weights()
    if policy != "resident":
        assert [each.allocated_bytes for each in devices] == [0, 0]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_shares(
    tiny_models: dict[str, Tiny],
    device: _core.Device,
    devices: tuple[_core.Device, _core.Device],
    share: float,
) -> None:
    """Weights follow the shares, up to those of one operator."""
    tiny = tiny_models["unet"]
    whole = tiny.on(device)
    expected = whole.run(tiny.inputs)
    network = tiny.on(*devices, shares=[share, 1 - share])
    assert_same(network.run(tiny.inputs), expected)
    first, second = (b["weights"] for b in network.planned_by_device(tiny.shapes))
    largest = whole.planned(tiny.shapes, {}, "stream", 1)["weights"]
    assert first == pytest.approx(share * (first + second), abs=largest)


def test_three_devices(tiny_models: dict[str, Tiny], device: _core.Device) -> None:
    tiny = tiny_models["flux"]
    devices = [new_device() for _ in range(3)]
    expected = tiny.on(device).run(tiny.inputs)
    assert_same(tiny.on(*devices).run(tiny.inputs), expected)
    assert all(each.peak_bytes > 0 for each in devices)


@pytest.fixture
def no_failures_left() -> Iterator[None]:
    yield
    _core.fail_allocation(0)


@pytest.mark.usefixtures("no_failures_left")
def test_every_allocation(
    tiny_models: dict[str, Tiny],
    device: _core.Device,
    devices: tuple[_core.Device, _core.Device],
) -> None:
    tiny = tiny_models["unet"]
    expected = tiny.on(device).run(tiny.inputs)
    for failure in range(1, 4):
        network = tiny.on(*devices)
        _core.fail_allocation(failure)
        with pytest.raises(OutOfMemoryError):
            network.run(tiny.inputs)
        assert_same(network.run(tiny.inputs), expected)


def test_what_is_refused(tiny_models: dict[str, Tiny], device: _core.Device) -> None:
    tiny = tiny_models["clip_text"]
    with pytest.raises(ParameterError, match="'cpu' is none"):
        tiny.on(device, _core.Device.cpu(1))
    with pytest.raises(ParameterError, match="a share of at least 0"):
        tiny.on(device, device, shares=[1.0])
    with pytest.raises(ParameterError, match="a share of at least 0"):
        tiny.on(device, device, shares=[-1.0, 2.0])
