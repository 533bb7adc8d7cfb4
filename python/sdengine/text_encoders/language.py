"""Language models and T5 as text encoders: prompts whole, in the family's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdengine import _core, prompt
from sdengine.errors import ParameterError
from sdengine.families import TextUse
from sdengine.loading import ComponentPlan
from sdengine.stores import make_store
from sdengine.text_encoders.base import EncodedText
from sdengine.tokenizers.padding import PaddedTokens, PromptFormat, pad_prompts
from sdengine.tokenizers.text import TextTokenizer


@dataclass
class WholeReading:
    """A text that a language model reads whole, in the family's own layout."""

    tokens: PaddedTokens
    length: int = 1

    def padded(self, count: int) -> WholeReading:
        """Itself: its layout has padded it."""
        return self


class LanguageModelEncoder:
    """A language model, read as its family reads it. Prompts are cut at the layout's length."""

    def __init__(
        self,
        plan: ComponentPlan,
        use: TextUse,
        tokenizer: TextTokenizer,
        layout: PromptFormat,
        device: _core.Device,
        weight_type: str | None = None,
    ) -> None:
        self.config: Mapping[str, Any] = plan.config
        if use.length is not None:
            layout = replace(layout, length=use.length)
        self.use, self.tokenizer, self.layout = use, tokenizer, layout
        # T5 is an encoder: it reads its padding, and knows positions by itself.
        self.decodes = plan.kind == "decoder_text"
        self.network = _core.Network(
            plan.kind, dict(plan.config), make_store(plan, weight_type), device
        )

    def read(self, text: str, weighting: str) -> WholeReading:
        """A text without its weights: these models know none, so brackets and weights are dropped.

        With ``"diffusers"`` the text is taken as it stands.
        """
        if weighting != "diffusers":
            text = " ".join(s.text.strip() for s in prompt.parse(text, weighting)).strip()
        return WholeReading(pad_prompts(self.tokenizer, [text], self.layout))

    def encode(
        self,
        readings: Sequence[WholeReading],
        clip_skip: int | None,
        weighting: str,
        cancel: _core.CancelToken | None,
    ) -> list[EncodedText]:
        """Texts to contexts ``[length, width]`` and, where the family pools, the last token's state."""
        if clip_skip is not None:
            raise ParameterError("clip_skip is for CLIP text encoders; this model has none")
        return [self._one(reading.tokens, cancel) for reading in readings]

    def _one(self, tokens: PaddedTokens, cancel: _core.CancelToken | None) -> EncodedText:
        """One text at a time, for a language model's states are large."""
        if not self.decodes:
            return EncodedText(self.network.run({"ids": tokens.ids}, {}, cancel)["hidden"][0])
        inputs = {"ids": tokens.ids, "positions": tokens.positions, "mask": tokens.mask}
        options = {
            "skip": self.use.skip,
            "final_norm": int(self.use.final_norm),
            "last": int(self.use.pooled),
        }
        made = self.network.run(inputs, options, cancel)
        return EncodedText(made["hidden"][0], made["last"][0] if self.use.pooled else None)


class AbsentEncoder:
    """In the place of an encoder that the model was loaded without: it says nothing, in zeros.

    So diffusers runs Stable Diffusion 3 without its T5.
    """

    network: _core.Network | None = None

    def __init__(self, use: TextUse, layout: PromptFormat) -> None:
        self.use, self.length = use, use.length or layout.length
        self.tokenizer = None

    def read(self, text: str, weighting: str) -> AbsentReading:
        """Nothing."""
        return AbsentReading()

    def encode(
        self,
        readings: Sequence[AbsentReading],
        clip_skip: int | None,
        weighting: str,
        cancel: _core.CancelToken | None,
    ) -> list[EncodedText]:
        """Zeros one column wide; they are filled up to the width of the context."""
        return [EncodedText(np.zeros((self.length, 1), np.float32))] * len(readings)


@dataclass
class AbsentReading:
    """A text that nobody reads."""

    length: int = 1

    def padded(self, count: int) -> AbsentReading:
        """Itself."""
        return self
