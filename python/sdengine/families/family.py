"""What a model family declares: plain data, and nothing that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sdengine.families.settings import Betas, Defaults, LatentFormat, Prediction
from sdengine.keys import KeyTable

Config = Mapping[str, Any]
"""Hyper-parameters of one network, as the native module takes them."""
Task = Literal["text", "inpaint", "edit"]
"""What the denoiser takes beside noisy latents: nothing, a mask and a picture, or a picture."""


@dataclass(frozen=True)
class Component:
    """One network of a family, and where files keep it."""

    name: str
    """The component's name in a diffusers folder and everywhere in sdengine."""
    title: str
    """In words, to follow "this is"."""
    kind: str
    """The native network: a key of `sdengine.loading.networks.NETWORKS`."""
    prefixes: tuple[str, ...]
    """What may stand before a parameter's name in a file, in the order of search."""
    tables: tuple[KeyTable, ...]
    """The dialects of its parameter names, in the order of search."""
    argument: str
    """The argument of `sdengine.load` that takes a file with this component alone."""
    written: tuple[str, str]
    """(prefix, table name) under which `convert` writes it."""


@dataclass(frozen=True)
class Shape:
    """A test of a network's hyper-parameters: every named value is one of those listed."""

    allowed: Mapping[str, tuple[Any, ...]]

    def fits(self, config: Config) -> bool:
        """True if each named hyper-parameter has an allowed value."""
        return all(config.get(key) in values for key, values in self.allowed.items())


@dataclass(frozen=True)
class Variant:
    """A member of a family that needs other defaults, or does another task."""

    title: str
    shape: Shape
    task: Task = "text"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`Defaults` that differ from the family's."""


@dataclass(frozen=True)
class TextUse:
    """How a family reads one of its text encoders. The contexts are joined along their width, in order."""

    component: str
    skip: int = 0
    """Layers left out at the end: 1 reads the last but one. ``clip_skip`` counts from here."""
    final_norm: bool = True
    """Whether the encoder's last norm is applied to the context."""
    pooled: bool = False
    """The pooled text is this encoder's (projected where it has a projection)."""
    pad: int | None = None
    """Token id that fills up a chunk; None is the tokenizer's own."""


@dataclass(frozen=True)
class SizeConditioning:
    """Numbers about the picture that the denoiser is told, behind the pooled text (SDXL, arXiv 2307.01952)."""

    names: tuple[str, ...]
    """In order; of original_height, original_width, crop_top, crop_left, target_height,
    target_width, aesthetic_score."""
    width: int = 256
    """Of the sinusoid that each becomes."""


@dataclass(frozen=True)
class Family:
    """Models that are loaded and sampled the same way."""

    name: str
    title: str
    denoiser: str
    """Name of the component that predicts; its shape is the family's signature."""
    shape: Shape
    components: tuple[Component, ...]
    tokenizers: Mapping[str, str]
    """Text encoder component -> kind of tokenizer."""
    latents: LatentFormat
    betas: Betas
    prediction: Prediction
    defaults: Defaults
    attention_heads: int
    """Heads per attention of the denoiser where the file does not say; tensors cannot tell."""
    text: tuple[TextUse, ...] = (TextUse("text_encoder"),)
    """How the text encoders are read."""
    size_conditioning: SizeConditioning | None = None
    empty_negative_is_zeros: bool = False
    """An empty negative prompt is not encoded: context and pooled text are zeros (diffusers' SDXL)."""
    variants: tuple[Variant, ...] = ()

    def component(self, name: str) -> Component:
        """The component of that name; KeyError if the family has none."""
        return {component.name: component for component in self.components}[name]

    def variant(self, config: Config) -> Variant | None:
        """The first variant whose shape fits the denoiser's hyper-parameters."""
        return next((v for v in self.variants if v.shape.fits(config)), None)
