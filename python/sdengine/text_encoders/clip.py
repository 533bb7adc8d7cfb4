"""CLIP text encoders: prompts in chunks of 77 tokens, with weights and learned words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine import _core, prompt
from sdengine.checks import check_choice, check_whole
from sdengine.errors import ParameterError, WeightsError
from sdengine.families import TextUse
from sdengine.loading import ComponentPlan
from sdengine.stores import make_store
from sdengine.text_encoders.base import MAX_BATCH, Array, EncodedText
from sdengine.tokenizers import ClipTokenizer

Ids = NDArray[np.int32]
COMFYUI_KEEPS_WHOLE = 8
"""ComfyUI does not cut a stretch of fewer tokens than this at the end of a chunk."""


@dataclass(frozen=True)
class Vocabulary:
    """The learned words of an encoder: their vectors behind the tokens' own, and which are whose."""

    vectors: Array | None = None
    """float32 ``[n, width]``."""
    ids: Mapping[str, list[int]] = field(default_factory=dict)
    words: prompt.LearnedWords | None = None

    def with_word(self, name: str, vectors: Array | None, first: int) -> Vocabulary:
        """The same and one word more, whose vectors count from `first` where there were none before."""
        known = self.vectors
        # Rows stay where they are, for a prompt that was read before may be encoded after this.
        first += 0 if known is None else len(known)
        count = 0 if vectors is None else len(vectors)
        if vectors is not None:
            known = vectors if known is None else np.concatenate([known, vectors])
        ids = {**self.ids, name.lower(): [*range(first, first + count)]}
        return Vocabulary(known, ids, prompt.LearnedWords(ids))


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
        self.vocabulary = Vocabulary()

    @property
    def width(self) -> int:
        """Of its token vectors."""
        return int(self.config["hidden_size"])

    @property
    def learned(self) -> Array | None:
        """The vectors of its learned words, ``[n, width]``; None where there are none."""
        return self.vocabulary.vectors

    def learn(self, name: str, vectors: Array | None) -> None:
        """Let prompts use a learned word (textual inversion).

        Args:
            name: how prompts call it.
            vectors: float32 ``[n, width]``; None for a word that this encoder has none of, and leaves out.

        Raises:
            ParameterError: the name is a word of the vocabulary, or there are more vectors than one chunk holds.
        """
        capacity = self.tokenizer.max_length - 2
        if vectors is not None and len(vectors) > capacity:
            raise ParameterError(
                f"the embedding {name!r} has {len(vectors)} vectors; a prompt's chunk holds"
                f" {capacity}"
            )
        if len(self.tokenizer.encode(name)) == 1:
            raise ParameterError(
                f"{name!r} is a word that the text encoder knows, and prompts that mean it would"
                " change. Give the embedding another name: embeddings={'name': path}"
            )
        first = int(self.config["vocab_size"])
        self.vocabulary = self.vocabulary.with_word(name, vectors, first)

    def read(self, text: str, weighting: str) -> ClipReading:
        """A text as rows of tokens, in the notation of a weighting rule."""
        check_choice("weighting", weighting, prompt.RULES)
        if weighting == "diffusers":
            literal = prompt.literal(text)
            chunks = prompt.chunk(
                self.tokenizer, literal, max_chunks=1, truncate=True, learned=self.vocabulary.words
            )
            return ClipReading([chunks])
        segments = prompt.parse(text, weighting)
        others = prompt.downweighted(segments) if weighting == "compel" else []
        keep_whole = COMFYUI_KEEPS_WHOLE if weighting == "comfyui" else 0
        return ClipReading(
            [
                prompt.chunk(
                    self.tokenizer, each, keep_whole=keep_whole, learned=self.vocabulary.words
                )
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
        if clip_skip is not None:
            check_whole("clip_skip", clip_skip, 1, layers)
        skip = self.use.skip if clip_skip is None else int(clip_skip) - 1
        options = {"skip": skip, "final_norm": int(self.use.final_norm)}
        parts = []
        for i in range(0, len(ids), MAX_BATCH):
            part = ids[i : i + MAX_BATCH]
            inputs: dict[str, Any] = {"ids": part}
            if self.learned is not None and part.max() >= self.config["vocab_size"]:
                inputs["learned"] = self.learned
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
