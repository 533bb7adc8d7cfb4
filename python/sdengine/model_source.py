"""How a model was loaded, so that another process can load it once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Literal

from .adapters import Lora
from .control import ControlNet
from .embeddings import Embeddings
from .loading.plan import Autoencoders
from .loading.text_parts import TextEncoders as TextEncoderPaths
from .loading.text_parts import Tokenizers
from .memory.sizes import Size

if TYPE_CHECKING:
    from .pipeline import Pipeline

AnyPath = str | PathLike[str]
Arithmetic = Literal["precise", "standard", "fast"]


@dataclass(frozen=True)
class ModelSource:
    """What :func:`sdengine.load` was given: enough to load the model once more."""

    model: AnyPath
    vae: Autoencoders | None = None
    text_encoders: TextEncoderPaths | None = None
    tokenizer: Tokenizers | None = None
    family: str | None = None
    prediction: str | None = None
    device: str | Mapping[str, str] = "auto"
    threads: int = 0
    arithmetic: Arithmetic = "standard"
    weight_type: str | None = None
    embeddings: Embeddings | None = None
    loras: tuple[Lora, ...] = ()
    lora_dir: AnyPath | None = None
    controlnets: Sequence[AnyPath | ControlNet] = ()
    ip_adapter: AnyPath | None = None
    image_encoder: AnyPath | None = None
    preview_vae: Autoencoders | None = None
    prompt_cache: AnyPath | Literal[False] | None = None
    memory_limit: Size | None = None
    host_memory_limit: Size | None = None

    def open(self) -> Pipeline:
        """Load it."""
        from .pipeline import Pipeline  # which reads this module

        return Pipeline(self)
