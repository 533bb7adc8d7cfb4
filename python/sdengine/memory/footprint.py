"""Bytes that the networks of a stage take, under a policy of residency."""

from __future__ import annotations

from dataclasses import dataclass

from .rehearsal import Asked, Work

RESIDENT, OFFLOAD, STREAM, DISK = "resident", "offload", "stream", "disk"


@dataclass(frozen=True)
class Part:
    """One network during a stage.

    Attributes:
        component: ``"unet"``, ``"text_encoder"``, ``"vae_decoder"``, ``"control_0"``, ...
        policy: where its weights are: ``"resident"``, ``"offload"``, ``"stream"`` or ``"disk"``.
        weights: bytes of its weights on the device; with ``"stream"`` and ``"disk"`` what stays and two slots, or one
            segment where weights are used in the file.
        activations: bytes of its graphs' activations.
        host: bytes in the memory of the host for copies to the device, where that has its own.
        pages: bytes of the file's pages that are copied from and stay in the memory of the host.
        owned: bytes of `weights` that the process held before: converted ones. Zero where the device has its own.
        keep: bytes of weights that stay with ``"stream"`` and ``"disk"``, instead of coming at every step.
        whole: bytes of all its weights; told where some are kept.
        scratch: bytes that the device's backend may take for itself besides, at most.
    """

    component: str
    policy: str
    weights: int
    activations: int
    host: int = 0
    pages: int = 0
    owned: int = 0
    keep: int = 0
    whole: int = 0
    scratch: int = 0

    @property
    def residence(self) -> str:
        """Where its weights are, in words."""
        if not self.keep:
            return self.policy
        return f"{self.policy}, {100 * self.keep // max(self.whole, 1)} % stay"

    @property
    def device(self) -> int:
        """Bytes on the device, besides what was there before."""
        return self.weights - self.owned + self.activations


@dataclass(frozen=True)
class Stage:
    """What is in memory at one time: a network or several, and what stays beside them.

    Attributes:
        name: ``"text_encoder"``, ``"steps"``, ``"decode"``, ...
        parts: the networks that run.
        device: where they run.
        has_own_memory: False for the CPU, whose device memory is that of the process.
        arrays: bytes of pictures, latents and the like, in the memory of the host.
        beside: bytes of other components on the device: weights that stay.
        host_beside: bytes of other components' weights in the memory of the host, where the device has its own.
    """

    name: str
    parts: tuple[Part, ...]
    device: str = "cpu"
    has_own_memory: bool = False
    arrays: int = 0
    beside: int = 0
    host_beside: int = 0

    @property
    def networks(self) -> int:
        """Bytes of the running networks on the device."""
        return sum(part.device for part in self.parts)

    @property
    def scratch(self) -> int:
        """Bytes that the device's backend may take for itself besides, at most; networks use them in turn."""
        return max(part.scratch for part in self.parts)


def part_of(work: Work, policy: str, has_own_memory: bool, keep: int = 0, whole: int = 0) -> Part:
    """What a network takes that is asked `work`, `keep` of whose `whole` bytes of weights stay."""
    first: dict[object, Asked] = {}
    for asked in work.asked:
        first.setdefault(asked.key, asked)
    evaluations = [(asked.shapes, asked.options, asked.steady) for asked in first.values()]
    planned, weights = work.network.planned_together(evaluations, policy, keep=keep)
    figures = dict(zip(first, planned, strict=True))
    weights += max(one["weights"] - one["kept"] for one in figures.values())  # slots take turns
    activations = _most_held(work, {key: one["activations"] for key, one in figures.items()})
    if not has_own_memory:
        owned = min(work.network.owned_bytes, weights)
        return Part(work.component, policy, weights, activations, 0, 0, owned, keep, whole)
    host = max(one["staging"] for one in figures.values())
    pages = 0
    if policy in (OFFLOAD, STREAM):
        _, pages = work.network.planned_together(evaluations, RESIDENT)
    scratch = max(one["scratch"] for one in figures.values())
    return Part(work.component, policy, weights, activations, host, pages, 0, keep, whole, scratch)


def _most_held(work: Work, activations: dict[object, int]) -> int:
    """The activations of all graphs that are kept at a time, at most; csrc/stages/runner keeps those used last."""
    held: list[object] = []
    most = 0
    for asked in work.asked:
        if asked.key in held:
            held.remove(asked.key)
        held.append(asked.key)
        del held[: -max(asked.kept, 2)]
        most = max(most, sum(activations[key] for key in held))
    return most
