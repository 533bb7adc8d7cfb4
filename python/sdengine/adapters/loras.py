"""The adapters of a pipeline: which are wanted, how strongly, and when."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from sdengine import _core
from sdengine.adapters.files import AdapterFile, read_adapter
from sdengine.adapters.targets import Targets
from sdengine.checks import check_number
from sdengine.embeddings import Embedding
from sdengine.errors import ParameterError, UnwiseWarning
from sdengine.loading import ModelPlan
from sdengine.prompt import LoraTag
from sdengine.recipes import Recipe, find_recipe, with_recipe

MAX_SCALE = 1000.0
SUFFIXES = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin", ".gguf")
_MOST = 64  # adapters at a time
_KEPT = 32  # read headers that are kept for the next switch
_LISTED = 20  # names in a message


@dataclass(frozen=True)
class Lora:
    """A LoRA, or another adapter, and how strongly it applies.

    Attributes:
        path: the file, or the folder that PEFT wrote.
        scale: strength in the denoiser, -1000 to 1000: one for all steps, or one for each; None is the publisher's
            (1 for nearly all).
        text_encoder_scale: strength in the text encoders; None is `scale` (its first entry).
        start: part of the steps before which it rests in the denoiser, 0 to 1.
        end: part of the steps after which it rests, 0 to 1.

    Raises:
        ParameterError: a value is out of range.
    """

    path: str | os.PathLike[str]
    scale: float | Sequence[float] | None = None
    text_encoder_scale: float | None = None
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike) or not os.fspath(self.path):
            raise ParameterError(f"a LoRA is given by its path, not {self.path!r}")
        if isinstance(self.scale, Sequence) and not isinstance(self.scale, str):
            object.__setattr__(self, "scale", tuple(self.scale))
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if not scales:
            raise ParameterError(f"{self.name}: scale has no entries")
        for value in (*scales, self.text_encoder_scale):
            if value is not None:
                check_number(f"the scale of the LoRA {self.name!r}", value, -MAX_SCALE, MAX_SCALE)
        for which in ("start", "end"):
            check_number(f"{which} of the LoRA {self.name!r}", getattr(self, which), 0.0, 1.0)
        if self.start >= self.end:
            raise ParameterError(
                f"the LoRA {self.name!r} starts at {self.start:g} and ends at {self.end:g}; start must come first"
            )

    @property
    def name(self) -> str:
        """As prompts call it: the file's name without its suffix."""
        file = Path(self.path)
        return file.stem if file.suffix.lower() in SUFFIXES else file.name

    def scale_at(self, step: int, steps: int) -> float:
        """Strength in the denoiser at a step of a run, counted from 0."""
        if not self.start <= step / max(1, steps) < self.end:
            return 0.0
        if isinstance(self.scale, tuple):
            return float(self.scale[min(step, len(self.scale) - 1)])
        return 1.0 if self.scale is None else float(self.scale)  # type: ignore[arg-type]

    @property
    def in_text_encoders(self) -> float:
        """Strength in the text encoders."""
        if self.text_encoder_scale is not None:
            return float(self.text_encoder_scale)
        return replace(self, start=0.0, end=1.0).scale_at(0, 1)

    def __str__(self) -> str:
        """``name:scale``, as a picture's parameters say it; ``name:scale:text encoders'`` where they differ."""
        steady = replace(self, start=0.0, end=1.0)
        scales = self.scale if isinstance(self.scale, tuple) else (steady.scale_at(0, 1),)
        text = f"{self.name}:" + "/".join(map(_shown, scales))
        if (self.in_text_encoders,) != tuple(scales):
            text += f":{_shown(self.in_text_encoders)}"
        start, end = _shown(self.start), _shown(self.end)
        return text if (self.start, self.end) == (0, 1) else f"{text} [{start}-{end}]"

    @property
    def is_idle(self) -> bool:
        """True if it never changes the denoiser."""
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        return all(scale == 0 for scale in scales)


LoraLike: TypeAlias = (
    "str | os.PathLike[str] | Lora | tuple[str | os.PathLike[str], float]"
    " | tuple[str | os.PathLike[str], float, float]"
)
"""A path, (path, scale), (path, scale, text_encoder_scale), or a :class:`Lora`."""


def as_loras(given: Sequence[LoraLike] | LoraLike | None) -> tuple[Lora, ...]:
    """Adapters in any of the forms that the API takes.

    Raises:
        ParameterError: a form that is not understood, or a value out of range.
    """
    if given is None:
        return ()
    alone = isinstance(given, tuple) and len(given) > 1 and isinstance(given[1], Real)
    listed: Any = [given] if alone or isinstance(given, str | os.PathLike | Lora) else given
    if not isinstance(listed, Sequence):
        raise ParameterError(f"loras must be a list of paths or (path, scale), not {given!r}")
    if len(listed) > _MOST:
        raise ParameterError(f"{len(listed)} LoRAs were given; at most {_MOST} apply at a time")
    return tuple(_as_lora(entry) for entry in listed)


def parse_lora(text: str) -> Lora:
    """``FILE``, ``FILE:SCALE`` or ``FILE:SCALE:TEXT_ENCODER_SCALE``, as the command line takes it."""
    found = re.fullmatch(r"(.+?)((?::[+-]?(?:\d+\.?\d*|\.\d+)){0,2})", text, re.DOTALL)
    if found is None:
        raise ParameterError("a LoRA is FILE or FILE:SCALE, not an empty text")
    scales = [float(number) for number in found[2].split(":")[1:]]
    return Lora(found[1], *scales)


class Loras:
    """The adapters that apply to the networks of a pipeline; one set at a time, shared by all its runs."""

    def __init__(
        self,
        plan: ModelPlan,
        networks: Mapping[str, _core.Network],
        folder: Path | None = None,
        knowing: Callable[[Sequence[Embedding]], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._plan, self._networks, self._folder = plan, networks, folder
        self._knowing = knowing
        self._targets: Targets | None = None
        self._files: dict[tuple[str, int, int], AdapterFile] = {}
        self._lock = threading.RLock()

    def open(self, lora: Lora) -> AdapterFile:
        """The adapter's file, resolved against the model; kept until it changes on the disk.

        Raises:
            ParameterError, FormatError, WeightsError: see :func:`sdengine.adapters.read_adapter`.
        """
        path = Path(lora.path).absolute()
        try:
            state = path.stat()
        except (OSError, ValueError):
            # One that was opened stays mapped, so that a run can end without its file.
            kept = [file for key, file in self._files.items() if key[0] == str(path)]
            if kept:
                return kept[-1]
            raise ParameterError(f"{str(path)[:200]}: no such LoRA file; check the path") from None
        key = (str(path), state.st_mtime_ns, state.st_size)
        with self._lock:
            if key in self._files:
                return self._files[key]
            if self._targets is None:
                self._targets = Targets(self._plan)
            file = read_adapter(path, self._targets)
            while len(self._files) >= _KEPT:
                self._files.pop(next(iter(self._files)))
            self._files[key] = file
        if file.unused:
            warnings.warn(_complaint(file), UnwiseWarning, stacklevel=2)
        return file

    def named(self, given: Sequence[Lora], tags: Sequence[LoraTag]) -> tuple[Lora, ...]:
        """The given adapters and those that prompts ask for by name; a tag decides over a given one's scale.

        Raises:
            ParameterError: there is no adapter of a name; the message lists those that there are.
        """
        chosen = list(given)
        for tag in tags:
            scales: dict[str, Any] = {
                "scale": tag.weight,
                "text_encoder_scale": tag.text_encoder_weight,
            }
            at = next((i for i, lora in enumerate(chosen) if _same(lora.name, tag.name)), None)
            if at is None:
                chosen.append(Lora(self._find(tag.name, chosen), **scales))
            else:
                chosen[at] = replace(chosen[at], **scales)
        return as_loras(chosen)

    def _find(self, name: str, given: Sequence[Lora]) -> Path:
        files = files_in(self._folder)
        match = next((file for known, file in files.items() if _same(known, name)), None)
        if match is not None:
            return match
        known = sorted({*files, *(lora.name for lora in given)})
        there = ", ".join(known[:_LISTED]) + (", ..." if len(known) > _LISTED else "")
        if known:
            advice = f"there are: {there}"
        elif self._folder is None:
            advice = "give loras= or lora_dir= when the model is loaded"
        else:
            advice = f"{self._folder} holds none"
        raise ParameterError(f"the prompt asks for the LoRA {name!r}, which is not known; {advice}")

    def in_text_encoders(self, loras: Sequence[Lora]) -> list[tuple[object, ...]]:
        """What of these adapters the text encoders see: files and strengths, in order; empty for nothing.

        Raises:
            ParameterError, FormatError, WeightsError: as :meth:`open`.
        """
        denoiser = self._plan.family.denoiser
        seen: list[tuple[object, ...]] = []
        with self._lock:
            for lora in loras:
                file = self.open(lora)
                if lora.in_text_encoders and set(file.networks) - {denoiser}:
                    key = next(key for key, known in self._files.items() if known is file)
                    seen.append((*key, *_inside(Path(key[0])), lora.in_text_encoders))
        return seen

    @contextmanager
    def applied(
        self, loras: Sequence[Lora], step: int | None = None, steps: int = 1
    ) -> Iterator[None]:
        """Exactly these adapters apply inside the block: to all networks, or at a step to the denoiser alone.

        Prompts that are read inside the block know the learned words that come with them.

        Other threads' blocks wait for it, for the networks are shared. Applying the same adapters again costs
        nothing, and other scales next to nothing.

        Raises:
            WeightsError: one does not fit, or holds NaN; then none applies.
        """
        with self._lock:
            files = [(lora, self.open(lora)) for lora in loras]
            for component, network in self._networks.items():
                in_denoiser = component == self._plan.family.denoiser
                if step is not None and not in_denoiser:
                    continue  # a step reads no text
                uses = []
                for lora, file in files:
                    idle = lora.is_idle if in_denoiser else lora.in_text_encoders == 0
                    if component not in file.networks or idle:
                        continue
                    at_step = lora.scale_at(step or 0, steps)
                    scale = at_step if in_denoiser else lora.in_text_encoders
                    uses.append((file.networks[component], scale))
                network.set_adapters(uses)
            words = [
                word
                for lora, file in files
                if not (lora.is_idle and lora.in_text_encoders == 0)
                for word in file.words
            ]
            if self._knowing is None or step is not None or not words:
                yield
                return
            with self._knowing(words):
                yield


def files_in(folder: Path | None) -> dict[str, Path]:
    """Name -> file; also under the path below the folder, for names that occur twice."""
    files: dict[str, Path] = {}
    if folder is None:
        return files
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            files.setdefault(file.stem, file)
            files.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
    return files


def with_strengths(family: str, loras: Sequence[Lora]) -> tuple[Lora, ...]:
    """The adapters with the publishers' strengths where the caller gave none."""
    filled = []
    for lora in loras:
        recipe = find_recipe(family, lora.name) if lora.scale is None else None
        own = 1.0 if recipe is None or recipe.lora_strength is None else recipe.lora_strength
        filled.append(replace(lora, scale=own) if lora.scale is None else lora)
    return tuple(filled)


def as_recommended(
    plan: ModelPlan, loras: Sequence[Lora], own: Recipe | None = None
) -> tuple[ModelPlan, Recipe | None]:
    """The plan with what the publisher of a LoRA recommends, and the recipe in force: that one, or the model's own."""
    recipe = find_recipe(plan.family.name, *(lora.name for lora in loras if not lora.is_idle))
    return (plan, own) if recipe is None else (with_recipe(plan, recipe), recipe)


def check_steps(loras: Sequence[Lora], steps: int) -> None:
    """Raise ParameterError if a schedule of scales has another length than the run."""
    for lora in loras:
        if isinstance(lora.scale, tuple) and len(lora.scale) != steps:
            raise ParameterError(
                f"the LoRA {lora.name!r} has {len(lora.scale)} scales for {steps} steps; give one, or one per step"
            )


def _as_lora(entry: Any) -> Lora:
    if isinstance(entry, Lora):
        return entry
    if isinstance(entry, tuple) and 1 <= len(entry) <= 3:
        return Lora(*entry)
    if isinstance(entry, str | os.PathLike):
        return Lora(entry)
    raise ParameterError(
        f"a LoRA is a path, (path, scale), (path, scale, text_encoder_scale) or sdengine.Lora, not {entry!r}"
    )


def _inside(path: Path) -> list[tuple[str, int, int]]:
    """The state of the files of a folder, which its own does not tell; nothing for a file."""
    if not path.is_dir():
        return []
    states = [(file.name, file.stat()) for file in sorted(path.iterdir())]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _shown(number: Any) -> str:
    """The shortest text that reads back as the same number."""
    return repr(float(number)).removesuffix(".0")


def _same(known: str, asked: str) -> bool:
    return known.casefold() == asked.casefold()


def _complaint(file: AdapterFile) -> str:
    shown = ", ".join(repr(name) for name in file.unused[:3])
    more = f" and {len(file.unused) - 3} more" if len(file.unused) > 3 else ""
    return (
        f"{file.path}: these tensors have no meaning in this model and are left out: {shown}{more}"
    )
