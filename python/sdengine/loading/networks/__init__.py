"""Per kind of native network: its hyper-parameters from shapes and from a config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdengine.families import Family
from sdengine.loading.networks import autoencoder_kl, clip_text, unet
from sdengine.loading.networks.json_config import Json
from sdengine.loading.networks.shapes import Shapes


@dataclass(frozen=True)
class Network:
    """What Python knows about one kind of native network; the native module knows the rest."""

    from_shapes: Callable[[Shapes, Family], dict[str, Any]]
    """Hyper-parameters from the shapes of parameters under canonical names."""
    refine: Callable[[dict[str, Any], Json], dict[str, Any]]
    """The same with what only a config.json tells; contradictions raise WeightsError."""
    check: Callable[[Mapping[str, Any]], None]
    """Raises WeightsError for values that no such network can have."""
    untold: frozenset[str]
    """The hyper-parameters that no shape tells."""


NETWORKS: Mapping[str, Network] = {
    "unet": Network(unet.from_shapes, unet.refine, unet.check, unet.UNTOLD),
    "clip_text": Network(
        clip_text.from_shapes, clip_text.refine, clip_text.check, clip_text.UNTOLD
    ),
    "autoencoder_kl": Network(
        autoencoder_kl.from_shapes,
        autoencoder_kl.refine,
        autoencoder_kl.check,
        autoencoder_kl.UNTOLD,
    ),
}

__all__ = ["NETWORKS", "Network", "Shapes"]
