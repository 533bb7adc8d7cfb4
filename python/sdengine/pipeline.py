"""A loaded model: prompts and pictures in, pictures out."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _core, images
from .components import MAX_BATCH, Autoencoder, TextEncoder, make_store
from .conditioning import Conditioning
from .devices import open_device, peak_memory
from .errors import NumericError, ParameterError, UnsupportedModelError
from .events import Callback, StepEvent
from .loading import ModelPlan
from .loading.weight_types import check_type
from .params import GenerateParameters
from .results import Result
from .run import Run
from .tokenizers import ClipTokenizer, load_clip_tokenizer

Array = NDArray[np.float32]
AnyPath = str | PathLike[str]


class Pipeline:
    """A model ready to run; made by :func:`sdengine.load`.

    Safe to call from several threads: calls on one pipeline wait for each other at the network evaluations.

    Attributes:
        plan: where everything came from: family, components, scheduler settings, defaults.
        config: hyper-parameters per component (``"unet"``, ``"text_encoder"``, ``"vae"``).
        tokenizer: the tokenizer of the text encoder.
    """

    def __init__(
        self,
        plan: ModelPlan,
        *,
        device: str = "auto",
        threads: int = 0,
        tokenizer: AnyPath | ClipTokenizer | None = None,
        weight_type: str | None = None,
    ) -> None:
        if weight_type is not None:
            weight_type = check_type(weight_type)
        self.plan = plan
        self.config: Mapping[str, Mapping[str, Any]] = {
            name: component.config for name, component in plan.components.items()
        }
        if isinstance(tokenizer, ClipTokenizer):
            self.tokenizer = tokenizer
        elif tokenizer is not None:
            self.tokenizer = load_clip_tokenizer(Path(tokenizer))
        else:
            self.tokenizer = plan.tokenizers["text_encoder"].open()
        self._device = open_device(device, threads)
        self._text = TextEncoder(
            plan.components["text_encoder"], self.tokenizer, self._device, weight_type
        )
        self._vae = Autoencoder(
            plan.components["vae"], plan.latents.factor, self._device, weight_type
        )
        denoiser = plan.components[plan.family.denoiser]
        self._denoiser = _core.Network(
            denoiser.kind,
            dict(denoiser.config),
            make_store(denoiser, weight_type),
            self._device,
        )
        self._running: set[_core.CancelToken] = set()

    def __repr__(self) -> str:
        return f"<sdengine.Pipeline {self.plan.title} from {str(self.plan.path)!r}>"

    @property
    def graphs_built(self) -> dict[str, int]:
        """Graphs built so far per network: one per input shape, however many evaluations."""
        return {
            self.plan.family.denoiser: self._denoiser.graphs_built,
            "text_encoder": self._text.network.graphs_built,
            "vae_encoder": self._vae.encoder.graphs_built,
            "vae_decoder": self._vae.decoder.graphs_built,
        }

    @contextmanager
    def _cancellable(self) -> Iterator[_core.CancelToken]:
        """A token that :meth:`cancel` reaches while the block runs."""
        token = _core.CancelToken()
        self._running.add(token)
        try:
            yield token
        finally:
            self._running.discard(token)

    def cancel(self) -> None:
        """Stop every call that is running on this pipeline; each raises :class:`sdengine.Cancelled`."""
        for token in list(self._running):
            token.cancel()

    # -------------------------------------------------------------------------------------- stages
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        clip_skip: int | None = None,
        weighting: str = "a1111",
    ) -> Conditioning:
        """Encode prompts as the denoiser reads them.

        Args:
            prompt: one prompt or several, with A1111 emphasis: ``(word:1.2)``, ``[word]``, ``BREAK``.
            negative_prompt: one for all of them, or as many.
            clip_skip: 1 takes the text encoder's last layer, 2 the one before; None is the model's own.
            weighting: ``"a1111"``, ``"comfyui"`` or ``"diffusers"`` (no syntax, cut at 77 tokens).

        Returns:
            Context and negative context, float32 ``[N, 77 * chunks, width]``.

        Raises:
            ParameterError: too long a prompt, or numbers of prompts that do not fit.
        """
        with self._cancellable() as token:
            return self._encode(prompt, negative_prompt, clip_skip, weighting, token)

    def _encode(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str],
        clip_skip: int | None,
        weighting: str,
        cancel: _core.CancelToken | None,
    ) -> Conditioning:
        prompts = _texts("prompt", prompt)
        negatives = _texts("negative_prompt", negative_prompt)
        if len(negatives) == 1:
            negatives *= len(prompts)
        if len(negatives) != len(prompts):
            raise ParameterError(
                f"{len(negatives)} negative prompts do not fit {len(prompts)} prompts"
            )
        return self._text.encode(
            prompts,
            negatives,
            clip_skip=1 if clip_skip is None else clip_skip,
            weighting=weighting,
            cancel=cancel,
        )

    def predict(
        self, latents: Array, timestep: float | Sequence[float], cond: Conditioning
    ) -> Array:
        """One raw evaluation of the denoiser, without guidance.

        Args:
            latents: float32 ``[N, C, h, w]`` as the network takes them (input scaling done), C its input channels.
            timestep: one for all, or N of them; 0 to 999, fractions allowed.
            cond: conditioning of one prompt or N; the negative part is not used.

        Returns:
            The network's output (noise, velocity or sample, as the model predicts), float32 ``[N, 4, h, w]``.

        Raises:
            ParameterError: shapes that do not fit.
            NumericError: the network produced NaN or infinity.
        """
        latents = _latents("latents", latents)
        count = latents.shape[0]
        try:
            steps = np.broadcast_to(np.asarray(timestep, np.float32), (count,))
        except (TypeError, ValueError):
            raise ParameterError(
                f"timestep must be one number or {count} of them, not {timestep!r}"
            ) from None
        if not isinstance(cond, Conditioning):
            raise ParameterError("cond must be what encode_prompt() returned")
        context = cond.repeat(count).context
        inputs = {"latents": latents, "timesteps": np.ascontiguousarray(steps), "context": context}
        with self._cancellable() as token:
            return self._denoiser.run(inputs, {}, token)["prediction"]

    def encode_image(self, image: Any, *, tile: int | None = None) -> Array:
        """Encode a picture to latents: the mean of the posterior, scaled as the denoiser sees it.

        Args:
            image: PIL picture, path, or array (uint8 ``[H, W, 3]``, or float 0..1), or a list of them of one size.
                Width and height must be multiples of 8.
            tile: side of a tile in latents; 0 for one piece, None to decide by size.

        Returns:
            float32 ``[N, C, H / 8, W / 8]``.

        Raises:
            ParameterError: not a picture, or a size that is not a multiple of 8.
        """
        pictures = image if isinstance(image, list) else [image]
        arrays = [images.to_array(picture) for picture in pictures]
        if len({array.shape for array in arrays}) != 1:
            raise ParameterError("the pictures of a batch must have one size")
        with self._cancellable() as token:
            return self._vae.encode(np.concatenate(arrays), tile, token)

    def decode_latents(
        self,
        latents: Array,
        *,
        output_type: Literal["pil", "numpy"] = "pil",
        tile: int | None = None,
    ) -> Any:
        """Decode latents to pictures.

        Args:
            latents: float32 ``[N, C, h, w]``, scaled as the denoiser sees them.
            output_type: ``"pil"`` for a list of pictures, ``"numpy"`` for float32 ``[N, 3, 8 h, 8 w]`` in about -1..1.
            tile: side of a tile in latents; 0 for one piece, None to decide by size.

        Raises:
            ParameterError: shapes that do not fit.
            NumericError: the autoencoder produced NaN or infinity.
        """
        if output_type not in ("pil", "numpy"):
            raise ParameterError(f"output_type must be 'pil' or 'numpy', not {output_type!r}")
        with self._cancellable() as token:
            pictures = self._vae.decode(_latents("latents", latents), tile, token)
        return pictures if output_type == "numpy" else images.to_pil(pictures)

    # ---------------------------------------------------------------------------------- generation
    def generate(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | None = None,
        schedule: str | None = None,
        eta: float | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        clip_skip: int | None = None,
        weighting: str = "a1111",
        latents: Array | None = None,
        tile: int | None = None,
        callback: Callback | None = None,
    ) -> Result:
        """Make pictures from text. None takes the model's own default.

        Args:
            prompt: one prompt, or one per picture; A1111 emphasis syntax.
            negative_prompt: what should not be seen; one, or one per picture.
            width: pixels, a multiple of 8.
            height: pixels, a multiple of 8.
            steps: 1 to 1000.
            guidance_scale: strength of classifier-free guidance; 1 turns it off and halves the work.
            guidance_rescale: 0..1, pulls the guided result's contrast back (Lin et al. 2023); 0.7 suits
                zero-terminal-SNR models.
            sampler: a name from :mod:`sdengine.sampling`, in the spelling of any program people use.
            schedule: a step schedule from :mod:`sdengine.sampling`.
            eta: noise of ancestral samplers, 0 for none; None is the sampler's own.
            seed: of the first picture, the next ones get ``seed + 1``, ...; None takes a random one. The noise equals
                torch's CPU generator's.
            batch_size: pictures to make, 1 to 64.
            clip_skip: 1 takes the text encoder's last layer, 2 the one before.
            weighting: prompt weighting rule, see :meth:`encode_prompt`.
            latents: start noise of standard deviation 1, float32 ``[N, C, h, w]``, instead of the seed's.
            tile: side of the autoencoder's tiles in latents, see :meth:`decode_latents`.
            callback: called after every step with a :class:`sdengine.StepEvent`.

        Raises:
            ParameterError: an argument is out of range; the message says what is allowed.
            NumericError: NaN or infinity appeared; the message names the step.
            Cancelled: :meth:`cancel` was called, or the event's ``cancel``.
        """
        if self.plan.task != "text":
            raise UnsupportedModelError(
                f"{self.plan.title} needs a picture besides the prompt, and that task is not supported yet;"
                " its networks can be called with predict(), encode_prompt() and decode_latents()"
            )
        parameters = GenerateParameters.resolve(
            self.plan,
            prompt=_texts("prompt", prompt),
            negative_prompt=_texts("negative_prompt", negative_prompt),
            width=width,
            height=height,
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            sampler=sampler,
            schedule=schedule,
            eta=eta,
            seed=secrets.randbits(32) if seed is None else seed,
            batch_size=batch_size,
            clip_skip=clip_skip,
            weighting=weighting,
        )
        if latents is not None:
            latents = _latents("latents", latents)
        with self._cancellable() as token:
            return self._generate(parameters, latents, tile, callback, token)

    def _generate(
        self,
        parameters: GenerateParameters,
        latents: Array | None,
        tile: int | None,
        callback: Callback | None,
        token: _core.CancelToken,
    ) -> Result:
        started = time.perf_counter()
        cond = self._encode(
            parameters.prompt,
            parameters.negative_prompt,
            parameters.clip_skip,
            parameters.weighting,
            token,
        ).repeat(parameters.batch_size)
        encoded = time.perf_counter()
        run = Run(self._denoiser, self.plan, parameters, cond, latents, token)
        step_times = []
        while not run.done:
            before = time.perf_counter()
            run.step()
            now = time.perf_counter()
            step_times.append(now - before)
            if callback is not None:
                callback(
                    StepEvent(
                        step=run.index,
                        steps=run.steps,
                        sigma=run.sigma,
                        latents=run.latents,
                        denoised=run.denoised,
                        seconds=now - encoded,
                        _token=token,
                    )
                )
        denoised = time.perf_counter()
        final = run.latents
        pictures = images.to_pil(self._vae.decode(final, tile, token))
        finished = time.perf_counter()
        return Result(
            images=pictures,
            seeds=parameters.seeds,
            latents=final,
            timings={
                "encode": encoded - started,
                "denoise": denoised - encoded,
                "decode": finished - denoised,
                "total": finished - started,
                "per_step": sum(step_times) / len(step_times),
            },
            peak_memory=peak_memory(),
            metadata=parameters.metadata(self.plan.path.stem),
        )


def _texts(name: str, value: str | Sequence[str]) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    listed = isinstance(texts, list | tuple) and len(texts) > 0
    if not listed or not all(isinstance(text, str) for text in texts):
        raise ParameterError(f"{name} must be a text or a list of texts, not {value!r}")
    texts = list(texts)
    if len(texts) > MAX_BATCH:
        raise ParameterError(f"{name}: at most {MAX_BATCH} texts at once, not {len(texts)}")
    return texts


def _latents(name: str, value: Array) -> Array:
    try:
        given = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ParameterError(f"{name} must be an array of numbers: {error}") from None
    if given.dtype.kind not in "fiu":
        raise ParameterError(f"{name} must be an array of real numbers, not of {given.dtype}")
    array = np.ascontiguousarray(given, np.float32)
    if array.ndim != 4 or 0 in array.shape:
        raise ParameterError(f"{name} must have the shape [N, C, h, w], not {list(array.shape)}")
    if not np.isfinite(array).all():
        raise NumericError(f"{name} holds NaN or infinity")
    return array
