"""What a model family declares: plain data, and nothing that runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sdengine.families.settings import Betas, Defaults, Flow, LatentFormat, Prediction
from sdengine.keys import KeyTable

Config = Mapping[str, Any]
"""Hyper-parameters of one network, as the native module takes them."""
Task = Literal["text", "inpaint", "edit", "depth"]
"""What the denoiser takes beside noisy latents: nothing, a mask and a picture, a picture, or depths."""


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
    alternatives: tuple[Component, ...] = ()
    """Networks of other kinds that may stand in its place, under the same name; asked after it."""
    known: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters that no shape tells, where they are not those usual for the kind."""
    required: tuple[str, ...] = ()
    """Parameters (canonical names) that this family needs though the network is whole without."""
    optional: bool = False
    """A model works without it: a text encoder that is missing says nothing, in zeros."""
    ignored: tuple[str, ...] = ()
    """Patterns (``fnmatch``) of its names in files that have no use in this family."""

    def of_kind(self, kind: str) -> Component:
        """This component, or its alternative, of that kind; KeyError if there is none."""
        return {choice.kind: choice for choice in (self, *self.alternatives)}[kind]


@dataclass(frozen=True)
class Shape:
    """A test of a network's hyper-parameters: every named value is one of those listed."""

    allowed: Mapping[str, Collection[Any]]
    """Values of each, or a range."""

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
    markers: tuple[str, ...] = ()
    """Tensors, all of which mark this variant where shapes do not tell it."""
    latents: LatentFormat | None = None
    """Where they are not the family's."""
    prediction: Prediction | None = None
    """What it predicts, where that is not what the family does."""


@dataclass(frozen=True)
class PredictionTest:
    """Tells two members of the same shape apart where their file does not say what they predict."""

    parameter: str
    """Canonical name of a vector of the denoiser."""
    deviation: float
    """Above this standard deviation of the vector ..."""
    prediction: Prediction
    """... this is predicted, instead of what the family usually does."""
    shape: Shape
    """The hyper-parameters for which the test holds."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`Defaults` that differ for a member that predicts this."""


@dataclass(frozen=True)
class TextUse:
    """How a family reads one of its text encoders. What they make is joined in order."""

    component: str
    skip: int = 0
    """Layers left out at the end: 1 reads the last but one. ``clip_skip`` counts from here."""
    final_norm: bool = True
    """Whether the encoder's last norm is applied to the context."""
    pooled: bool = False
    """The pooled text is this encoder's (projected where it has a projection)."""
    pad: int | None = None
    """Token id that fills up a chunk; None is the tokenizer's own."""
    context: bool = True
    """Whether its states are part of the context; False for one that only pools."""
    segment: int = 0
    """Encoders of one segment stand side by side, along the width. The segments stand one behind the other, along the
    tokens; a narrower one is filled up with zeros."""
    length: int | None = None
    """Tokens that a language model's prompts are padded to; None is the layout's."""


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
    attention_heads: int | None = None
    """Heads per attention of the denoiser where the file does not say; tensors cannot tell. None
    is one per 64 channels."""
    text: tuple[TextUse, ...] = (TextUse("text_encoder"),)
    """How the text encoders are read."""
    size_conditioning: SizeConditioning | None = None
    empty_negative_is_zeros: bool = False
    """An empty negative prompt is not encoded: context and pooled text are zeros (diffusers' SDXL)."""
    flow: Flow | None = None
    """Of families whose prediction is "flow"; their betas have no use."""
    prediction_test: PredictionTest | None = None
    patch: int = 1
    """Latents per token of the denoiser along each axis: sizes are multiples of it."""
    starts_from_noise: bool = True
    """False for models that only improve what another one made."""
    resolutions: tuple[tuple[int, int], ...] = ()
    """Published (width, height) of the training pictures, from tall to wide; empty where none are."""
    variants: tuple[Variant, ...] = ()

    def component(self, name: str) -> Component:
        """The component of that name; KeyError if the family has none."""
        return {component.name: component for component in self.components}[name]

    def variant(
        self, config: Config, tensors: Collection[str] = (), title: object = None
    ) -> Variant | None:
        """The first variant that fits the denoiser's hyper-parameters and the file's tensors.

        A file that says the variant's `title` needs none of its markers.
        """
        fitting = (v for v in self.variants if v.shape.fits(config))
        return next(
            (v for v in fitting if v.title == title or all(m in tensors for m in v.markers)), None
        )
