"""All text encoders of a model together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdengine import _core
from sdengine.embeddings import ANY_ENCODER, Embedding
from sdengine.errors import ParameterError, WeightsError
from sdengine.families import CONTEXT
from sdengine.memory.kept import Kept, plainly
from sdengine.text_encoders.base import Array, EncodedText, Encoder, Text
from sdengine.text_encoders.clip import ClipEncoder
from sdengine.text_encoders.language import LanguageModelEncoder

if TYPE_CHECKING:
    from sdengine.prompt_cache import PromptCache


class TextEncoders:
    """All text encoders of a model."""

    def __init__(
        self,
        encoders: Sequence[Encoder[Any]],
        width: int,
        cache: PromptCache | None = None,
        identity: object = (),
    ) -> None:
        self.encoders = tuple(encoders)
        self.width = width
        """Of the context that the denoiser reads."""
        self.kept: Kept = plainly
        """How networks are run; see :meth:`sdengine.memory.keeping.Memory.kept`."""
        self.cache, self.identity = cache, identity
        """Texts that were encoded, by these encoders."""

    @property
    def _clip(self) -> list[ClipEncoder]:
        """The encoders that can learn words."""
        return [encoder for encoder in self.encoders if isinstance(encoder, ClipEncoder)]

    @property
    def networks(self) -> dict[str, _core.Network]:
        """The native networks by component."""
        found = {e.use.component: e.network for e in self.encoders if e.network}
        for encoder in self.encoders:
            if isinstance(encoder, LanguageModelEncoder) and encoder.eyes is not None:
                assert encoder.use.sight is not None
                found[encoder.use.sight.component] = encoder.eyes.network
        return found

    def add_embedding(self, embedding: Embedding) -> None:
        """Let prompts use a learned word.

        Raises:
            WeightsError: its vectors fit no encoder; the message names the widths that do.
            ParameterError: as :meth:`ClipEncoder.learn`.
        """
        for encoder, vectors in zip(self._clip, self._placed(embedding), strict=True):
            encoder.learn(embedding.name, vectors)

    @contextmanager
    def knowing(self, embeddings: Sequence[Embedding]) -> Iterator[None]:
        """Prompts that are encoded inside the block know these words too; they come before those known already.

        Raises:
            WeightsError, ParameterError: as :meth:`add_embedding`.
        """
        before = [encoder.vocabulary for encoder in self._clip]
        try:
            for embedding in embeddings:
                self.add_embedding(embedding)
            yield
        finally:
            for encoder, vocabulary in zip(self._clip, before, strict=True):
                encoder.vocabulary = vocabulary

    def _placed(self, embedding: Embedding) -> list[Array | None]:
        """The vectors for each encoder; None for those that the embedding has none for."""
        parts = embedding.parts
        placed: list[Array | None] = []
        for encoder in self._clip:
            vectors = parts.get(encoder.use.component, parts.get(ANY_ENCODER))
            fits = vectors is not None and vectors.shape[1] == encoder.width
            if vectors is not None and not fits and ANY_ENCODER not in parts:
                raise self._wrong_width(embedding)
            # One part without a name belongs to one encoder, also where several are as wide.
            taken = ANY_ENCODER in parts and any(each is not None for each in placed)
            placed.append(vectors if fits and not taken else None)
        if all(vectors is None for vectors in placed):
            raise self._wrong_width(embedding)
        return placed

    def _wrong_width(self, embedding: Embedding) -> WeightsError:
        found = ", ".join(str(vectors.shape[1]) for vectors in embedding.parts.values())
        wanted = ", ".join(f"{e.width} ({e.use.component})" for e in self._clip)
        return WeightsError(
            f"{embedding.path}: the embedding's vectors are {found} wide; this model's text encoders"
            f" read {wanted}. It was made for another family of models"
        )

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
        adapted: object = (),
        pictures: Sequence[Image.Image] = (),
        cancel: _core.CancelToken | None = None,
    ) -> dict[Text, EncodedText]:
        """Encode texts, each once; the empty tuple is zeros.

        All of them get the same number of chunks, so that they can be evaluated in one batch.

        Args:
            texts: each with one entry per encoder; one at least. An empty tuple means no text.
            clip_skip: 1 takes the encoders' last layer, 2 the one before (the counting of A1111 and
                ComfyUI); None what the model was trained with.
            weighting: a rule of :data:`sdengine.prompt.RULES`.
            adapted: what tells the adapters that apply apart from others, for the cache of texts.
            pictures: of mode RGB, that the texts speak of; for encoders with eyes.
            cancel: stops the run.

        Raises:
            ParameterError: a text is too long, or an argument is out of range.
            WeightsError: pictures are to be seen by an encoder that was loaded without its eyes.
        """
        unique = list(dict.fromkeys(text for text in texts if text))
        columns = [
            self._readings(encoder, [text[i] for text in unique], weighting, pictures, cancel)
            for i, encoder in enumerate(self.encoders)
        ]
        count = max(reading.length for column in columns for reading in column)
        readings = {
            text: [reading.padded(count) for reading in row]
            for text, row in zip(unique, zip(*columns, strict=True), strict=True)
        }
        encoded = self._kept(readings, clip_skip, weighting, adapted, cancel)
        any_text = encoded[unique[0]]
        pooled = None if any_text.pooled is None else np.zeros_like(any_text.pooled)
        nothing = {name: np.zeros_like(array) for name, array in any_text.inputs.items()}
        return {**encoded, (): EncodedText(np.zeros_like(any_text.context), pooled, nothing)}

    def _kept(
        self,
        readings: Mapping[Text, Sequence[Any]],
        clip_skip: int | None,
        weighting: str,
        adapted: object,
        cancel: _core.CancelToken | None,
    ) -> dict[Text, EncodedText]:
        """The texts from the cache; those that it has not are encoded, and kept."""
        if self.cache is None:
            return self._run(readings, clip_skip, weighting, cancel)
        learned = [encoder.learned for encoder in self._clip]
        asked = clip_skip, weighting, adapted, learned, self.identity
        keys = {text: self.cache.key(row, asked) for text, row in readings.items()}
        kept = {text: self.cache.get(key) for text, key in keys.items()}
        found = {text: one for text, one in kept.items() if one is not None}
        missing = {text: row for text, row in readings.items() if text not in found}
        made = self._run(missing, clip_skip, weighting, cancel) if missing else {}
        for text, one in made.items():
            self.cache.put(keys[text], one)
        return {**found, **made}

    def _run(
        self,
        readings: Mapping[Text, Sequence[Any]],
        clip_skip: int | None,
        weighting: str,
        cancel: _core.CancelToken | None,
    ) -> dict[Text, EncodedText]:
        """The texts through the networks."""
        columns = zip(*readings.values(), strict=True)
        parts = []
        for encoder, column in zip(self.encoders, columns, strict=True):
            encode = partial(encoder.encode, column, clip_skip, weighting, cancel)
            parts.append(self.kept(encode, encoder.use.component))
            if encoder.network:  # not read again until the next texts, unlike the denoiser's
                encoder.network.rest()
        rows = zip(readings, *parts, strict=True)
        return {text: self._joined(all_of) for text, *all_of in rows}

    def _readings(
        self,
        encoder: Encoder[Any],
        texts: Sequence[str],
        weighting: str,
        pictures: Sequence[Image.Image],
        cancel: _core.CancelToken | None,
    ) -> list[Any]:
        if not isinstance(encoder, LanguageModelEncoder):
            return [encoder.read(text, weighting) for text in texts]
        seen = encoder.look(pictures, cancel)
        return [encoder.read(text, weighting, seen) for text in texts]

    def _joined(self, parts: Sequence[EncodedText]) -> EncodedText:
        """The contexts as the family lays them out, and the pooled vectors behind each other."""
        segments: dict[int, list[Array]] = {}
        inputs: dict[str, Array] = {}
        for encoder, part in zip(self.encoders, parts, strict=True):
            use = encoder.use
            if use.feeds != CONTEXT:
                inputs[use.feeds] = part.context
            elif use.context:
                segments.setdefault(use.segment, []).append(part.context)
            inputs.update({f"{use.feeds}_{name}": array for name, array in part.inputs.items()})
        rows = [np.concatenate(segments[number], axis=1) for number in sorted(segments)]
        filled = [np.pad(row, ((0, 0), (0, max(0, self.width - row.shape[1])))) for row in rows]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return EncodedText(
            np.concatenate(filled, axis=0), np.concatenate(pooled) if pooled else None, inputs
        )
