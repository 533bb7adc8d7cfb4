"""Which parameter of a model an adapter's module name means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sdengine.families import Component
from sdengine.keys import NameMap
from sdengine.loading import ComponentPlan, ModelPlan

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """A module of the model, or one of several that the file's module is fused from."""

    component: str
    module: str
    """Canonical name."""
    part: tuple[int, int] | None = None
    """(index, count): the module is row block `index` of the `count` in the adapter's module."""


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


class Targets:
    """The modules of a model under every name that adapters give them."""

    def __init__(self, plan: ModelPlan) -> None:
        self.shapes: dict[str, dict[str, Shape]] = {}
        """Component -> canonical parameter name -> shape."""
        self._dotted: dict[str, dict[str, list[Target]]] = {}
        self._flat: dict[str, dict[str, list[Target]]] = {}
        self._prefixes: list[tuple[str, str, bool]] = []
        encoders = [use.component for use in plan.family.text]
        for name in (plan.family.denoiser, *encoders):
            part = plan.components[name]
            component = plan.family.component(name).of_kind(part.kind)
            self.shapes[name] = {b.name: b.entry.shape for b in part.bindings}
            self._dotted[name] = _spellings(component, part)
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
        for wrapper in _WRAPPERS:
            module = module.replace(wrapper, "")
        for prefix, component, flat in self._prefixes:
            if not module.startswith(prefix):
                continue
            names = self._flat[component] if flat else self._dotted[component]
            if found := names.get(module[len(prefix) :]):
                return found
        return []


def _spellings(component: Component, part: ComponentPlan) -> dict[str, list[Target]]:
    """Every name of a component's modules, the canonical ones first."""
    modules = dict.fromkeys(_module(b.name) for b in part.bindings)
    names = {module: [Target(part.name, module)] for module in modules}
    for module in modules:
        for ending, alias in _ALIASES:
            if module.endswith(ending):
                names.setdefault(module[: -len(ending)] + alias, names[module])
    for table in component.tables:
        fused: dict[str, dict[int, Target]] = {}
        for module, spelling, index, count in _translated(
            NameMap.of_network(table, part.config), part
        ):
            if count is None:
                names.setdefault(spelling, [Target(part.name, module)])
            else:
                target = Target(part.name, module, (index, count))
                fused.setdefault(spelling, {})[index] = target
        for spelling, parts in fused.items():
            names.setdefault(spelling, [parts[index] for index in sorted(parts)])
    return names


def _translated(names: NameMap, part: ComponentPlan) -> Iterator[tuple[str, str, int, int | None]]:
    """(canonical module, module in a dialect, block, blocks or None) of every weight."""
    for binding in part.bindings:
        if not binding.name.endswith(".weight"):
            continue
        for there in names.to_file(binding.name):
            if there.transpose or (there.part is not None and there.part[1] is None):
                continue  # stored in a form that no adapter is published for
            spelling = there.name.removesuffix("weight").rstrip("._")
            index, count = there.part or (0, None)
            yield _module(binding.name), spelling, index, count


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
