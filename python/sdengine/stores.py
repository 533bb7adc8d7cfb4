"""The weights of a component, registered with the native store."""

from __future__ import annotations

from . import _core
from .loading import ComponentPlan
from .loading.weight_types import choose_type


def make_store(plan: ComponentPlan, weight_type: str | None = None) -> _core.WeightStore:
    """Register every parameter of a component; no weight is read yet.

    With `weight_type`, parameters are held in the type that ``convert`` would write them in.
    """
    store = _core.WeightStore()
    for binding in plan.bindings:
        entry, convert_to = binding.entry, None
        if weight_type is not None and len(entry.shape) > 1:
            convert_to = choose_type(f"{plan.name}.{binding.name}", entry.shape, weight_type).dtype
        store.add(
            binding.name,
            entry.dtype,
            list(entry.shape),
            entry.path,
            entry.offset,
            entry.nbytes,
            strides=None if entry.strides is None else list(entry.strides),
            transpose=binding.transpose,
            convert_to=convert_to,
            padding=binding.padding,
            scale=entry.scale,
        )
    return store
