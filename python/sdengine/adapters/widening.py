"""LoRAs that give a model a wider input: FLUX.1 Canny and Depth as LoRAs over FLUX.1 dev.

Black Forest Labs published them so (docs of FLUX.1 Tools): the network then reads the latents of a control picture
beside its own. The new columns of the input's weight are zeros until the LoRA changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdengine.adapters.files import open_adapter
from sdengine.adapters.loras import Lora
from sdengine.adapters.names import split_name
from sdengine.adapters.targets import INPUTS, Targets
from sdengine.loading import ModelPlan


def widened(plan: ModelPlan, loras: Sequence[Lora]) -> ModelPlan:
    """The plan of a model with the input that the LoRAs need; the same plan where they need none but its own.

    Raises:
        ParameterError, FormatError: a file is missing or damaged.
    """
    denoiser = plan.components[plan.family.denoiser]
    name = INPUTS.get(denoiser.kind)
    if name is None or not loras:
        return plan
    at = next(i for i, binding in enumerate(denoiser.bindings) if binding.name == name)
    rows, columns = denoiser.bindings[at].entry.shape
    targets = Targets(plan)
    wanted = max(_columns(targets, Path(lora.path), name) for lora in loras)
    if wanted <= columns or wanted % columns:
        return plan
    channels = denoiser.config["in_channels"] * wanted // columns
    config = {**denoiser.config, "in_channels": channels}
    if not plan.family.shape.fits(config):
        return plan
    entry = replace(denoiser.bindings[at].entry, shape=(rows, wanted))
    binding = replace(denoiser.bindings[at], entry=entry, padding=wanted - columns)
    bindings = (*denoiser.bindings[:at], binding, *denoiser.bindings[at + 1 :])
    variant = plan.family.variant(config)
    components = {
        **plan.components,
        denoiser.name: replace(denoiser, config=config, bindings=bindings),
    }
    plan = replace(plan, components=components)
    if variant is None:
        return plan
    defaults = replace(plan.defaults, **variant.defaults)
    return replace(plan, title=variant.title, task=variant.task, defaults=defaults)


def _columns(targets: Targets, path: Path, name: str) -> int:
    """Columns of the input that a file's LoRA reads; 0 if it leaves the input alone."""
    index, _ = open_adapter(path)
    for tensor, entry in index.tensors.items():
        found = split_name(tensor)
        if found is None or found[1] != ("low_rank", "down") or len(entry.shape) != 2:
            continue
        if any(f"{target.module}.weight" == name for target in targets.find(found[0])):
            return entry.shape[1]
    return 0
