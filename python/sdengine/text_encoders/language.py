"""Language models and T5 as text encoders: prompts whole, in the family's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from sdengine import _core, prompt
from sdengine.errors import ParameterError, WeightsError
from sdengine.families import TextUse
from sdengine.loading import ComponentPlan
from sdengine.stores import make_store
from sdengine.text_encoders.base import EncodedText
from sdengine.text_encoders.sight import Eyes, Seen, with_pictures
from sdengine.tokenizers.padding import PaddedTokens, PromptFormat, pad_prompts
from sdengine.tokenizers.text import TextTokenizer


@dataclass
class WholeReading:
    """A text that a language model reads whole, in the family's own layout."""

    tokens: PaddedTokens
    length: int = 1
    seen: tuple[Seen, ...] = ()
    """The pictures of its text."""

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
        eyes: Eyes | None = None,
        sighted: PromptFormat | None = None,
    ) -> None:
        self.eyes, self.sighted = eyes, sighted
        self.config: Mapping[str, Any] = plan.config
        if use.length is not None:
            layout = replace(layout, length=use.length)
        self.use, self.tokenizer, self.layout = use, tokenizer, layout
        # T5 and BERT are encoders, and know positions by themselves.
        self.decodes = plan.kind == "decoder_text"
        self.network = _core.Network(
            plan.kind, dict(plan.config), make_store(plan, weight_type), device
        )

    def look(
        self, pictures: Sequence[Image.Image], cancel: _core.CancelToken | None
    ) -> tuple[Seen, ...]:
        """Pictures of mode RGB as the model reads them among words; none where it has no use for them.

        Raises:
            WeightsError: the model was loaded without its vision encoder.
            ParameterError: a picture is too thin.
        """
        sight = self.use.sight
        if sight is None or not pictures:
            return ()
        if self.eyes is None:
            raise WeightsError(
                "this model's text encoder sees the pictures that are given, and was loaded without its"
                f" {sight.component}: load the model with text_encoders=[the language model, its mmproj"
                " file], or with the safetensors file or folder that holds both"
            )
        seen = tuple(self.eyes.see(picture, sight.area, cancel) for picture in pictures)
        self.eyes.network.rest()  # not read again until the next pictures
        return seen

    def read(self, text: str, weighting: str, seen: tuple[Seen, ...] = ()) -> WholeReading:
        """A text without its weights: these models know none, so brackets and weights are dropped.

        With ``"diffusers"`` the text is taken as it stands. `seen` are the pictures in front of it.
        """
        if weighting != "diffusers" and not text.isspace():
            text = " ".join(s.text.strip() for s in prompt.parse(text, weighting)).strip()
        if self.use.lower_case:
            text = text.lower().strip()
        layout = self.layout
        if seen:
            assert self.sighted is not None
            layout = self.sighted
            shown = (layout.picture.replace("{}", str(i + 1)) for i in range(len(seen)))
            text = "".join(shown) + text
        tokens = pad_prompts(self.tokenizer, [text], layout)
        return WholeReading(tokens.trimmed() if self.use.trimmed else tokens, seen=seen)

    def encode(
        self,
        readings: Sequence[WholeReading],
        clip_skip: int | None,
        weighting: str,
        cancel: _core.CancelToken | None,
    ) -> list[EncodedText]:
        """Texts to contexts ``[length, width]`` and, where the family pools, the last token's state.

        The length is the layout's, or each text's own where the family trims them.
        """
        if clip_skip is not None:
            raise ParameterError("clip_skip is for CLIP text encoders; this model has none")
        return [self._one(reading, cancel) for reading in readings]

    def _one(self, reading: WholeReading, cancel: _core.CancelToken | None) -> EncodedText:
        """One text at a time, for a language model's states are large."""
        tokens = reading.tokens
        if not self.decodes:
            given = {"ids": tokens.ids, **({"mask": tokens.mask} if self.use.masked else {})}
            hidden = self.network.run(given, {}, cancel)["hidden"][0]
            mask = {"mask": tokens.mask[0].astype(np.float32)} if self.use.masked else {}
            return EncodedText(hidden, inputs=mask)
        inputs: dict[str, Any] = {
            "ids": tokens.ids,
            "positions": tokens.positions,
            "mask": tokens.mask,
        }
        layout = self.layout
        if reading.seen:
            assert self.sighted is not None
            layout, inputs = self.sighted, self._among_pictures(reading)
        options = {
            "skip": self.use.skip,
            "final_norm": int(self.use.final_norm),
            "last": int(self.use.pooled),
        }
        made = self.network.run(inputs, options, cancel)
        hidden = made["hidden"][0, layout.dropped :]
        return EncodedText(hidden, made["last"][0] if self.use.pooled else None)

    def _among_pictures(self, reading: WholeReading) -> dict[str, Any]:
        """The model's inputs for a text with pictures."""
        vocabulary = self.config["vocab_size"]
        tokens = with_pictures(reading.tokens.ids, self.tokenizer, reading.seen, vocabulary)
        names = ("positions", "positions_y", "positions_x")
        return {
            "ids": tokens.ids,
            "learned": np.concatenate([picture.tokens for picture in reading.seen]),
            **dict(zip(names, tokens.positions, strict=True)),
        }


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
