"""The parameters of one generation: defaults filled in, ranges checked, written as metadata."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from . import prompt as prompts
from .components import MAX_BATCH
from .errors import ParameterError
from .loading import ModelPlan
from .sampling import resolve_names

MAX_SIDE = 8192
MAX_STEPS = 1000
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class GenerateParameters:
    """Everything that decides what a picture looks like, besides the model. See ``Pipeline.generate``."""

    prompt: list[str]
    negative_prompt: list[str]
    width: int
    height: int
    steps: int
    guidance_scale: float
    guidance_rescale: float
    sampler: str
    schedule: str
    eta: float | None
    seed: int
    batch_size: int
    clip_skip: int
    weighting: str

    @classmethod
    def resolve(cls, plan: ModelPlan, **given: Any) -> GenerateParameters:
        """Fill in the model's defaults where the caller said None, and check every range.

        Raises:
            ParameterError: a value is out of range.
        """
        defaults = plan.defaults
        batch_size = given["batch_size"]
        if batch_size is None:
            batch_size = len(given["prompt"])
        sampler, implied = resolve_names(given["sampler"] or defaults.sampler)
        _, schedule = resolve_names(sampler, given["schedule"] or implied or defaults.schedule)
        values = {
            **given,
            "width": _or(given["width"], defaults.width),
            "height": _or(given["height"], defaults.height),
            "steps": _or(given["steps"], defaults.steps),
            "guidance_scale": _or(given["guidance_scale"], defaults.guidance),
            "sampler": sampler,
            "schedule": schedule,
            "batch_size": batch_size,
            "clip_skip": _or(given["clip_skip"], 1),
        }
        cls(**values)._check(plan.latents.factor)
        # numpy's numbers are welcome, and become plain ones.
        for name in ("width", "height", "steps", "seed", "batch_size", "clip_skip"):
            values[name] = int(values[name])
        values["guidance_scale"] = float(values["guidance_scale"])
        return cls(**values)

    def _check(self, factor: int) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            _whole(name, value, factor, MAX_SIDE)
            if value % factor:
                raise ParameterError(
                    f"{name} must be a multiple of {factor}, not {value};"
                    f" the nearest are {value // factor * factor} and {(value // factor + 1) * factor}"
                )
        _whole("steps", self.steps, 1, MAX_STEPS)
        _whole("batch_size", self.batch_size, 1, MAX_BATCH)
        _whole("clip_skip", self.clip_skip, 1, 100)
        _whole("seed", self.seed, 0, MAX_SEED - self.batch_size)
        _number("guidance_scale", self.guidance_scale, 0.0, 1000.0)
        _number("guidance_rescale", self.guidance_rescale, 0.0, 1.0)
        if self.eta is not None:
            _number("eta", self.eta, 0.0, 10.0)
        if self.weighting not in prompts.RULES:
            raise ParameterError(
                f"weighting must be one of {', '.join(prompts.RULES)}, not {self.weighting!r}"
            )
        if len(self.prompt) not in (1, self.batch_size):
            raise ParameterError(
                f"{len(self.prompt)} prompts do not fit batch_size {self.batch_size}; give one prompt or as many"
            )

    def _unusual(self) -> dict[str, object]:
        """Parameters that most pictures do not need to name."""
        named: dict[str, object] = {}
        if self.guidance_rescale:
            named["guidance_rescale"] = self.guidance_rescale
        if self.eta is not None:
            named["eta"] = self.eta
        if self.weighting != "a1111":
            named["weighting"] = self.weighting
        return named

    @property
    def seeds(self) -> list[int]:
        """The seed of every picture."""
        return [self.seed + i for i in range(self.batch_size)]

    def metadata(self, model: str) -> list[dict[str, object]]:
        """One dict of generation parameters per picture, as :mod:`sdengine.metadata` writes them."""

        def of(texts: list[str], index: int) -> str:
            return texts[index] if len(texts) > 1 else texts[0]

        return [
            {
                "prompt": of(self.prompt, i),
                "negative_prompt": of(self.negative_prompt, i),
                "steps": self.steps,
                "sampler": self.sampler,
                "schedule": self.schedule,
                "guidance_scale": self.guidance_scale,
                "seed": seed,
                "width": self.width,
                "height": self.height,
                "clip_skip": self.clip_skip,
                "model": model,
                **self._unusual(),
            }
            for i, seed in enumerate(self.seeds)
        ]


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _whole(name: str, value: object, low: int, high: int) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= int(value) <= high:  # type: ignore[call-overload]
        raise ParameterError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ParameterError(f"{name} must be a number, not {value!r}")
    if not low <= float(value) <= high:
        raise ParameterError(f"{name} must lie between {low:g} and {high:g}, not {float(value):g}")
