"""The parameters of one generation: defaults filled in, ranges checked, written as metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import prompt as prompts
from .checks import check_choice, check_flag, check_number, check_whole
from .control_options import MOST_SCALE
from .errors import ParameterError
from .families import Defaults, SizeConditioning
from .guidance import Guidance
from .hires import Hires
from .hires import read as read_hires
from .loading import ModelPlan
from .masks import MaskOptions
from .noise import COMPAT, Compat
from .random import KINDS
from .sampling import resolve_names
from .step_cache import MODES, OFF
from .text_encoders import MAX_BATCH
from .tiled_diffusion import TiledDiffusion, tiled

MAX_SIDE = 8192
MAX_STEPS = 1000
MAX_SEED = 2**64 - 1
POSITIVE_SCORE, NEGATIVE_SCORE = 6.0, 2.5
"""Aesthetic scores that a refiner is told beside the prompt and beside the negative one (diffusers' pipeline)."""
SEAMLESS = {"": 0, "x": 1, "y": 2, "xy": 3}
"""``seamless`` -> the native option: bit 0 joins left and right, bit 1 top and bottom."""


@dataclass(frozen=True, kw_only=True)
class GenerateParameters:
    """Everything that decides what a picture looks like, besides the model and given pictures.

    ``Pipeline.generate`` says what each means.
    """

    prompt: list[str]
    negative_prompt: list[str] | None
    prompt_2: list[str] | None
    negative_prompt_2: list[str] | None
    width: int
    height: int
    steps: int
    sampler: str
    schedule: str
    sigmas: tuple[float, ...] | None
    timesteps: tuple[int, ...] | None
    guidance: Guidance
    distilled_guidance: float | None
    """What a model that was distilled with guidance reads."""
    eta: float | None
    s_noise: float
    s_churn: float
    s_tmin: float
    s_tmax: float
    brownian: bool | None
    order: int | None
    seed: int
    batch_size: int
    noise: str
    variation_seed: int | None
    variation_strength: float
    compat: str | None
    strength: float
    denoising_start: float | None
    denoising_end: float | None
    clip_skip: int | None
    weighting: str
    sizes: Mapping[str, float]
    negative_sizes: Mapping[str, float]
    seamless: str
    cache: str = OFF
    control_scales: tuple[float, ...] = ()
    control_start: tuple[float, ...] = ()
    control_end: tuple[float, ...] = ()
    guess_mode: bool = False
    control_mode: str = "balanced"
    ip_scale: float | None = None
    mask_blur: float = 0.0
    invert_mask: bool = False
    only_masked: bool = False
    mask_padding: int = 32
    mask_fill: str = "original"
    differential: bool = False
    outpaint: tuple[int, int, int, int] | float | None = None
    tiled_diffusion: TiledDiffusion | None = None
    tile_side: int = MAX_SIDE
    """Pixels of a tile's side."""
    hires: Hires | None = None
    """The second pass, of a run that has one."""
    in_hires: bool = False
    """This is the second pass."""
    shift: float | None = None
    reference_count: int = 0
    resize_references: bool = True

    @classmethod
    def resolve(cls, plan: ModelPlan, defaults: Defaults, **given: Any) -> GenerateParameters:
        """Fill in the model's defaults where the caller said None, and check every range.

        Raises:
            ParameterError: a value is out of range.
        """
        compat = _compat(given["compat"])
        sampler, implied = resolve_names(_or(given["sampler"], defaults.sampler))
        _, schedule = resolve_names(
            sampler, _or(given["schedule"], _or(implied, defaults.schedule))
        )
        assert schedule is not None
        values = {
            **given,
            "width": _or(given["width"], defaults.width),
            "height": _or(given["height"], defaults.height),
            "steps": _or(given["steps"], defaults.steps),
            "sampler": sampler,
            "schedule": schedule,
            "eta": _or(given["eta"], defaults.eta),
            "shift": _or(given["shift"], defaults.shift),
            "batch_size": _or(given["batch_size"], len(given["prompt"])),
            "noise": _or(given["noise"], compat.kind),
            "brownian": False
            if given["brownian"] is None and compat.brownian == "none"
            else given["brownian"],
            "weighting": _or(given["weighting"], compat.weighting),
        }
        if values["shift"] is not None and plan.scheduler.prediction != "flow":
            raise ParameterError(f"{plan.title} is no flow model and has no shift; leave it out")
        explicit = given["sigmas"] is not None or given["timesteps"] is not None
        visited = defaults.timesteps
        if (
            not explicit
            and given["schedule"] is None
            and visited
            and len(visited) == values["steps"]
        ):
            values["timesteps"] = visited
        if given["clip_skip"] is not None and isinstance(given["clip_skip"], int):
            values["clip_skip"] = given["clip_skip"] + 1 - compat.last_layer
        for name in ("sigmas", "timesteps"):
            values[name] = _listed(name, values[name])
        _check(values, plan.latents.factor * plan.family.patch)
        # numpy's numbers are welcome, and become plain ones.
        for name in ("width", "height", "steps", "seed", "batch_size"):
            values[name] = int(values[name])
        factor, trained = plan.latents.factor, min(defaults.width, defaults.height)
        tiles = tiled(given["tiled_diffusion"])
        if tiles is not None and values["cache"] != OFF:
            raise ParameterError(
                "step caching and tiled_diffusion do not go together: leave out one of the two"
            )
        values["tiled_diffusion"] = tiles = tiles and tiles.resolved(trained // factor)
        values["tile_side"] = MAX_SIDE if tiles is None else tiles.figures[0] * factor
        if given["hires"] is not None:
            size = values["width"], values["height"]
            grid = factor * plan.family.patch
            values["hires"] = read_hires(given["hires"], *size, grid, values["batch_size"])
        layout = plan.family.size_conditioning
        size = min(values["height"], values["tile_side"]), min(values["width"], values["tile_side"])
        values["sizes"] = size_values("sizes", layout, given["sizes"], *size)
        negative = {k: v for k, v in values["sizes"].items() if k != "aesthetic_score"}
        negative.update(_named("negative_sizes", given["negative_sizes"]))
        values["negative_sizes"] = size_values(
            "negative_sizes", layout, negative, *size, NEGATIVE_SCORE
        )
        return cls(**values)

    @property
    def seen(self) -> tuple[int, int]:
        """Width and height in pixels of what the denoiser sees at once: the picture, or a tile of it."""
        return min(self.width, self.tile_side), min(self.height, self.tile_side)

    @property
    def conventions(self) -> Compat:
        """Whose conventions this picture follows."""
        return _compat(self.compat)

    @property
    def seeds(self) -> list[int]:
        """The seed of every picture; with a variation they share it, as in A1111."""
        varied = self.variation_strength > 0.0
        return [self.seed + (0 if varied else i) for i in range(self.batch_size)]

    def metadata(
        self, model: str, task: str | None = None, resize_mode: str = "crop"
    ) -> list[dict[str, object]]:
        """One dict of generation parameters per picture, as :mod:`sdengine.metadata` writes them.

        What a picture's dict says makes it again (:func:`sdengine.options.restored`).

        Args:
            model: its name.
            task: what was done with given pictures, in words; None for a run without.
            resize_mode: how they were brought to size.
        """

        def of(texts: list[str] | None, index: int) -> str | None:
            if texts is None:
                return None
            return texts[index] if len(texts) > 1 else texts[0]

        return [
            {
                "prompt": of(self.prompt, i),
                "negative_prompt": of(self.negative_prompt, i) or "",
                "steps": self.steps,
                "sampler": self.sampler,
                "schedule": self.schedule,
                "guidance_scale": self._guidance_scale(),
                "width": self.width,
                "height": self.height,
                "clip_skip": self.clip_skip,
                "model": model,
                "task": task,
                **self._unusual(task is not None),
                **({} if self.hires is None else self.hires.metadata(i)),
                **self._who(i),
                "prompt_2": of(self.prompt_2, i),
                "negative_prompt_2": of(self.negative_prompt_2, i),
                "resize_mode": None if resize_mode == "crop" else resize_mode,
            }
            for i in range(self.batch_size)
        ]

    def _guidance_scale(self) -> object:
        return self.guidance.scale if self.distilled_guidance is None else self.distilled_guidance

    def _who(self, index: int) -> dict[str, object]:
        """Which noise picture `index` of the batch had."""
        if self.batch_size > 1 and self.conventions.batch == "one-generator":
            whole = {"batch_size": self.batch_size, "batch_position": index}
            return {"seed": self.seed, **whole}
        who: dict[str, object] = {"seed": self.seeds[index]}
        if self.variation_seed is not None:
            who["variation_seed"] = (self.variation_seed + index) % (MAX_SEED + 1)
        return who

    def _unusual(self, from_picture: bool) -> dict[str, object]:
        """Parameters that most pictures do not need to name."""
        conventions = self.conventions
        usual = {  # where it is not what other programs take for granted, None: it is always named
            "sigmas": None,
            "timesteps": None,
            "eta": None,
            "shift": None,
            "s_noise": 1.0,
            "s_churn": 0.0,
            "s_tmin": 0.0,
            "s_tmax": math.inf,
            "brownian": None,
            "order": None,
            "noise": "torch-cpu" if conventions.kind == "torch-cpu" else None,
            "variation_strength": 0.0,
            "compat": None,
            "strength": None if from_picture else 1.0,
            "denoising_start": None,
            "denoising_end": None,
            "weighting": "a1111" if conventions.weighting == "a1111" else None,
            "seamless": "",
            "cache": OFF,
            "control_scales": (),
            "control_start": (),
            "control_end": (),
            "guess_mode": False,
            "control_mode": "balanced",
            "ip_scale": None,
            **asdict(MaskOptions()),
            "mask_padding": None if self.only_masked else MaskOptions.mask_padding,
            "outpaint": None,
            "tiled_diffusion": None,
            "reference_count": 0,
            "resize_references": True,
        }
        named = {k: getattr(self, k) for k, v in usual.items() if getattr(self, k) != v}
        return {**named, **self._unusual_sizes(), **self._unusual_guidance()}

    def _unusual_sizes(self) -> dict[str, object]:
        """What the model was told about the picture, where it is not what anyone would say."""
        usual = _usual_sizes(*self.seen[::-1], POSITIVE_SCORE)
        told = {k: v for k, v in self.sizes.items() if v != usual[k]}
        usual = {**self.sizes, "aesthetic_score": NEGATIVE_SCORE}
        negative = {k: v for k, v in self.negative_sizes.items() if v != usual[k]}
        return {"sizes": told or None, "negative_sizes": negative or None}

    def _unusual_guidance(self) -> dict[str, object]:
        names = {"rescale": "guidance_rescale", "image_scale": "image_guidance_scale"}
        found = {names.get(k, k): v for k, v in self.guidance.unusual().items()}
        if self.distilled_guidance is not None and self.guidance.scales != [1.0]:
            found["true_cfg_scale"] = self.guidance.scale
        return found


def _compat(name: object) -> Compat:
    if not isinstance(name, str | None) or name not in COMPAT:
        choices = ", ".join(repr(known) for known in COMPAT)
        raise ParameterError(f"compat must be one of {choices}, not {name!r}")
    return COMPAT[name]


def check_size(given: Mapping[str, Any], grid: int) -> None:
    """Check the width and the height among the options of a generation, where they are given.

    Raises:
        ParameterError: one is no multiple of `grid` from `grid` to :data:`MAX_SIDE`.
    """
    for name in ("width", "height"):
        value = given[name]
        if value is None:
            continue
        check_whole(name, value, grid, MAX_SIDE)
        if value % grid:
            raise ParameterError(
                f"{name} must be a multiple of {grid}, not {value};"
                f" the nearest are {value // grid * grid} and {(value // grid + 1) * grid}"
            )


def _check(values: Mapping[str, Any], grid: int) -> None:
    check_size(values, grid)
    check_whole("steps", values["steps"], 1, MAX_STEPS)
    check_whole("batch_size", values["batch_size"], 1, MAX_BATCH)
    check_whole("seed", values["seed"], 0, MAX_SEED - int(values["batch_size"]))
    if values["clip_skip"] is not None:
        check_whole("clip_skip", values["clip_skip"], 1, 100)
    if values["order"] is not None:
        check_whole("order", values["order"], 1, 4)
    if values["brownian"] is not None:
        check_flag("brownian", values["brownian"])
    if not isinstance(values["s_tmax"], float) or values["s_tmax"] != math.inf:
        check_number("s_tmax", values["s_tmax"], 0.0, 1e9)
    if values["variation_seed"] is not None:
        check_whole("variation_seed", values["variation_seed"], 0, MAX_SEED)
    for name, low, high in (
        ("eta", 0.0, 10.0),
        ("shift", 0.01, 100.0),
        ("s_noise", 0.0, 10.0),
        ("s_churn", 0.0, 1e6),
        ("s_tmin", 0.0, 1e6),
        ("variation_strength", 0.0, 1.0),
        ("strength", 0.0, 1.0),
        ("ip_scale", 0.0, MOST_SCALE),
        ("denoising_start", 0.0, 1.0),
        ("denoising_end", 0.0, 1.0),
    ):
        if values[name] is not None:
            check_number(name, values[name], low, high)
    for name, choices in (
        ("weighting", prompts.RULES),
        ("noise", KINDS),
        ("seamless", tuple(SEAMLESS)),
        ("cache", MODES),
    ):
        check_choice(name, values[name], choices)
    if values["sigmas"] is not None and values["timesteps"] is not None:
        raise ParameterError("give sigmas or timesteps, not both")
    start, end = values["denoising_start"], values["denoising_end"]
    if start is not None and end is not None and start >= end:
        raise ParameterError(f"denoising_start ({start}) must be less than denoising_end ({end})")
    for name in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
        texts = values[name]
        if texts is not None and len(texts) not in (1, values["batch_size"]):
            raise ParameterError(
                f"{name}: {len(texts)} texts do not fit batch_size {values['batch_size']};"
                " give one or as many"
            )


def size_values(
    argument: str,
    layout: SizeConditioning | None,
    given: Mapping[str, float] | None,
    height: int,
    width: int,
    aesthetic_score: float = POSITIVE_SCORE,
) -> dict[str, float]:
    """A value for every number that a model is told about the picture; defaults are diffusers'.

    Raises:
        ParameterError: a name is unknown, or a value out of range.
    """
    named = _named(argument, given)
    if layout is None:
        if named:
            raise ParameterError(f"{argument}: this model is not told sizes; leave it out")
        return {}
    usual = {**_usual_sizes(height, width, aesthetic_score), **layout.usual}
    for name, value in named.items():
        if name not in usual:
            raise ParameterError(
                f"{argument} has no {name!r}; the names are {', '.join(layout.names)}"
            )
        check_number(f"{argument}[{name!r}]", value, 0.0, 1e6)
    return {name: float({**usual, **named}[name]) for name in layout.names}


def _named(argument: str, given: object) -> Mapping[str, float]:
    if not isinstance(given, Mapping | None):
        raise ParameterError(
            f"{argument} must be numbers by name, such as {{'crop_top': 0}}, not {given!r}"
        )
    return given or {}


def _usual_sizes(height: int, width: int, aesthetic_score: float) -> dict[str, float]:
    return {
        "original_height": height,
        "original_width": width,
        "crop_top": 0,
        "crop_left": 0,
        "target_height": height,
        "target_width": width,
        "aesthetic_score": aesthetic_score,
    }


def _listed(name: str, value: Sequence[float] | None) -> tuple[Any, ...] | None:
    if value is None:
        return None
    try:
        listed = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        raise ParameterError(f"{name} must be a list of numbers, not {value!r}") from None
    if not 1 <= len(listed) <= MAX_STEPS + 1:
        raise ParameterError(f"{name} must have 1 to {MAX_STEPS + 1} entries, not {len(listed)}")
    if name != "timesteps":
        return listed
    if not all(v.is_integer() for v in listed):
        raise ParameterError(f"timesteps must be whole numbers, not {value!r}")
    return tuple(int(v) for v in listed)


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
