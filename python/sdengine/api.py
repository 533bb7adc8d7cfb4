"""The two functions that most programs need: :func:`load` and :func:`generate`."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from .adapters import LoraLike, as_loras
from .control import ControlNet
from .embeddings import Embeddings
from .errors import ParameterError, SDEngineError
from .loading.text_parts import Tokenizers
from .memory.sizes import Size
from .model_source import Arithmetic, ModelSource
from .pipeline import Pipeline
from .results import Result

AnyPath = str | PathLike[str]

DEMO_MODEL = Path(__file__).parent / "data" / "demo.gguf"
"""The model inside the package: coloured shapes on coloured backgrounds, 128 x 128 (see demo/MODEL_CARD.md)."""


def load(
    model: AnyPath,
    *,
    vae: AnyPath | Sequence[AnyPath] | None = None,
    text_encoders: AnyPath | Sequence[AnyPath] | Mapping[str, AnyPath] | None = None,
    tokenizer: Tokenizers | None = None,
    family: str | None = None,
    prediction: str | None = None,
    device: str | Mapping[str, str] = "auto",
    threads: int = 0,
    arithmetic: Arithmetic = "standard",
    weight_type: str | None = None,
    embeddings: Embeddings | None = None,
    loras: Sequence[LoraLike] | LoraLike | None = None,
    lora_dir: AnyPath | None = None,
    controlnets: AnyPath | ControlNet | Sequence[AnyPath | ControlNet] = (),
    ip_adapter: AnyPath | None = None,
    image_encoder: AnyPath | None = None,
    preview_vae: AnyPath | Sequence[AnyPath] | None = None,
    prompt_cache: AnyPath | Literal[False] | None = None,
    memory_limit: Size | None = None,
    host_memory_limit: Size | None = None,
) -> Pipeline:
    """Load a model. Weights are mapped, not read: this takes milliseconds.

    Args:
        model: a GGUF, safetensors or torch checkpoint file, or a diffusers folder.
        vae: a file or folder whose autoencoder replaces the model's, or completes it; or the encoder
            file and the decoder file of a tiny one (TAESD).
        text_encoders: the same for text encoders: a path, a list, or a mapping from their names: the component's, or
            ``clip_l``, ``clip_g``, ``t5xxl``.
        tokenizer: a folder with ``vocab.json`` and ``merges.txt``, a ``tokenizer.json``, or a
            tokenizer; a mapping from the text encoders' names where there are several. None looks in the GGUF, in
            the model's folder, beside the file and in the hub cache.
        family: take the model for a member of this family instead of finding out.
        prediction: what the denoiser predicts where files do not tell or are wrong: ``"epsilon"``, ``"v_prediction"``
            or ``"sample"``.
        device: a name from :func:`sdengine.devices`, ``"auto"``, or a mapping to names from ``"denoiser"``, ``"text"``
            and ``"vae"`` (docs/devices.md).
        threads: CPU threads; 0 takes one per physical core.
        arithmetic: how much may be rounded on the CPU. ``"standard"`` is float32, whose 3x3 convolutions take
            Winograd's shorter way where it is faster (relative error 1e-6 instead of 3e-7). ``"precise"`` sums these
            directly, which takes up to twice as long. ``"fast"`` rounds what is multiplied to 8 bits for quantized
            weights and to bfloat16 for others and for attention, where the processor has instructions for that, and
            else is ``"standard"``: pictures change in details (docs/arithmetic.md).
        weight_type: hold the weights in this type (``"q8_0"``, ``"q4_k"``, ...) with the rules of
            :func:`sdengine.convert`, quantized while loading; None uses the file's own, in place.
        embeddings: textual inversion files: a mapping from the names that prompts use to paths, or paths alone, whose
            names are the tokens in them or the file names (docs/prompts.md).
        loras: LoRAs that apply to every call, see :meth:`sdengine.Pipeline.set_loras` and docs/adapters.md.
        lora_dir: folder where ``<lora:name:0.8>`` in a prompt finds its file, subfolders too.
        controlnets: files or folders of ControlNets and T2I adapters for this model, see docs/control.md.
        ip_adapter: the file of an IP-Adapter for this model, or the file or folder of FLUX.1 Redux.
        image_encoder: the CLIP or SigLIP vision encoder that it was trained with; None looks beside it.
        preview_vae: a tiny autoencoder for this model's latents (TAESD, TAESDXL, TAESD3, TAEF1) that draws previews:
            one file or folder, or the encoder file and the decoder file.
        prompt_cache: a folder that keeps encoded prompts for other processes, up to 1 GiB; None keeps them in memory
            only (128 MiB), False nowhere. What is kept is bit for bit what the text encoders give.
        memory_limit: what generations may take on the device: ``"4GB"``, ``"512MB"``, ``"1.5GiB"`` or bytes. On the CPU
            it is that of the process, with Python itself. None goes by what is free. See docs/memory.md.
        host_memory_limit: the same for the process, where the device has memory of its own.

    Returns:
        A pipeline, ready to generate.

    Raises:
        FormatError: a file is damaged.
        UnsupportedModelError: the file is something that sdengine does not run; the message says what.
        WeightsError: a parameter is missing or does not fit.
        TokenizerError: there is no tokenizer.
        ParameterError: an argument is not of its type or range.
        DeviceError: there is no such device.
    """
    single = (str, PathLike, ControlNet)
    source = ModelSource(
        model,
        vae=vae,
        text_encoders=text_encoders,
        tokenizer=tokenizer,
        family=family,
        prediction=prediction,
        device=device,
        threads=threads,
        arithmetic=arithmetic,
        weight_type=weight_type,
        embeddings=embeddings,
        loras=as_loras(loras),
        lora_dir=lora_dir,
        controlnets=[controlnets] if isinstance(controlnets, single) else _listed(controlnets),
        ip_adapter=ip_adapter,
        image_encoder=image_encoder,
        preview_vae=preview_vae,
        prompt_cache=prompt_cache,
        memory_limit=memory_limit,
        host_memory_limit=host_memory_limit,
    )
    return source.open()


def _listed(controlnets: Any) -> list[AnyPath | ControlNet]:
    if not isinstance(controlnets, list | tuple) or not all(
        isinstance(net, str | PathLike | ControlNet) for net in controlnets
    ):
        raise ParameterError(
            f"controlnets must be a list of paths or sdengine.ControlNet, not {controlnets!r}"
        )
    return list(controlnets)


_demo_lock = threading.Lock()
_demo: list[Pipeline] = []


def demo_pipeline() -> Pipeline:
    """The pipeline of the demo model inside the package; loaded once.

    Raises:
        SDEngineError: the package was built without it.
    """
    with _demo_lock:
        if not _demo:
            if not DEMO_MODEL.is_file():
                raise SDEngineError(
                    f"the demo model {DEMO_MODEL.name} is not in this installation; load a model with sdengine.load"
                )
            _demo.append(load(DEMO_MODEL))
        return _demo[0]


def generate(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = None,
    *,
    model: AnyPath | None = None,
    **options: Any,
) -> Result:
    """Make pictures with the demo model inside the package, or with `model`.

    ``sdengine.generate("a red circle on a blue background").image.save("out.png")``

    Args:
        prompt: one prompt, or one per picture.
        negative_prompt: what should not be seen.
        model: a model to load for this call; a program that makes several pictures calls :func:`load` once instead.
        options: those of :meth:`sdengine.Pipeline.generate`.

    Raises:
        SDEngineError: see :func:`load` and :meth:`sdengine.Pipeline.generate`.
    """
    pipe = demo_pipeline() if model is None else load(model)
    return pipe.generate(prompt, negative_prompt, **options)
