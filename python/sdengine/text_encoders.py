"""A model's text encoders with their tokenizers: texts in, what the denoiser reads out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _core, prompt
from .errors import ParameterError, WeightsError
from .families import TextUse
from .loading import ComponentPlan
from .stores import make_store
from .tokenizers import ClipTokenizer
from .tokenizers.padding import PaddedTokens, PromptFormat, pad_prompts
from .tokenizers.text import TextTokenizer

Array = NDArray[np.float32]
Ids = NDArray[np.int32]
MAX_BATCH = 64
COMFYUI_KEEPS_WHOLE = 8
"""ComfyUI does not cut a stretch of fewer tokens than this at the end of a chunk."""

Text = tuple[str, ...]
"""What each text encoder reads, in the family's order."""


@dataclass(frozen=True)
class EncodedText:
    """One text as the denoiser reads it.

    Attributes:
        context: float32 ``[tokens, width]``; several encoders side by side.
        pooled: float32 ``[width]``, the whole text as one vector; None where the family reads none.
    """

    context: Array
    pooled: Array | None = None


class Reading(Protocol):
    """A text as an encoder reads it."""

    @property
    def length(self) -> int:
        """Number of chunks."""

    def padded(self, count: int) -> Any:
        """The same with `count` chunks."""


R = TypeVar("R", bound=Reading)


class Encoder(Protocol[R]):
    """A text encoder with its tokenizer."""

    use: TextUse
    tokenizer: Any

    @property
    def network(self) -> _core.Network | None:
        """The native network, if there is one."""

    def read(self, text: str, weighting: str) -> R:
        """A text, in the notation of a weighting rule."""

    def encode(
        self,
        readings: Sequence[R],
        clip_skip: int | None,
        weighting: str,
        cancel: _core.CancelToken | None,
    ) -> list[EncodedText]:
        """Texts of equal length as the denoiser reads them."""


@dataclass
class ClipReading:
    """Chunks of tokens; compel's rule mixes several versions of a text, by their shares."""

    chunks: list[prompt.Chunks]
    shares: list[float] = field(default_factory=lambda: [1.0])

    @property
    def length(self) -> int:
        """Chunks of the longest version."""
        return max(map(len, self.chunks))

    def padded(self, count: int) -> ClipReading:
        """The same with `count` chunks each."""
        return ClipReading([c.padded(count) for c in self.chunks], self.shares)


class ClipEncoder:
    """One CLIP text encoder, read as its family reads it."""

    def __init__(
        self,
        plan: ComponentPlan,
        use: TextUse,
        tokenizer: ClipTokenizer,
        device: _core.Device,
        weight_type: str | None = None,
    ) -> None:
        self.config: Mapping[str, Any] = plan.config
        self.use = use
        self.tokenizer = tokenizer if use.pad is None else tokenizer.with_pad(use.pad)
        if tokenizer.vocab_size > self.config["vocab_size"]:
            raise WeightsError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the text encoder knows"
                f" {self.config['vocab_size']}; give the model's own with tokenizer="
            )
        self.network = _core.Network(
            plan.kind, dict(plan.config), make_store(plan, weight_type), device
        )

    def read(self, text: str, weighting: str) -> ClipReading:
        """A text as rows of tokens, in the notation of a weighting rule."""
        if weighting == "diffusers":
            literal = prompt.literal(text)
            return ClipReading([prompt.chunk(self.tokenizer, literal, max_chunks=1, truncate=True)])
        segments = prompt.parse(text, weighting)
        others = prompt.downweighted(segments) if weighting == "compel" else []
        keep_whole = COMFYUI_KEEPS_WHOLE if weighting == "comfyui" else 0
        return ClipReading(
            [
                prompt.chunk(self.tokenizer, each, keep_whole=keep_whole)
                for each in (segments, *(other for other, _ in others))
            ],
            [1.0, *(share for _, share in others)],
        )

    def encode(
        self,
        readings: Sequence[ClipReading],
        clip_skip: int | None,
        weighting: str,
        cancel: _core.CancelToken | None,
    ) -> list[EncodedText]:
        """Texts to weighted contexts; the pooled vector is that of the first chunk, without weights."""
        chunks = [c for reading in readings for c in reading.chunks]
        needs_empty = weighting in ("comfyui", "compel") and any(
            np.any(c.weights != 1) for c in chunks
        )
        rows = [c.ids for c in chunks] + ([chunks[0].empty[None]] if needs_empty else [])
        hidden, pooled = self._run(np.concatenate(rows), clip_skip, cancel)
        empty = hidden[-1] if needs_empty else None
        encoded, at = [], 0
        for reading in readings:
            contexts, first = [], at
            for c in reading.chunks:
                context = hidden[at : at + len(c)].reshape(-1, hidden.shape[2])
                contexts.append(prompt.apply_weights(weighting, context, c.weights, empty))
                at += len(c)
            context = prompt.blend(contexts, reading.shares)
            encoded.append(EncodedText(context, None if pooled is None else pooled[first]))
        return encoded

    def _run(
        self, ids: Ids, clip_skip: int | None, cancel: _core.CancelToken | None
    ) -> tuple[Array, Array | None]:
        layers = int(self.config["layers"])
        skip = self.use.skip if clip_skip is None else clip_skip - 1
        if not 0 <= skip < layers:
            raise ParameterError(
                f"clip_skip must be 1 to {layers} for this model, not {clip_skip!r}"
            )
        options = {"skip": skip, "final_norm": int(self.use.final_norm)}
        parts = []
        for i in range(0, len(ids), MAX_BATCH):
            part = ids[i : i + MAX_BATCH]
            inputs: dict[str, Any] = {"ids": part}
            if self.use.pooled:
                inputs["last_token"] = self._ends(part)
            parts.append(self.network.run(inputs, options, cancel))
        hidden = np.concatenate([part["hidden"] for part in parts])
        if not self.use.pooled:
            return hidden, None
        return hidden, np.concatenate([part["pooled"] for part in parts])

    def _ends(self, ids: Ids) -> Ids:
        """The first end token of every row, as an index into all tokens of the batch."""
        ends = np.argmax(ids == self.config["eos_token_id"], axis=1)
        return np.asarray(ends + np.arange(len(ids)) * ids.shape[1], np.int32)


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


class TextEncoders:
    """All text encoders of a model."""

    def __init__(self, encoders: Sequence[Encoder[Any]], width: int) -> None:
        self.encoders = tuple(encoders)
        self.width = width
        """Of the context that the denoiser reads."""

    @property
    def graphs_built(self) -> dict[str, int]:
        """Graphs built so far, by component."""
        return {e.use.component: e.network.graphs_built for e in self.encoders if e.network}

    def pair(self, first: Sequence[str], second: Sequence[str] | None, count: int) -> list[Text]:
        """What the encoders read for `count` pictures: the first one `first`, the others `second`.

        Raises:
            ParameterError: there are several texts, and not `count` of them; or `second` is given
                and there is one encoder only.
        """
        if second is not None and len(self.encoders) == 1:
            raise ParameterError("this model has one text encoder: leave prompt_2 out")
        columns = [first, *([second or first] * (len(self.encoders) - 1))]
        for column in columns:
            if len(column) not in (1, count):
                raise ParameterError(f"{len(column)} texts do not fit {count} prompts")
        full = [list(c) * count if len(c) == 1 else list(c) for c in columns]
        return list(zip(*full, strict=True))

    def encode(
        self,
        texts: Sequence[Text],
        *,
        clip_skip: int | None = None,
        weighting: str = "a1111",
        cancel: _core.CancelToken | None = None,
    ) -> dict[Text, EncodedText]:
        """Encode texts, each once; the empty tuple is zeros.

        All of them get the same number of chunks, so that they can be evaluated in one batch.

        Args:
            texts: each with one entry per encoder; one at least. An empty tuple means no text.
            clip_skip: 1 takes the encoders' last layer, 2 the one before (the counting of A1111 and
                ComfyUI); None what the model was trained with.
            weighting: a rule of :data:`sdengine.prompt.RULES`.
            cancel: stops the run.

        Raises:
            ParameterError: a text is too long, or an argument is out of range.
        """
        unique = list(dict.fromkeys(text for text in texts if text))
        columns = [
            [encoder.read(text[i], weighting) for text in unique]
            for i, encoder in enumerate(self.encoders)
        ]
        count = max(reading.length for column in columns for reading in column)
        parts = [
            encoder.encode([r.padded(count) for r in column], clip_skip, weighting, cancel)
            for encoder, column in zip(self.encoders, columns, strict=True)
        ]
        encoded = {text: self._joined(all_of) for text, *all_of in zip(unique, *parts, strict=True)}
        any_text = encoded[unique[0]]
        pooled = None if any_text.pooled is None else np.zeros_like(any_text.pooled)
        return {**encoded, (): EncodedText(np.zeros_like(any_text.context), pooled)}

    def _joined(self, parts: Sequence[EncodedText]) -> EncodedText:
        """The contexts as the family lays them out, and the pooled vectors behind each other."""
        segments: dict[int, list[Array]] = {}
        for encoder, part in zip(self.encoders, parts, strict=True):
            if encoder.use.context:
                segments.setdefault(encoder.use.segment, []).append(part.context)
        rows = [np.concatenate(segments[number], axis=1) for number in sorted(segments)]
        filled = [np.pad(row, ((0, 0), (0, max(0, self.width - row.shape[1])))) for row in rows]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return EncodedText(
            np.concatenate(filled, axis=0), np.concatenate(pooled) if pooled else None
        )
