"""LoRAs merged for good, while a model is converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sdengine import _core
from sdengine.adapters.loras import (
    Lora,
    LoraLike,
    Loras,
    as_loras,
    as_recommended,
    with_strengths,
)
from sdengine.adapters.widening import widened
from sdengine.errors import ParameterError
from sdengine.loading import ModelPlan

Uses = list[tuple[_core.Adapter, float]]


@dataclass(frozen=True)
class Merge:
    """What is merged into which parameter."""

    uses: Mapping[tuple[str, str], Uses] = field(default_factory=dict)
    """(component, parameter) -> adapters with their scales."""

    def of(self, component: str, parameter: str) -> Uses:
        """What changes this parameter; empty for most."""
        return self.uses.get((component, parameter), [])


def merge_of(
    plan: ModelPlan, given: Sequence[LoraLike] | LoraLike | None
) -> tuple[Merge, ModelPlan]:
    """Resolve LoRAs against a model that is being converted.

    Returns:
        What to merge, and the plan with the defaults that the LoRAs' publishers recommend.

    Raises:
        ParameterError: a LoRA is scheduled over steps, which cannot be merged, or there is no such file.
        FormatError, WeightsError: a file is damaged, or belongs to another family.
    """
    loras = with_strengths(plan.family.name, as_loras(given))
    plan = widened(plan, loras)
    opened = Loras(plan, {})
    uses: dict[tuple[str, str], Uses] = {}
    for lora in loras:
        for component, adapter in opened.open(lora).networks.items():
            in_denoiser = component == plan.family.denoiser
            scale = _constant(lora) if in_denoiser else lora.in_text_encoders
            for parameter in dict.fromkeys(adapter.parameters):
                uses.setdefault((component, parameter), []).append((adapter, scale))
    plan, _ = as_recommended(plan, loras)
    return Merge(uses), plan


def _constant(lora: Lora) -> float:
    if isinstance(lora.scale, tuple) or (lora.start, lora.end) != (0.0, 1.0):
        raise ParameterError(
            f"the LoRA {lora.name!r} changes from step to step and cannot be merged"
        )
    return lora.scale_at(0, 1)
