"""The networks of a loaded model, each with its weights on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core, prompt
from .conditioning import Conditioning
from .errors import ParameterError, WeightsError
from .loading import ComponentPlan
from .loading.weight_types import choose_type
from .tokenizers import ClipTokenizer

Array = NDArray[np.float32]
MAX_BATCH = 64


def make_store(plan: ComponentPlan, weight_type: str | None = None) -> _core.WeightStore:
    """Register every parameter of a component; no weight is read yet.

    With `weight_type`, parameters are held in the type that ``convert`` would write them in.
    """
    store = _core.WeightStore()
    for binding in plan.bindings:
        entry, convert_to = binding.entry, None
        if weight_type is not None and len(entry.shape) > 1:
            convert_to = choose_type(f"{plan.name}.{binding.name}", entry.shape, weight_type).dtype
        store.add(
            binding.name,
            entry.dtype,
            list(entry.shape),
            entry.path,
            entry.offset,
            entry.nbytes,
            strides=None if entry.strides is None else list(entry.strides),
            transpose=binding.transpose,
            convert_to=convert_to,
        )
    return store


class TextEncoder:
    """A CLIP text encoder with its tokenizer: prompts to context."""

    def __init__(
        self,
        plan: ComponentPlan,
        tokenizer: ClipTokenizer,
        device: _core.Device,
        weight_type: str | None = None,
    ) -> None:
        self.config: Mapping[str, Any] = plan.config
        self.tokenizer = tokenizer
        if tokenizer.vocab_size > self.config["vocab_size"]:
            raise WeightsError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the text encoder knows"
                f" {self.config['vocab_size']}; give the model's own with tokenizer="
            )
        self.network = _core.Network(
            plan.kind, dict(plan.config), make_store(plan, weight_type), device
        )

    def encode(
        self,
        prompts: list[str],
        negatives: list[str],
        *,
        clip_skip: int = 1,
        weighting: str = "a1111",
        cancel: _core.CancelToken | None = None,
    ) -> Conditioning:
        """Encode prompts and negative prompts together; all get the same number of chunks.

        Args:
            prompts: one or more; ``negatives`` as many.
            negatives: negative prompts.
            clip_skip: 1 takes the last layer, 2 the one before (the counting of A1111).
            weighting: a rule of :data:`sdengine.prompt.RULES`.
            cancel: stops the run.

        Raises:
            ParameterError: a prompt is too long, or an argument is out of range.
        """
        texts = [*prompts, *negatives]
        rows = [self._chunk(text, weighting) for text in texts]
        chunks = prompt.equalize(*rows)
        ids = np.concatenate([c.ids for c in chunks])
        needs_empty = weighting == "comfyui" and any(np.any(c.weights != 1) for c in chunks)
        if needs_empty:
            ids = np.concatenate([ids, chunks[0].empty[None]])
        hidden = self._run(ids, clip_skip, cancel)
        empty = hidden[-1] if needs_empty else None
        count, length, width = len(chunks[0]), ids.shape[1], hidden.shape[2]
        contexts = [
            prompt.apply_weights(
                weighting,
                hidden[i * count : (i + 1) * count].reshape(count * length, width),
                c.weights,
                empty,
            )
            for i, c in enumerate(chunks)
        ]
        stacked = np.stack(contexts)
        split = len(prompts)
        return Conditioning(stacked[:split], stacked[split:] if negatives else None)

    def _chunk(self, text: str, weighting: str) -> prompt.Chunks:
        if weighting == "diffusers":
            return prompt.chunk(self.tokenizer, prompt.literal(text), max_chunks=1, truncate=True)
        if "<lora:" in text:
            raise ParameterError(
                "the prompt asks for a LoRA (<lora:...>), which is not supported yet; remove the tag"
            )
        return prompt.chunk(self.tokenizer, prompt.parse(text))

    def _run(
        self, ids: NDArray[np.int32], clip_skip: int, cancel: _core.CancelToken | None
    ) -> Array:
        layers = int(self.config["layers"])
        if not isinstance(clip_skip, int) or not 1 <= clip_skip <= layers:
            raise ParameterError(
                f"clip_skip must be 1 to {layers} for this model, not {clip_skip!r}"
            )
        options = {"skip": clip_skip - 1}
        parts = [
            self.network.run({"ids": ids[i : i + MAX_BATCH]}, options, cancel)["hidden"]
            for i in range(0, len(ids), MAX_BATCH)
        ]
        return np.concatenate(parts)


class Autoencoder:
    """Pictures to latents and back."""

    # Above this many latents (1024 x 768 pixels) a picture is done in tiles, to bound memory.
    WHOLE_LIMIT = 128 * 96
    TILE, OVERLAP = 64, 16

    def __init__(
        self,
        plan: ComponentPlan,
        factor: int,
        device: _core.Device,
        weight_type: str | None = None,
    ) -> None:
        self.config: Mapping[str, Any] = plan.config
        self.factor = factor
        self.scale = float(plan.config["scaling_factor"])
        self.shift = float(plan.config["shift_factor"])
        store, config = make_store(plan, weight_type), dict(plan.config)
        self.encoder = _core.Network(f"{plan.kind}_encoder", config, store, device)
        self.decoder = _core.Network(f"{plan.kind}_decoder", config, store, device)

    def decode(
        self, latents: Array, tile: int | None = None, cancel: _core.CancelToken | None = None
    ) -> Array:
        """Latents ``[N, C, h, w]``, scaled as the denoiser sees them, to pictures in about -1..1.

        Returns:
            float32 ``[N, 3, 8 h, 8 w]``.
        """
        size, overlap = self._tiling(latents.shape[2] * latents.shape[3], tile)
        plain = np.ascontiguousarray(latents / self.scale + self.shift, np.float32)
        return _core.decode_latents(self.decoder, plain, self.factor, size, overlap, cancel)

    def encode(
        self, image: Array, tile: int | None = None, cancel: _core.CancelToken | None = None
    ) -> Array:
        """Pictures ``[N, 3, H, W]`` in -1..1 to latents: the mean of the posterior, scaled for the denoiser."""
        pixels = image.shape[2] * image.shape[3]
        size, overlap = self._tiling(pixels // self.factor**2, tile)
        moments = _core.encode_image(self.encoder, image, self.factor, size, overlap, cancel)
        mean = moments[:, : moments.shape[1] // 2]
        return np.ascontiguousarray((mean - self.shift) * self.scale, np.float32)

    def _tiling(self, latents: int, tile: int | None) -> tuple[int, int]:
        if tile is None:
            return (self.TILE, self.OVERLAP) if latents > self.WHOLE_LIMIT else (0, 0)
        if not isinstance(tile, int) or (tile != 0 and not 8 <= tile <= 1024):
            raise ParameterError(f"tile must be 0 (no tiles) or 8 to 1024 latents, not {tile!r}")
        return tile, tile // 4
