"""ControlNets that are stored as changes of the base model's own weights: Control-LoRA, and difference files.

Stability AI's Control-LoRA (stabilityai/control-lora) holds what a ControlNet has besides a UNet's way down, and a
low-rank pair ``X.up``, ``X.down`` for each weight X of the way down. A file with a tensor ``difference``
(lllyasviel/ControlNet's tool_transfer_control.py) holds the difference of every tensor of the way down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdengine import _core
from sdengine.errors import ParameterError, WeightsError
from sdengine.families.control import CONTROLNET
from sdengine.formats import TensorEntry, TensorIndex
from sdengine.keys import NameMap, count_at
from sdengine.keys.controlnet import LDM
from sdengine.loading.bind import Binding, fit
from sdengine.loading.locate import Source
from sdengine.loading.networks import NETWORKS, Shapes
from sdengine.loading.plan import ComponentPlan, ModelPlan

_MARKERS = {
    "lora_controlnet": "a Control-LoRA",
    "difference": "the difference between a ControlNet and its base model",
    "control_model.difference": "the difference between a ControlNet and its base model",
}
_PREFIX = "control_model."
_REPORTED = 3  # faults per message
# The parts of a UNet that a ControlNet has not.
_WAY_UP = ("up_blocks.", "conv_norm_out.", "conv_out.")


def title_of_changes(index: TensorIndex) -> str | None:
    """What the file is, if it holds changes of a base model's weights; None for others."""
    return next((title for name, title in _MARKERS.items() if name in index.tensors), None)


@dataclass
class _Contents:
    """The tensors of the file under canonical names."""

    whole: dict[str, TensorEntry] = field(default_factory=dict)
    pairs: dict[str, dict[str, TensorEntry]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def plan_over_base(index: TensorIndex, model: ModelPlan) -> tuple[ComponentPlan, _core.Adapter]:
    """The ControlNet over the base model's weights, and the changes to apply to it.

    Args:
        index: a file for which :func:`title_of_changes` has a title.
        model: the model that it is to steer, and whose weights it changes.

    Raises:
        ParameterError: the file was made for another base model; the message says where they differ.
        WeightsError: parts of it are missing.
    """
    title, denoiser = title_of_changes(index), model.components[model.family.denoiser]
    if denoiser.kind != "unet":
        raise ParameterError(
            f"{index.path} is {title} for a UNet, and {model.title} has none: it changes the weights of"
            " the base model that it was made for"
        )
    base = {b.name: b for b in denoiser.bindings if not b.name.startswith(_WAY_UP)}
    contents = _read(index, denoiser)
    shapes = {name: binding.entry.shape for name, binding in base.items()}
    shapes |= {name: entry.shape for name, entry in contents.whole.items() if name not in base}
    network = NETWORKS[CONTROLNET.kind]
    found = network.from_shapes(Shapes(shapes), model.family)
    config = {**found, **{key: denoiser.config[key] for key in found if key in denoiser.config}}
    network.check(config)
    expected = dict(_core.parameters(CONTROLNET.kind, config))
    faults = [f"{name!r} is no part of a ControlNet over it" for name in contents.unknown]
    if config["in_channels"] != model.latents.channels:
        faults.append(f"it reads {config['in_channels']} channels instead of latents alone")
    adapter, bindings = _core.Adapter(), []
    difference = "lora_controlnet" not in index.tensors
    for name, shape in expected.items():
        entry, ours = contents.whole.get(name), base.get(name)
        try:
            if ours is not None and (entry is None or difference):
                bindings.append(ours)
                changes = {"value": entry} if entry is not None else contents.pairs.pop(name, {})
                _add(adapter, name, shape, changes)
            elif entry is not None:
                bindings.append(Binding(name, fit(Source(name, entry, None, False), shape)))
            else:
                faults.append(f"{name!r} is missing")
        except WeightsError as error:
            faults.append(str(error))
    faults += [f"{name!r} is changed but not there" for name in contents.pairs]
    if faults:
        shown = "; ".join(faults[:_REPORTED])
        more = f"; and {len(faults) - _REPORTED} more" if len(faults) > _REPORTED else ""
        raise ParameterError(
            f"{index.path} is {title} for another base model than {model.title}: {shown}{more}. It changes the"
            " weights of the model that it was made for: load that one"
        )
    plan = ComponentPlan(
        CONTROLNET.name, CONTROLNET.kind, config, tuple(bindings), index.path, LDM.name
    )
    return plan, adapter


def _read(index: TensorIndex, denoiser: ComponentPlan) -> _Contents:
    """The file's tensors, translated with the numbering of the base model's blocks."""
    tensors = {
        name.removeprefix(_PREFIX): entry
        for name, entry in index.tensors.items()
        if name not in _MARKERS
    }
    hints = sum(name.startswith("input_hint_block.") for name in tensors) // 2
    blocks = max(0, hints - 2) // 2
    layers = denoiser.config["layers_per_block"]
    names = NameMap(
        LDM,
        {
            **LDM.variables_of(
                {"layers_per_block": layers, "hint_block_channels": [0] * (blocks + 1)}
            ),
            "n": range(count_at(tensors, "zero_convs.")),
        },
    )
    contents = _Contents()
    for name, entry in tensors.items():
        module, _, part = name.rpartition(".")
        is_pair = part in ("up", "down")
        canonical = [m.name for m in names.to_canonical(f"{module}.weight" if is_pair else name)]
        if not canonical:
            contents.unknown.append(name)
        elif is_pair:
            contents.pairs.setdefault(canonical[0], {})[part] = entry
        else:
            contents.whole[canonical[0]] = entry
    return contents


def _add(
    adapter: _core.Adapter,
    name: str,
    shape: tuple[int, ...],
    changes: Mapping[str, TensorEntry],
) -> None:
    if changes:
        kind = "add" if "value" in changes else "low_rank"
        adapter.add(name, shape, kind, {role: entry.place for role, entry in changes.items()})
