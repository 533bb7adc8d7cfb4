"""Which parameter of a model an adapter's module name means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sdengine.families import Component
from sdengine.keys import NameMap
from sdengine.keys.adapter_names import TABLES
from sdengine.loading import ComponentPlan, ModelPlan

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Where a module's rows lie in an adapter's module that several are fused in."""

    first: int
    count: int
    total: int


@dataclass(frozen=True)
class Target:
    """A module of the model, or one of several that the file's module is fused from."""

    component: str
    module: str
    """Canonical name."""
    rows: Rows | None = None
    """The adapter's rows that are this module's; None where all are."""


# Prefixes of names whose dots have become underscores (kohya, OneTrainer, SimpleTuner), each with the text encoder
# that it means; the others are the denoiser's.
_FLAT_DENOISER = ("lora_unet_", "lora_transformer_", "lycoris_unet_", "lycoris_")
_FLAT_ENCODERS = {
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
_DENOISER = ("unet.", "transformer.", "model.diffusion_model.", "diffusion_model.")
# What the names of text encoders' modules begin with.
_TEXT = ("lora_te", "text_encoder", "text_model.", "te1.", "te2.", "clip_l.", "clip_g.", "t5xxl.")
# What wraps a module without being part of its name: PEFT's model, the attention processors of old diffusers.
_WRAPPERS = ("base_model.model.", "processor.")
# Old diffusers calls the projections of every attention alike.
_ALIASES = (
    (".to_out.0", ".to_out"),
    (".q_proj", ".to_q"),
    (".k_proj", ".to_k"),
    (".v_proj", ".to_v"),
    (".out_proj", ".to_out"),
)


INPUTS = {"flux": "x_embedder.weight"}
"""Kind of network -> the weight that reads its input, whose columns are a multiple of the config's in_channels."""


class Targets:
    """The modules of a model under every name that adapters give them."""

    def __init__(self, plan: ModelPlan) -> None:
        self.shapes: dict[str, dict[str, Shape]] = {}
        """Component -> canonical parameter name -> shape."""
        self._dotted: dict[str, dict[str, list[Target]]] = {}
        self._flat: dict[str, dict[str, list[Target]]] = {}
        self._parameters: dict[str, dict[str, str]] = {}
        self.denoiser = plan.family.denoiser
        self.input = (self.denoiser, INPUTS.get(plan.components[self.denoiser].kind))
        """Component and name of the weight that LoRAs may widen; no name where there is none."""
        self._prefixes: list[tuple[str, str, bool]] = []
        encoders = [use.component for use in plan.family.text]
        for name in (plan.family.denoiser, *encoders):
            part = plan.components[name]
            component = plan.family.component(name).of_kind(part.kind)
            self.shapes[name] = {b.name: b.entry.shape for b in part.bindings}
            self._dotted[name] = _spellings(component, part)
            self._parameters[name] = _parameters(component, part)
            self._flat[name] = {
                spelling.replace(".", "_"): targets
                for spelling, targets in reversed(self._dotted[name].items())
            }
            dotted = {f"{name}.", *(p.replace("/", ".") for p in component.prefixes)}
            dotted |= set(_DENOISER) if name == plan.family.denoiser else set()
            self._prefixes += [(prefix, name, False) for prefix in dotted]
        self._prefixes += [(prefix, plan.family.denoiser, True) for prefix in _FLAT_DENOISER]
        for prefix, meant in _FLAT_ENCODERS.items():
            # The number counts encoders differently in different programs: the names decide in the end.
            order = sorted(encoders, key=lambda encoder: encoder != meant)
            self._prefixes += [(prefix, encoder, True) for encoder in order]
        # Sorting is stable: among equal prefixes the denoiser comes first.
        self._prefixes.sort(key=lambda entry: -len(entry[0]))

    def find(self, module: str) -> list[Target]:
        """The modules that a name in a file means: one, several where it is fused, none if it is not known."""
        for component, name, flat in self._readings(module):
            names = self._flat[component] if flat else self._dotted[component]
            if found := names.get(name):
                return found
        return []

    def parameter(self, name: str) -> tuple[str, str] | None:
        """(component, canonical name) if a tensor's whole name is that of one of the model's vectors."""
        for component, rest, flat in self._readings(name):
            if not flat and (found := self._parameters[component].get(rest)):
                return component, found
        return None

    def _readings(self, name: str) -> Iterator[tuple[str, str, bool]]:
        """(component, name below its prefix, dots are underscores) in every way that a name can be read."""
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        for prefix, component, flat in self._prefixes:
            if name.startswith(prefix):
                yield component, name[len(prefix) :], flat


def is_of_text(module: str) -> bool:
    """True if a module's name in a file says that it is part of a text encoder."""
    return module.startswith(_TEXT)


def _spellings(component: Component, part: ComponentPlan) -> dict[str, list[Target]]:
    """Every name of a component's modules, the canonical ones first."""
    modules = dict.fromkeys(_module(b.name) for b in part.bindings)
    names = {module: [Target(part.name, module)] for module in modules}
    for module in modules:
        for ending, alias in _ALIASES:
            if module.endswith(ending):
                names.setdefault(module[: -len(ending)] + alias, names[module])
    heights = {_module(b.name): b.entry.shape[0] for b in part.bindings if b.entry.shape}
    for table in (*component.tables, *TABLES.get(part.kind, ())):
        fused: dict[str, dict[str, int]] = {}
        for module, spelling, index in _translated(NameMap.of_network(table, part.config), part):
            if index is None:
                names.setdefault(spelling, [Target(part.name, module)])
            else:
                fused.setdefault(spelling, {})[module] = index
        for spelling, indices in fused.items():
            names.setdefault(spelling, _parted(part.name, indices, heights))
    return names


def _parted(component: str, indices: Mapping[str, int], heights: Mapping[str, int]) -> list[Target]:
    """The modules that are fused in one, each with its rows; indices count in blocks of their own height."""
    total = sum(heights[module] for module in indices)
    targets = []
    for module, index in indices.items():
        height = heights[module]
        first = index * height + (total if index < 0 else 0)
        targets.append(Target(component, module, Rows(first, height, total)))
    return sorted(targets, key=lambda target: target.rows.first if target.rows else 0)


def _translated(names: NameMap, part: ComponentPlan) -> Iterator[tuple[str, str, int | None]]:
    """(canonical module, module in a dialect, its block of rows or None) of every weight."""
    for binding in part.bindings:
        if not binding.name.endswith(".weight"):
            continue
        for there in names.to_file(binding.name):
            if there.transpose:
                continue  # stored in a form that no adapter is published for
            spelling = there.name.removesuffix("weight").rstrip("._")
            yield _module(binding.name), spelling, there.part[0] if there.part else None


def _parameters(component: Component, part: ComponentPlan) -> dict[str, str]:
    """Every name of a component's vectors -> the canonical one."""
    vectors = [b.name for b in part.bindings if len(b.entry.shape) == 1]
    names = {name: name for name in vectors}
    for table in component.tables:
        translation = NameMap.of_network(table, part.config)
        for name in vectors:
            for there in translation.to_file(name):
                if there.part is None:
                    names.setdefault(there.name, name)
    return names


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
