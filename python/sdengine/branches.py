"""From prompts to the branches that the denoiser evaluates at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import _core, prompt
from .conditioning import Conditioning, Lengths, class_embedding, stack_texts
from .errors import ParameterError
from .families import SizeConditioning
from .image_prompt import ContextTokens, PictureTokens
from .text_encoders import EncodedText

Array = NDArray[np.float32]
Role = Literal["positive", "negative", "image"]
Condition = tuple[dict[str, Array], Lengths]
"""The denoiser's inputs, and the lengths of their contexts."""


@dataclass(frozen=True)
class Branch:
    """One evaluation of the denoiser: its inputs besides latents and time, each with N entries."""

    role: Role
    inputs: Mapping[str, Array]
    weight: float = 1.0
    extra_channels: Array | None = None
    """``[N, E, h, w]``, behind the latents' channels."""
    lengths: Lengths = None
    """Tokens of each picture's context, where they differ: the denoiser reads no more."""

    def native(self) -> _core.Branch:
        """The same for the native run."""
        return _core.Branch(
            self.role, dict(self.inputs), self.weight, self.extra_channels, self.lengths
        )


Phases = list[tuple[int, list[Branch]]]
"""``(last step, branches)`` in order."""


@dataclass(frozen=True)
class Told:
    """What the denoiser is told besides the text; everything may be absent."""

    size_layout: SizeConditioning | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)
    negative_sizes: Mapping[str, float] = field(default_factory=dict)
    guidance: Mapping[str, Array] = field(default_factory=dict)
    """The strength of guidance, as the input of a model that was distilled with it."""
    picture: Array | None = None
    """``[N, E, h, w]``: what inpainting, editing and depth models read behind the latents."""
    picture_tokens: PictureTokens | ContextTokens | None = None
    drops_picture: bool = False
    """The negative branch reads zeros in place of the picture, and one more branch reads the
    picture without the text (InstructPix2Pix, Brooks et al. 2023, arXiv 2211.09800)."""
    references: tuple[Array, ...] = ()
    """Latents of pictures to look at, each ``[N, C, any, any]``; every branch sees them."""

    def inputs(
        self, context: Array, pooled: Array | None, texts: Mapping[str, Array], negative: bool
    ) -> dict[str, Array]:
        """The denoiser's inputs by name; `texts` are further ones of the prompts."""
        given = {"context": context, **texts}
        sizes = self.negative_sizes if negative else self.sizes
        if self.size_layout is not None and not self.size_layout.with_pooled:
            row = np.array([[sizes[name] for name in self.size_layout.names]], np.float32)
            given["sizes"] = np.repeat(row, len(context), axis=0)
        elif self.size_layout is not None:
            if pooled is None:
                raise ParameterError(
                    "this model reads the whole text as one vector too; give the conditioning that"
                    " its own encode_prompt() returns"
                )
            given["class_embedding"] = class_embedding(pooled, sizes, self.size_layout)
        elif pooled is not None:
            given["pooled"] = pooled
        for i, latents in enumerate(self.references):
            given[f"reference_{i}" if i else "reference"] = latents
        if self.picture_tokens is not None:
            given.update(self.picture_tokens.inputs(context, negative))
        return {**given, **self.guidance}


def from_script(
    script: prompt.Script,
    encoded: Mapping[prompt.Text, EncodedText],
    told: Told,
    guided: bool,
) -> Phases:
    """The branches of every phase of a script; without negative ones if not `guided`."""

    def of_texts(texts: Sequence[prompt.Text], negative: bool) -> Condition:
        context, pooled, lengths, further = stack_texts([encoded[text] for text in texts])
        return told.inputs(context, pooled, further, negative), lengths

    phases: Phases = []
    made: dict[object, list[Branch]] = {}  # prompts that alternate come back to the same texts
    for phase in script.phases:
        key = (phase.parts, phase.negatives)
        if key in made:
            phases.append((phase.until_step, made[key]))
            continue
        positive = [(of_texts(part.texts, False), part.weight) for part in phase.parts]
        negative = of_texts(phase.negatives, True) if guided else None
        made[key] = _branches(positive, negative, told)
        phases.append((phase.until_step, made[key]))
    return phases


def from_conditioning(cond: Conditioning, steps: int, told: Told, guided: bool) -> Phases:
    """The branches of a run that reads one conditioning from its first step to its last."""
    negative = None
    if guided:
        if cond.negative_context is None:
            raise ParameterError(
                "guidance needs a negative conditioning; encode a negative prompt too, or set guidance_scale=1"
            )
        inputs = told.inputs(
            cond.negative_context, cond.negative_pooled, cond.negative_inputs, True
        )
        negative = inputs, cond.negative_lengths
    own = told.inputs(cond.context, cond.pooled, cond.inputs, False)
    positive = [((own, cond.lengths), 1.0)]
    return [(steps, _branches(positive, negative, told))]


def _branches(
    positive: list[tuple[Condition, float]],
    negative: Condition | None,
    told: Told,
) -> list[Branch]:
    branches = [
        Branch("positive", inputs, weight, told.picture, lengths)
        for (inputs, lengths), weight in positive
    ]
    if negative is None:
        return branches
    inputs, lengths = negative
    nothing = told.picture
    if told.picture is not None and told.drops_picture:
        branches.append(Branch("image", inputs, 1.0, told.picture, lengths))
        nothing = np.zeros_like(told.picture)
    return [*branches, Branch("negative", inputs, 1.0, nothing, lengths)]
