"""A loaded model: prompts and pictures in, pictures out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import _core, generation, images, passes, previews
from .adapters import LoraLike, Loras, as_loras, widened
from .autoencoder import Autoencoder
from .checks import check_choice, check_path
from .conditioning import Conditioning, of_equal_length, stack_texts
from .control import LoadedControl
from .devices import Devices, open_devices, parse_devices
from .embeddings import read_embedding, read_embeddings
from .errors import ParameterError
from .events import Callback
from .image_prompt import LoadedImagePrompt
from .loading import plan_model
from .loading.plan import plan_preview_vae
from .loading.weight_types import check_type
from .memory.choosing import Limits
from .memory.keeping import Memory
from .memory.plan import Plan
from .memory.sizes import Size, parse_size
from .model_source import AnyPath, Arithmetic, ModelSource
from .options import GenerateOptions, Texts, checked_latents, texts
from .params import SEAMLESS, size_values
from .prompt import with_prefix
from .prompt_cache import encoders_identity, make_cache
from .recipes import as_published
from .resolutions import resolutions
from .results import Result
from .run import Run, RunInputs
from .stores import make_store
from .text_encoders import TextEncoders, open_encoders
from .tokenizers import ClipTokenizer
from .tokenizers.text import TextTokenizer
from .upscalers import Upscaler

if TYPE_CHECKING:
    from typing_extensions import Unpack

Array = NDArray[np.float32]

ORDINARY_PROMPT = (
    "a photograph of a lighthouse on a cliff at dusk, waves breaking on the rocks below, storm clouds with a"
    " band of light at the horizon, long exposure, highly detailed, sharp focus"
)
"""What plans are made for where no prompt is given; it fits into one chunk of a CLIP encoder."""


class Pipeline:
    """A model ready to run; made by :func:`sdengine.load`.

    Safe to call from several threads: calls on one pipeline wait for each other at the network evaluations.

    Attributes:
        source: what :func:`sdengine.load` was given.
        recipe: how the publisher says that it is sampled, if its name tells (docs/recipes.md); None for others.
        model: where everything came from: family, components, scheduler settings, defaults.
        config: hyper-parameters per component (``"unet"``, ``"text_encoder"``, ``"vae"``).
        text_encoders: with their tokenizers.
        vae: the autoencoder.
        preview_vae: a tiny one for previews, or None.
        upscaler: the network of the hires pass that was planned or made last, or None.
        denoiser: the network that predicts.
        adapters: applies LoRAs to the networks.
        loras: those that apply unless a call says otherwise.
        image_prompt: the IP-Adapter, or None.
        controls: control networks, in the order in which they were given.
        memory: what generations may take, and how the networks are placed.
    """

    def __init__(self, source: ModelSource) -> None:
        limits = Limits(
            parse_size("memory_limit", source.memory_limit),
            parse_size("host_memory_limit", source.host_memory_limit),
        )
        weight_type = None if source.weight_type is None else check_type(source.weight_type)
        plan = plan_model(
            source.model,
            source.vae,
            source.text_encoders,
            family=source.family,
            prediction=source.prediction,
        )
        plan, self.recipe = as_published(plan, source.prediction is not None)
        plan = widened(plan, source.loras)
        self.source, self.model = source, plan
        self.config: Mapping[str, Mapping[str, Any]] = {
            name: component.config for name, component in plan.components.items()
        }
        check_choice("arithmetic", source.arithmetic, get_args(Arithmetic))
        self._devices = devices = open_devices(source.device, source.threads)
        for device in set(devices):
            device.set_arithmetic(source.arithmetic)
        self.text_encoders = TextEncoders(
            open_encoders(plan, source.tokenizer, devices.text, weight_type),
            plan.context_width,
            make_cache(source.prompt_cache),
            encoders_identity(
                plan, weight_type, parse_devices(source.device)["text"], source.arithmetic
            ),
        )
        for embedding in read_embeddings({} if source.embeddings is None else source.embeddings):
            self.text_encoders.add_embedding(embedding)
        self.vae = Autoencoder(
            plan.components["vae"], plan.latents.factor, devices.vae, weight_type
        )
        self.preview_vae: Autoencoder | None = None
        if source.preview_vae is not None:
            tiny = plan_preview_vae(plan, source.preview_vae)
            self.preview_vae = Autoencoder(tiny, plan.latents.factor, devices.vae, part="preview")
        self.upscaler: Upscaler | None = None
        self.image_prompt: LoadedImagePrompt | None = None
        denoiser = plan.components[plan.family.denoiser]
        if source.ip_adapter is not None:
            self.image_prompt = LoadedImagePrompt(
                source.ip_adapter, plan, devices.denoiser, source.image_encoder, weight_type
            )
            denoiser = self.image_prompt.plan.denoiser
        self.denoiser = _core.Network(
            denoiser.kind,
            dict(denoiser.config),
            make_store(denoiser, weight_type),
            devices.denoiser,
        )
        self.controls = [
            LoadedControl(given, plan, devices.denoiser, weight_type)
            for given in source.controlnets
        ]
        encoders = self.text_encoders.encoders
        networks = {e.use.component: e.network for e in encoders if e.network}
        networks[plan.family.denoiser] = self.denoiser
        folder = None if source.lora_dir is None else check_path("lora_dir", source.lora_dir)
        if folder is not None and not os.path.isdir(folder):
            raise ParameterError(f"lora_dir: {folder} is no folder")
        self.adapters = Loras(plan, networks, folder, self.text_encoders.knowing)
        self.set_loras(source.loras)
        self._running: set[_core.CancelToken] = set()
        self.memory: Memory | None = Memory(self, limits)
        self.vae.kept = self.text_encoders.kept = self.memory.kept
        if self.preview_vae is not None:
            self.preview_vae.kept = self.memory.kept

    def __repr__(self) -> str:
        return f"<sdengine.Pipeline {self.model.title} from {str(self.model.path)!r}>"

    def set_loras(self, loras: Sequence[LoraLike] | LoraLike | None) -> None:
        """Choose the LoRAs that apply from now on, instead of those before; an empty list for none.

        ``pipe.set_loras([("style.safetensors", 0.8), sdengine.Lora("detail.safetensors", 0.5, end=0.6)])``

        Args:
            loras: paths, (path, scale), (path, scale, text_encoder_scale) or :class:`sdengine.Lora`.

        Raises:
            ParameterError: there is no such file, or a scale is out of range.
            FormatError: a file is damaged.
            WeightsError: a file belongs to another family, or holds NaN. The LoRAs before stay.
        """
        chosen = as_loras(loras)
        with self.adapters.applied(chosen):
            self.loras = chosen

    @property
    def tokenizer(self) -> ClipTokenizer | TextTokenizer:
        """The tokenizer of the first text encoder."""
        first: ClipTokenizer | TextTokenizer = self.text_encoders.encoders[0].tokenizer
        return first

    @property
    def resolutions(self) -> list[tuple[int, int]]:
        """Widths and heights that the model is at home in, from tall to wide; ``aspect_ratio=`` takes one of them."""
        return resolutions(self.model.family, self.model.defaults)

    @property
    def threads(self) -> int:
        """Threads of the denoiser's device."""
        return self._devices.denoiser.threads

    @property
    def devices(self) -> Devices:
        """The devices that denoiser, text encoders and autoencoder run on."""
        return self._devices

    @property
    def networks(self) -> dict[str, _core.Network]:
        """The native networks by component; both halves of the autoencoder, control networks by position.

        With the decoder of previews and the upscaler of the hires pass, where there are.
        """
        return {
            self.model.family.denoiser: self.denoiser,
            **self.text_encoders.networks,
            "vae_encoder": self.vae.encoder,
            "vae_decoder": self.vae.decoder,
            **{f"control_{i}": control.network for i, control in enumerate(self.controls)},
            **({} if self.image_prompt is None else self.image_prompt.networks),
            **({} if self.preview_vae is None else {"preview_decoder": self.preview_vae.decoder}),
            **({} if self.upscaler is None else {"upscaler": self.upscaler.network}),
        }

    @property
    def graphs_built(self) -> dict[str, int]:
        """Graphs built so far per network: one per input shape, however many evaluations."""
        return {name: network.graphs_built for name, network in self.networks.items()}

    @contextmanager
    def running(self, token: _core.CancelToken | None = None) -> Iterator[_core.CancelToken]:
        """A token that :meth:`cancel` reaches while the block runs."""
        token = token or _core.CancelToken()
        inner = token in self._running
        self._running.add(token)
        try:
            yield token
        finally:
            if not inner:
                self._running.discard(token)

    def cancel(self) -> None:
        """Stop every call that is running on this pipeline; each raises :class:`sdengine.Cancelled`."""
        for token in list(self._running):
            token.cancel()

    def add_embedding(self, name: str, path: AnyPath) -> None:
        """Let prompts use a learned word (textual inversion) from now on; see docs/prompts.md.

        Args:
            name: how prompts call it: ``name``, ``embedding:name``. No word that the text encoder knows.
            path: A1111's ``.pt``, diffusers' ``.bin``, or a safetensors file.

        Raises:
            WeightsError: its vectors fit none of the model's text encoders.
            UnsupportedModelError: the file is something else.
            FormatError: the file is damaged.
            ParameterError: the name is not allowed.
        """
        self.text_encoders.add_embedding(read_embedding(path, name))

    # -------------------------------------------------------------------------------------- stages
    def encode_prompt(
        self,
        prompt: Texts,
        negative_prompt: Texts | None = "",
        *,
        prompt_2: Texts | None = None,
        negative_prompt_2: Texts | None = None,
        clip_skip: int | None = None,
        weighting: str = "a1111",
        references: Any = None,
    ) -> Conditioning:
        """Encode prompts as the denoiser reads them.

        Args:
            prompt: one prompt or several, with A1111 emphasis: ``(word:1.2)``, ``[word]``, ``BREAK``. Schedules and
                ``AND`` belong to a run and stay plain words here.
            negative_prompt: one for all of them, or as many. None is no text: zeros for models that were trained
                so (SDXL), an empty text for the others.
            prompt_2: what the second text encoder reads; None is `prompt`.
            negative_prompt_2: the same for the negative prompt.
            clip_skip: 1 takes the text encoders' last layer, 2 the one before; None is the model's own.
            weighting: a rule of :data:`sdengine.prompt.RULES`.
            references: pictures that the prompts speak of, one or several, for models whose text encoder has eyes
                (Qwen-Image-Edit).

        Returns:
            Context and negative context, float32 ``[N, tokens, width]`` (77 per chunk for CLIP), pooled texts, and
            the texts' lengths where the model reads no padding and they differ.

        Raises:
            ParameterError: too long a prompt, or numbers of prompts that do not fit.
        """
        prompts = texts("prompt", prompt)
        second, negative, negative_2 = (
            None if value is None else texts(name, value)
            for name, value in (
                ("prompt_2", prompt_2),
                ("negative_prompt", negative_prompt),
                ("negative_prompt_2", negative_prompt_2),
            )
        )
        prefix = self.model.family.prompt_prefix
        paired = self.text_encoders.pair(prompts, second, len(prompts))
        positives = [with_prefix(text, prefix) for text in paired]
        negatives = self.negatives(negative, negative_2, len(prompts))
        listed = references if isinstance(references, list | tuple) else [references]
        seen = [images.on_white(images.open_image(p)) for p in listed if p is not None]
        with self.running() as token, self.adapters.applied(self.loras):
            encoded = self.text_encoders.encode(
                [*positives, *negatives],
                clip_skip=clip_skip,
                weighting=weighting,
                adapted=self.adapters.in_text_encoders(self.loras),
                pictures=seen,
                cancel=token,
            )
        own, away = (stack_texts([encoded[t] for t in of]) for of in (positives, negatives))
        return Conditioning(
            *(own.context, away.context, own.pooled, away.pooled),
            *(own.lengths, away.lengths),
            *(own.inputs, away.inputs),
        )

    def negatives(
        self, given: list[str] | None, second: list[str] | None, count: int
    ) -> list[tuple[str, ...]]:
        """The negative texts of `count` pictures; empty tuples where zeros stand for no text."""
        if given is None and second is None and self.model.family.empty_negative_is_zeros:
            return [()] * count
        return self.text_encoders.pair(given or [self.model.family.usual_negative], second, count)

    def predict(
        self,
        latents: Array,
        timestep: float | Sequence[float],
        cond: Conditioning,
        *,
        sizes: Mapping[str, float] | None = None,
        guidance_scale: float | None = None,
    ) -> Array:
        """One raw evaluation of the denoiser, without guidance.

        Args:
            latents: float32 ``[N, C, h, w]`` as the network takes them (input scaling done), C its input channels.
            timestep: one for all, or N of them; 0 to 999, fractions allowed.
            cond: conditioning of one prompt or N; the negative part is not used.
            sizes: what an SDXL class model is told about the picture, see :class:`sdengine.GenerateOptions`; the
                size of the latents by default.
            guidance_scale: for models that were distilled with it (LCM); the model's default otherwise.

        Returns:
            The network's output (noise, velocity or sample, as the model predicts), float32 ``[N, 4, h, w]``.

        Raises:
            ParameterError: shapes that do not fit.
            NumericError: the network produced NaN or infinity.
        """
        latents = checked_latents("latents", latents)
        count = latents.shape[0]
        try:
            steps = np.broadcast_to(np.asarray(timestep, np.float32), (count,))
        except (TypeError, ValueError, OverflowError):
            raise ParameterError(
                f"timestep must be one number or {count} of them, not {timestep!r}"
            ) from None
        if not isinstance(cond, Conditioning):
            raise ParameterError("cond must be what encode_prompt() returned")
        cond = cond.repeat(count)
        height, width = (side * self.model.latents.factor for side in latents.shape[2:])
        told = generation.told(
            self.model,
            count,
            size_values("sizes", self.model.family.size_conditioning, sizes, height, width),
            {},
            self._distilled_guidance(guidance_scale),
        )
        inputs = {
            "latents": latents,
            "timesteps": np.ascontiguousarray(steps),
            **told.inputs(cond.context, cond.pooled, cond.inputs, False),
        }
        together = of_equal_length(cond.lengths, count)
        parts = []
        with self.running() as token, self.adapters.applied(self.loras):
            for length, pictures in together.items():
                part = {name: array[pictures] for name, array in inputs.items()}
                part["context"] = np.ascontiguousarray(part["context"][:, :length])
                parts.append(self.denoiser.run(part, {}, token)["prediction"])
        found = np.concatenate(parts)
        found[np.concatenate(list(together.values()))] = found.copy()
        return found

    def _distilled_guidance(self, scale: float | None) -> float | None:
        if not self.model.reads_guidance:
            return None
        return self.model.defaults.guidance if scale is None else scale

    def encode_image(
        self, image: Any, *, seed: int | None = None, tile: int | None = None
    ) -> Array:
        """Encode a picture to latents, scaled as the denoiser sees them.

        Args:
            image: PIL picture, path, or array (uint8 ``[H, W, 3]``, or float 0..1), or a list of them of one size.
                Width and height must be multiples of 8.
            seed: of a sample of the posterior; None takes its mean.
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
        with self.running() as token:
            return self.vae.encode(np.concatenate(arrays), tile, token, seed=seed)

    def decode_latents(
        self,
        latents: Array,
        *,
        output_type: Literal["pil", "numpy"] = "pil",
        seamless: str = "",
        tile: int | None = None,
    ) -> Any:
        """Decode latents to pictures.

        Args:
            latents: float32 ``[N, C, h, w]``, scaled as the denoiser sees them.
            output_type: ``"pil"`` for a list of pictures, ``"numpy"`` for float32 ``[N, 3, 8 h, 8 w]`` in about -1..1.
            seamless: ``"x"``, ``"y"`` or ``"xy"``: opposite edges join.
            tile: side of a tile in latents; 0 for one piece, None to decide by size.

        Raises:
            ParameterError: shapes that do not fit.
            NumericError: the autoencoder produced NaN or infinity.
        """
        check_choice("output_type", output_type, ("pil", "numpy"))
        check_choice("seamless", seamless, SEAMLESS)
        array = checked_latents("latents", latents)
        with self.running() as token:
            pictures = self.vae.decode(array, tile, token, circular=SEAMLESS[seamless])
        return pictures if output_type == "numpy" else images.to_pil(pictures)

    def preview(
        self,
        latents: Array,
        method: str | None = None,
        *,
        seamless: str = "",
        tile: int | None = None,
    ) -> list[Image.Image]:
        """Quick pictures of clean latents.

        Args:
            latents: float32 ``[N, C, h, w]``, scaled as the denoiser sees them.
            method: ``"linear"``, a map to one colour per latent, at most 512 pixels along a side, in microseconds;
                ``"tiny"``, the autoencoder that was given as ``preview_vae``; ``"full"``, the model's own. None takes
                the tiny one where there is one, else the map.
            seamless: ``"x"``, ``"y"`` or ``"xy"``: opposite edges join.
            tile: of ``"full"``, as for :meth:`decode_latents`.

        Raises:
            ParameterError: the model's latents have no such map, or there is no tiny autoencoder.
        """
        if method is None:
            method = "linear" if self.preview_vae is None else "tiny"
        method = previews.check_method(method)
        if method == "full":
            return self._pictures(self.vae, latents, seamless, tile)
        if method == "linear":
            projection = self._projection()
            return previews.preview(
                checked_latents("latents", latents), projection.factors, projection.bias
            )
        if self.preview_vae is None:
            raise ParameterError(
                "the preview 'tiny' needs a tiny autoencoder (TAESD); give sdengine.load(..., preview_vae=...)"
            )
        return self._pictures(self.preview_vae, latents, seamless)

    def _pictures(
        self, vae: Autoencoder, latents: Array, seamless: str, tile: int | None = None
    ) -> list[Image.Image]:
        check_choice("seamless", seamless, SEAMLESS)
        array = checked_latents("latents", latents)
        if self.memory is not None:
            self.memory.before_preview(vae)
        with self.running() as token:
            return images.to_pil(vae.decode(array, tile, token, circular=SEAMLESS[seamless]))

    def _projection(self) -> previews.Projection:
        known = previews.stored(self.model.metadata)
        # A tiny autoencoder in the model's place has no scale of its own; the family's latents stay what they are.
        known = known or previews.known(self.model.latents, self.model.family.latents)
        if known is None:
            raise ParameterError(f"there are no preview colours for {self.model.title}")
        return known

    # ---------------------------------------------------------------------------------- generation
    def plan(
        self,
        width: int | None = None,
        height: int | None = None,
        batch_size: int = 1,
        *,
        prompt: Texts | None = None,
        negative_prompt: Texts | None = None,
        memory_limit: Size | None = None,
        host_memory_limit: Size | None = None,
        **options: Any,
    ) -> Plan:
        """How much memory a generation takes and how it would be placed; nothing is computed, no weight is read.

        ``print(pipe.plan(width=1024, height=1024))``

        Args:
            width: pixels; None is the model's own.
            height: pixels.
            batch_size: pictures.
            prompt: as for :meth:`generate`; None is a text of ordinary length. Long ones take more.
            negative_prompt: the same.
            memory_limit: instead of the one that the model was loaded with: ``"4GB"``, ``"1.5GiB"`` or bytes.
            host_memory_limit: the same for the process, where the device has memory of its own.
            options: all others of :meth:`generate`: guidance, given pictures, hires, tiles.

        Returns:
            A :class:`sdengine.Plan`; its `fits` says whether the generation would be accepted.

        Raises:
            ParameterError: as those of :meth:`generate`.
        """
        assert self.memory is not None
        limits = Limits(
            parse_size("memory_limit", memory_limit) or self.memory.limits.device,
            parse_size("host_memory_limit", host_memory_limit) or self.memory.limits.host,
        )
        given: dict[str, Any] = {
            **options,
            "width": width,
            "height": height,
            "batch_size": batch_size,
        }
        if prompt is None and given.get("conditioning") is None:
            prompt = ORDINARY_PROMPT
        return self.memory.plan(prompt, negative_prompt, given, limits)

    def start(
        self,
        prompt: Texts | None = None,
        negative_prompt: Texts | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Run:
        """Prepare a generation without doing it: the run's ``step()`` does one sampler step.

        With a hires pass it is the first one's run, and :meth:`sdengine.Run.next_pass` gives the second's.

        Arguments and errors are those of :meth:`generate`.
        """
        return generation.begin(self, prompt, negative_prompt, options)

    def second_pass(self, first: Run, inputs: RunInputs, token: _core.CancelToken) -> Run:
        """The hires pass after `first`; users call :meth:`sdengine.Run.next_pass`."""
        return passes.second_pass(self, first, inputs, token)

    def generate(
        self,
        prompt: Texts | None = None,
        negative_prompt: Texts | None = None,
        *,
        callback: Callback | None = None,
        refiner: Pipeline | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Result:
        """Make pictures. What is not given, or None, is the model's own default.

        ``pipe.generate("a lighthouse at dusk", steps=20, seed=42).image.save("lighthouse.png")``

        Args:
            prompt: one prompt, or one per picture, in A1111's notation (docs/prompts.md).
            negative_prompt: what should not be seen; one, or one per picture.
            callback: called after every step with a :class:`sdengine.StepEvent`.
            refiner: a refiner model that takes over where ``denoising_end`` (0.8) stops (SDXL's ensemble of experts).
            options: see :class:`sdengine.GenerateOptions`: size, steps, guidance, sampler, seed, given pictures, ...

        Raises:
            ParameterError: an argument is out of range; the message says what is allowed.
            NumericError: NaN or infinity appeared; the message names the step.
            Cancelled: :meth:`cancel` was called, or the event's ``cancel``.
        """
        if not isinstance(refiner, Pipeline | None):
            raise ParameterError(f"refiner must be a loaded pipeline, not {refiner!r}")
        with self.running() as token:  # callbacks too may call cancel()
            if refiner is None:
                run = generation.begin(self, prompt, negative_prompt, options, token)
                return passes.complete(run, callback)
            return passes.refined(self, refiner, prompt, negative_prompt, options, callback, token)
