"""A part of the weights stays while the others stream: the same values, in the memory that was planned."""

from __future__ import annotations

import pytest

from sdengine import _core

from .conftest import KINDS, Tiny, assert_same, on_device

STREAMING = ("stream", "disk")


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("policy", STREAMING)
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_device(
    tiny_models: dict[str, Tiny], device: _core.Device, kind: str, policy: str, share: float
) -> None:
    tiny = tiny_models[kind]
    network = tiny.on(device)
    expected = network.run(tiny.inputs)
    network.release()
    whole = network.planned(tiny.shapes, {}, "resident")["weights"]
    keep = int(share * whole)
    planned = network.planned(tiny.shapes, {}, policy, keep=keep)
    streamed = network.planned(tiny.shapes, {}, policy)["weights"]
    assert (
        streamed < planned["weights"] <= keep + 2 * streamed
    )  # a slot may hold another operator now
    network.set_residency(policy, keep=keep)
    device.reset_peak()
    for _ in range(3):
        assert_same(network.run(tiny.inputs), expected)
    assert device.peak_bytes == planned["activations"] + planned["weights"]
    network.release_weights()
    assert device.allocated_bytes == planned["activations"]
    assert_same(network.run(tiny.inputs), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_cpu(tiny_models: dict[str, Tiny], kind: str) -> None:
    tiny = tiny_models[kind]
    network = tiny.on(_core.Device.cpu(1))
    expected = network.run(tiny.inputs)
    whole = network.planned(tiny.shapes)["weights"]
    weights = []
    for keep in (0, whole // 3, 2 * whole // 3, whole):
        network.set_residency("disk", keep=keep)
        for _ in range(2):
            assert_same(network.run(tiny.inputs), expected)
            network.release_weights()
        weights.append(network.planned(tiny.shapes, {}, "disk", keep=keep)["weights"])
    assert weights == sorted(weights)
    assert weights[0] < weights[1] < weights[3] == whole


@pytest.mark.parametrize("kind", KINDS)
def test_everything_may_stay(tiny_models: dict[str, Tiny], device: _core.Device, kind: str) -> None:
    network = tiny_models[kind].on(device)
    shapes = tiny_models[kind].shapes
    resident = network.planned(shapes, {}, "resident")
    assert network.planned(shapes, {}, "stream", keep=resident["weights"]) == resident
    assert network.planned(shapes, {}, "stream", keep=2**60) == resident


def test_what_stays_is_spread_over_the_network(tiny_models: dict[str, Tiny]) -> None:
    """Over two devices, which have a half of the operators each: both keep what their half is due."""
    tiny = tiny_models["unet"]
    devices = [_core.Device.cpu(1, portable=True) for _ in range(2)]
    network = tiny.on(*devices)
    whole = [b["weights"] for b in network.planned_by_device(tiny.shapes)]
    slots = [b["weights"] for b in network.planned_by_device(tiny.shapes, {}, "stream", 1)]
    for share in (0.2, 0.4, 0.6):
        keep = int(share * sum(whole))
        planned = network.planned_by_device(tiny.shapes, {}, "stream", 1, keep=keep)
        for of_device, had, beside in zip(planned, whole, slots, strict=True):
            assert share * had <= of_device["weights"] <= share * had + 2 * beside


def test_it_may_change(tiny_models: dict[str, Tiny], device: _core.Device) -> None:
    tiny = tiny_models["unet"]
    network = tiny.on(device)
    expected = network.run(tiny.inputs)
    whole = network.planned(tiny.shapes)["weights"]
    for keep in (whole // 2, 0, whole, whole // 4):
        network.set_residency("stream", keep=keep)
        assert_same(network.run(tiny.inputs), expected)
        planned = network.planned(tiny.shapes, {}, "stream", keep=keep)
        assert device.allocated_bytes == on_device(planned)


def test_several_shapes_keep_the_same(tiny_models: dict[str, Tiny], device: _core.Device) -> None:
    """What stays is of the network and not of a graph: two graphs share it."""
    tiny = tiny_models["unet"]
    network = tiny.on(device)
    single = {name: array[:1] for name, array in tiny.inputs.items()}
    expected = network.run(tiny.inputs), network.run(single)
    network.release()
    keep = network.planned(tiny.shapes)["weights"] // 2
    network.set_residency("stream", keep=keep)
    device.reset_peak()
    for _ in range(2):
        assert_same(network.run(tiny.inputs), expected[0])
        assert_same(network.run(single), expected[1])
    shapes = tiny.shapes, {name: list(array.shape) for name, array in single.items()}
    planned = [network.planned(one, {}, "stream", keep=keep) for one in shapes]
    activations = sum(one["activations"] for one in planned)
    assert device.peak_bytes == activations + max(one["weights"] for one in planned)


def test_steady_results_are_kept(tiny_models: dict[str, Tiny], device: _core.Device) -> None:
    tiny = tiny_models["unet"]
    network = tiny.on(device)
    expected = network.run(tiny.inputs)
    keep = network.planned(tiny.shapes)["weights"] // 2
    network.set_residency("stream", keep=keep)
    network.release()
    device.reset_peak()
    for _ in range(3):
        assert_same(network.run(tiny.inputs, {}, None, ["context"]), expected)
    planned = network.planned(tiny.shapes, {}, "stream", steady=["context"], keep=keep)
    assert device.peak_bytes == on_device(planned)


@pytest.mark.parametrize("policy", ["resident", "offload", "stream"])
def test_graphs_with_weights_of_their_own(
    tiny_models: dict[str, Tiny], device: _core.Device, policy: str
) -> None:
    """A transformer's first block and the others (step caching): both stay on the device."""
    tiny = tiny_models["flux"]
    network = tiny.on(device)
    network.set_residency(policy)
    device.reset_peak()
    first, rest = {"part": 3}, {"part": 4}
    hidden = {n: a for n, a in network.run(tiny.inputs, first).items() if n.startswith("hidden")}
    network.run({**tiny.inputs, **hidden}, rest)
    shapes = {**tiny.shapes, **{name: list(array.shape) for name, array in hidden.items()}}
    each, kept = network.planned_together([(tiny.shapes, first, []), (shapes, rest, [])], policy)
    slots = max(one["weights"] - one["kept"] for one in each)
    activations = sum(one["activations"] for one in each)
    assert device.peak_bytes == kept + slots + activations
    assert max(one["kept"] for one in each) < kept < sum(one["kept"] for one in each)
