"""Every residency of the weights gives the same picture, and takes the memory that it promises."""

from __future__ import annotations

import pytest

from sdengine import _core
from sdengine.errors import ParameterError

from .conftest import KINDS, NAME, Tiny, assert_same, new_device, on_device

POLICIES = ("resident", "offload", "stream", "disk")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_device(
    tiny_models: dict[str, Tiny], device: _core.Device, kind: str, policy: str
) -> None:
    tiny = tiny_models[kind]
    expected = tiny.on(new_device()).run(tiny.inputs)
    network = tiny.on(device)
    network.set_residency(policy)
    planned = network.planned(tiny.shapes, {}, policy)
    assert device.allocated_bytes == 0
    for _ in range(3):
        assert_same(network.run(tiny.inputs), expected)
    assert device.peak_bytes == planned["activations"] + planned["weights"]
    assert network.residency == policy

    network.release_activations()
    assert device.allocated_bytes == planned["weights"]
    network.release_weights()
    left = planned["weights"] if policy == "resident" else 0
    assert device.allocated_bytes == left
    assert_same(network.run(tiny.inputs), expected)
    del network
    assert device.allocated_bytes == 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_on_the_cpu(tiny_models: dict[str, Tiny], kind: str, policy: str) -> None:
    tiny, cpu = tiny_models[kind], _core.Device.cpu(1)
    expected = tiny.on(cpu).run(tiny.inputs)
    network = tiny.on(cpu)
    network.set_residency(policy)
    for _ in range(2):
        assert_same(network.run(tiny.inputs), expected)
        network.release_weights()
    streamed = policy in ("stream", "disk")
    weights = {name: network.planned(tiny.shapes, {}, name)["weights"] for name in POLICIES}
    assert (weights[policy] < weights["resident"]) == streamed


@pytest.mark.parametrize("kind", KINDS)
def test_slots(tiny_models: dict[str, Tiny], device: _core.Device, kind: str) -> None:
    """Two slots: never more than twice what a segment may take, but for operators with more."""
    tiny = tiny_models[kind]
    expected = tiny.on(device).run(tiny.inputs)
    network = tiny.on(device)
    whole = network.planned(tiny.shapes, {}, "resident")["weights"]
    smallest = network.planned(tiny.shapes, {}, "stream", 1)["weights"]
    peaks = []
    for slot_bytes in (1, whole // 8, whole // 3, whole):
        network.set_residency("stream", slot_bytes)
        network.release_activations()
        device.reset_peak()
        assert_same(network.run(tiny.inputs), expected)
        planned = network.planned(tiny.shapes, {}, "stream", slot_bytes)
        assert device.peak_bytes == on_device(planned)
        assert planned["weights"] <= max(smallest, 2 * slot_bytes) + smallest
        peaks.append(device.peak_bytes)
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[-1]


def test_policies_may_change(tiny_models: dict[str, Tiny], device: _core.Device) -> None:
    tiny = tiny_models["unet"]
    network = tiny.on(device)
    expected = network.run(tiny.inputs)
    for policy in ("stream", "resident", "disk", "offload", "resident"):
        network.set_residency(policy)
        assert_same(network.run(tiny.inputs), expected)
        planned = network.planned(tiny.shapes, {}, policy)
        assert device.allocated_bytes == on_device(planned)


def test_several_shapes_share_the_slots(tiny_models: dict[str, Tiny], device: _core.Device) -> None:
    tiny = tiny_models["unet"]
    network = tiny.on(device)
    single = {name: array[:1] for name, array in tiny.inputs.items()}
    expected = network.run(tiny.inputs), network.run(single)
    network.set_residency("stream")
    for _ in range(2):
        assert_same(network.run(tiny.inputs), expected[0])
        assert_same(network.run(single), expected[1])


def test_steady_results_are_kept(tiny_models: dict[str, Tiny], device: _core.Device) -> None:
    """What does not change between steps is not computed again, and its weights do not come again."""
    tiny = tiny_models["unet"]
    network = tiny.on(device)
    for policy in POLICIES:
        network.set_residency(policy)
        expected = network.run(tiny.inputs)
        for _ in range(3):
            assert_same(network.run(tiny.inputs, {}, None, ["context"]), expected)
        planned = network.planned(tiny.shapes, {}, policy, steady=["context"])
        network.release()
        network.release_weights()
        device.reset_peak()
        network.run(tiny.inputs, {}, None, ["context"])
        assert device.peak_bytes == on_device(planned)


def test_memory_of_a_device(device: _core.Device) -> None:
    free, total = device.memory()
    assert 0 < free <= total
    assert device.name == NAME
    assert device.has_own_memory
    assert not _core.Device.open("cpu", 1).has_own_memory


def test_what_is_refused(tiny_models: dict[str, Tiny], device: _core.Device) -> None:
    network = tiny_models["clip_text"].on(device)
    with pytest.raises(ParameterError, match="no residency 'moon'; known are resident"):
        network.set_residency("moon")
    with pytest.raises(ParameterError, match="no residency"):
        network.planned({"ids": [1, 8]}, {}, "moon")
