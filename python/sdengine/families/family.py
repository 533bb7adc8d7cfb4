"""What a model family declares: plain data, and nothing that runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sdengine.families.naming import says, words
from sdengine.families.settings import (
    Betas,
    Defaults,
    Flow,
    LatentFormat,
    Prediction,
    References,
)
from sdengine.keys import KeyTable

Config = Mapping[str, Any]
"""Hyper-parameters of one network, as the native module takes them."""
Task = Literal["text", "inpaint", "edit", "depth", "control", "reference"]
"""What the denoiser takes beside noisy latents: nothing, a mask and a picture, a picture to edit, depths, a picture to
follow, or pictures to look at. What each reads is in `sdengine.picture_inputs`."""


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
    config: str = ""
    """The component whose config.json tells about it too; its own by default."""
    ignored: tuple[str, ...] = ()
    """Patterns (``fnmatch``) of its names in files that have no use in this family."""
    told_by: Mapping[str, Collection[Any]] = field(default_factory=dict)
    """Hyper-parameters -> values that tell it from other networks of its kind which have the same width."""

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
    names: tuple[str, ...] = ()
    """Regular expressions over the words of a model's names, one of which marks it where tensors do not either."""
    latents: LatentFormat | None = None
    """Where they are not the family's."""
    text: tuple[TextUse, ...] = ()
    """How its text encoders are read, where that is not the family's way."""
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
class Sight:
    """How a text encoder with eyes sees the references that the denoiser looks at."""

    component: str
    """The vision encoder."""
    layout: str
    """Kind of tokenizer with the layout of prompts that have pictures."""
    area: int
    """Pixels that a picture is brought to."""


CONTEXT = "context"
"""The denoiser's input that every family has for its texts."""


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
    sight: Sight | None = None
    """Of an encoder that sees pictures too."""
    feeds: str = CONTEXT
    """The denoiser's input that reads it. Those of :data:`CONTEXT` are joined; any other input has one encoder, and is
    as wide as the denoiser's hyper-parameter of its name with ``_width`` behind it."""
    masked: bool = False
    """A language model does not see its padding, and the denoiser has an input of the name above with ``_mask`` behind
    it: ``[N, tokens]``, 1 for a token of the text and 0 for padding."""
    lower_case: bool = False
    """A language model's texts are read in lower case, as those of its training were."""
    trimmed: bool = False
    """Padding is no part of a language model's context: every text has its own length, and what the denoiser does is
    what it does with a mask over the padding."""


@dataclass(frozen=True)
class SizeConditioning:
    """Numbers about the picture that the denoiser is told (SDXL, arXiv 2307.01952)."""

    names: tuple[str, ...]
    """In order; of original_height, original_width, crop_top, crop_left, target_height,
    target_width, aesthetic_score."""
    width: int = 256
    """Of the sinusoid that each becomes."""
    with_pooled: bool = True
    """They stand behind the pooled text, as sinusoids. Else the denoiser reads them as they are: its input `sizes`."""
    usual: Mapping[str, float] = field(default_factory=dict)
    """What is said where the caller says nothing, if that is not the picture's own size."""


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
    usual_negative: str = ""
    """What stands in the place of a negative prompt that is not given."""
    norms: Literal["token", "row"] | None = None
    """Norms that guidance leaves as they are for the prompt alone: of the denoiser's tokens, or of rows of latents."""
    flow: Flow | None = None
    """Of families whose prediction is "flow"; their betas have no use."""
    prediction_test: PredictionTest | None = None
    patch: int = 1
    """Latents per token of the denoiser along each axis: sizes are multiples of it."""
    mask_layout: Literal["shrunk", "folded"] = "shrunk"
    """How members with the task "inpaint" read a mask: one value per latent, before the picture's; or the pixels of a
    latent as channels, behind them."""
    draws_kept_image: bool = False
    """diffusers' inpainting pipeline draws for the image's latents though the run begins with noise alone."""
    references: References | None = None
    """How pictures to look at are brought to size; None for families that look at none."""
    prompt_prefix: str = ""
    """Stands before every prompt, and not before negative ones."""
    pipelines: tuple[str, ...] = ()
    """diffusers' pipelines whose folders hold this family, where its tensors are another one's too."""
    starts_from_noise: bool = True
    """False for models that only improve what another one made."""
    resolutions: tuple[tuple[int, int], ...] = ()
    """Published (width, height) of the training pictures, from tall to wide; empty where none are."""
    variants: tuple[Variant, ...] = ()

    def component(self, name: str) -> Component:
        """The component of that name; KeyError if the family has none."""
        return {component.name: component for component in self.components}[name]

    def variant(
        self,
        config: Config,
        tensors: Collection[str] = (),
        title: object = None,
        called: Collection[str] = (),
    ) -> Variant | None:
        """The first variant that fits the denoiser's hyper-parameters, the file's tensors and the model's names.

        A file that says the variant's `title` needs none of its markers and names.
        """

        def marked(variant: Variant) -> bool:
            if variant.names and not any(says(words(name), variant.names) for name in called):
                return False
            return all(marker in tensors for marker in variant.markers)

        fitting = (v for v in self.variants if v.shape.fits(config))
        return next((v for v in fitting if v.title == title or marked(v)), None)
