"""Control networks beside a loaded model: pictures that a generation follows (docs/control.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _core, images
from .conditioning import embed_numbers
from .errors import ParameterError
from .loading import ComponentPlan, ModelPlan
from .loading.control import plan_control
from .stores import make_store

Array = NDArray[np.float32]
AnyPath = str | PathLike[str]
Mode = Literal["balanced", "prompt", "control"]

MODES = ("balanced", "prompt", "control")
SOFTER = 0.825
"""Each residual takes this part of the next deeper one's weight where the prompt or the control is more important
(lllyasviel/ControlNet, and sd-webui-controlnet)."""
_SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)
"""The same for the features of a T2I adapter (sd-webui-controlnet)."""
_TASK_WIDTH = 256  # of the sinusoid that tells a union whether a task is meant
_SHUFFLE = "shuffle"  # in the file's name: trained on the means of its residuals
MOST_SCALE = 10.0
TYPES: Mapping[str, int] = {
    "openpose": 0,
    "depth": 1,
    "hed": 2,
    "softedge": 2,
    "scribble": 2,
    "canny": 3,
    "lineart": 3,
    "mlsd": 3,
    "normal": 4,
    "segmentation": 5,
    "tile": 6,
    "repaint": 7,
}
"""What a ControlNet-Union is told about a control picture; the last two are of its ProMax version only
(xinsir6/ControlNetPlus)."""


@dataclass(frozen=True)
class ControlNet:
    """A control network as :func:`sdengine.load` takes it: a ControlNet or a T2I adapter.

    Attributes:
        path: a safetensors, torch or GGUF file, or a diffusers folder.
        pooled: the mean of each residual over the picture stands for all its pixels, as ControlNets for shuffled
            pictures need; None is what config.json says, or the file's name where it has "shuffle" in it.
        type: what a ControlNet-Union gets to see, one of :data:`sdengine.control.TYPES`. Give the file several times
            to use several of its types at once.
    """

    path: AnyPath
    pooled: bool | None = None
    type: str | None = None


@dataclass(frozen=True)
class ControlInput:
    """One control network's part in one run, in plain values and numpy."""

    net: int
    """Its place in ``controlnets``."""
    picture: Array
    """``[N or 1, 3, H, W]``, 0 to 1."""
    weights: list[float]
    """One per step; 0 leaves it out."""
    mode: Mode = "balanced"
    guess: bool = False


class LoadedControl:
    """A control network, ready to run.

    Attributes:
        plan: where it came from.
        network: the native network.
    """

    def __init__(
        self,
        given: AnyPath | ControlNet,
        model: ModelPlan,
        device: _core.Device,
        weight_type: str | None = None,
    ) -> None:
        given = given if isinstance(given, ControlNet) else ControlNet(given)
        self.plan: ComponentPlan = plan_control(given.path, model)
        config = self.plan.config
        named = _SHUFFLE in Path(given.path).stem.lower() or bool(config.get("global_pool"))
        self.pooled = named if given.pooled is None else given.pooled
        self.is_adapter = self.plan.kind == "t2i_adapter"
        self._task = self._union_task(given.type)
        self._levels = len(model.components[model.family.denoiser].config["block_out_channels"])
        self.network = _core.Network(
            self.plan.kind, dict(config), make_store(self.plan, weight_type), device
        )

    def native(self, given: ControlInput, count: int, circular: int) -> _core.Control:
        """The control of a run of `count` pictures; `circular` as the native networks take it.

        Raises:
            ParameterError: the number or the size of the pictures does not fit.
        """
        picture = given.picture
        if len(picture) not in (1, count):
            raise ParameterError(
                f"{len(picture)} control pictures were given for a batch of {count}; give one or as"
                " many"
            )
        if self.is_adapter:
            inputs, factors = self._features(picture, given, circular), {}
        else:
            factors = self._factors(given)
            inputs = {"hint_features": self._read(picture, circular), **self._told_task()}
        repeated = {
            name: array if len(array) == count else np.repeat(array, count, axis=0)
            for name, array in inputs.items()
        }
        return _core.Control(
            None if self.is_adapter else self.network,
            repeated,
            given.weights,
            factors=factors,
            positive_only=given.guess or given.mode == "control" or self.pooled,
            pooled=self.pooled,
        )

    def _read(self, picture: Array, circular: int) -> Array:
        """What a ControlNet makes of its pictures, once for all steps; one by one, as they are large."""
        options = {"hint_only": 1, "circular": circular}
        parts = [self.network.run({"hint": one[None]}, options) for one in picture]
        return np.concatenate([part["hint_features"] for part in parts])

    def _union_task(self, name: str | None) -> int | None:
        """The number of a union's task; None for other networks."""
        path = self.plan.path
        if self.plan.kind != "controlnet_union":
            if name is not None:
                raise ParameterError(f"{path} is no ControlNet-Union: leave its type out")
            return None
        tasks = self.plan.config["tasks"]
        known = [known for known, task in TYPES.items() if task < tasks]
        if name not in known:
            raise ParameterError(
                f"{path} is a ControlNet-Union of {tasks} tasks: give it as"
                f" sdengine.ControlNet(path, type=...) with one of {', '.join(known)}, not {name!r}"
            )
        return TYPES[name]

    def _told_task(self) -> dict[str, NDArray[Any]]:
        """A union's inputs besides the picture."""
        if self._task is None:
            return {}
        chosen = np.arange(self.plan.config["tasks"]) == self._task
        waves = embed_numbers(chosen.tolist(), _TASK_WIDTH).reshape(1, -1)
        return {"task": np.full((1, 1), self._task, np.int32), "task_embedding": waves}

    def _factors(self, given: ControlInput) -> dict[str, float]:
        """Weights of single residuals, the deepest one's 1; empty if all are."""
        config = self.plan.config
        levels = len(config["layers_per_block"])
        names = [f"control_{i}" for i in range(sum(config["layers_per_block"]) + levels)]
        names.append("control_mid")
        if given.guess and not self.pooled:
            values = np.logspace(-1, 0, len(names)).tolist()
        elif given.mode != "balanced":
            values = [SOFTER ** (len(names) - 1 - i) for i in range(len(names))]
        else:
            return {}
        return dict(zip(names, values, strict=True))

    def _features(self, picture: Array, given: ControlInput, circular: int) -> dict[str, Array]:
        """What a T2I adapter leaves for each level of the denoiser."""
        side, colours = self.plan.config["side"], 3
        if self.plan.config["hint_channels"] == side * side:
            picture, colours = _grey(picture), 1
        count, _, height, width = picture.shape
        if height % side or width % side:
            raise ParameterError(
                f"with {self.plan.path} width and height must be multiples of {side}, not"
                f" {width}x{height}"
            )
        cells = picture.reshape(count, colours, height // side, side, width // side, side)
        hint = cells.transpose(0, 1, 3, 5, 2, 4).reshape(
            count, colours * side * side, height // side, width // side
        )
        options = {"circular": circular}
        found = self.network.run({"hint": np.ascontiguousarray(hint)}, options)
        features = [found[f"feature_{i}"] for i in range(len(found))]
        if given.mode != "balanced":
            soft = _SOFT_FEATURES[-len(features) :]
            features = [f * np.float32(s) for f, s in zip(features, soft, strict=True)]
        names = [f"adapter_{i}" for i in range(self._levels)] + ["adapter_mid"]
        return dict(zip(names, features, strict=False))


def _grey(picture: Array) -> Array:
    """Luma of ITU-R BT.601 in whole levels, as Pillow reads a picture in mode L."""
    red, green, blue = np.rint(picture * 255.0).astype(np.int64).transpose(1, 0, 2, 3)
    levels = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16  # weights in 1 / 65536
    return np.asarray(levels[:, None] / 255.0, np.float32)


# ------------------------------------------------------------------------------------- options
@dataclass(frozen=True)
class ControlOptions:
    """What a generation was told about its control networks, one entry per network."""

    pictures: list[Any]
    """Pictures, or lists of them; None for a network that is left out."""
    scales: list[float]
    starts: list[float]
    ends: list[float]
    guess: bool
    mode: Mode

    @classmethod
    def of(cls, given: Mapping[str, Any], nets: int) -> ControlOptions:
        """Check the options ``control_...`` and ``guess_mode`` against the number of networks.

        Raises:
            ParameterError: pictures are missing or too many, or a number is out of range.
        """
        scales = _numbers("control_scales", given["control_scales"], 1.0, nets, MOST_SCALE)
        starts = _numbers("control_start", given["control_start"], 0.0, nets, 1.0)
        ends = _numbers("control_end", given["control_end"], 1.0, nets, 1.0)
        guess, mode = given["guess_mode"], given["control_mode"]
        if mode not in MODES:
            raise ParameterError(
                f"control_mode must be one of {', '.join(map(repr, MODES))}, not {mode!r}"
            )
        if not isinstance(guess, bool):
            raise ParameterError(f"guess_mode must be True or False, not {guess!r}")
        if guess and mode != "balanced":
            raise ParameterError("guess_mode has weights of its own: leave control_mode out")
        for start, end in zip(starts, ends, strict=True):
            if start >= end:
                raise ParameterError(
                    f"control_start ({start:g}) must be less than control_end ({end:g})"
                )
        pictures = _pictures(given["control_images"], nets, any(scales))
        return cls(pictures, scales, starts, ends, guess, mode)

    def figures(self) -> dict[str, Any]:
        """The options as a generation's parameters record them: what is usual is empty."""
        return {
            "control_scales": tuple(self.scales),
            "control_start": tuple(self.starts) if any(self.starts) else (),
            "control_end": tuple(self.ends) if min(self.ends, default=1.0) < 1.0 else (),
            "guess_mode": self.guess,
            "control_mode": self.mode,
        }

    @property
    def first(self) -> Any:
        """The first picture of all; None without any."""
        for given in self.pictures:
            if given is not None:
                return given[0] if isinstance(given, list | tuple) else given
        return None

    def inputs(self, size: tuple[int, int], resize_mode: str, steps: int) -> list[ControlInput]:
        """The networks' parts in a run of `steps` steps; `size` is width and height of the result.

        Raises:
            ParameterError, FormatError: something is not a picture; see :mod:`sdengine.images`.
        """
        found = []
        for net, given in enumerate(self.pictures):
            weights = self._weights(net, steps)
            if given is None or not any(weights):
                continue
            listed = given if isinstance(given, list | tuple) else [given]
            arrays = [images.to_array(picture, size, resize_mode) for picture in listed]
            picture = np.asarray(np.concatenate(arrays) * 0.5 + 0.5, np.float32)
            found.append(ControlInput(net, picture, weights, self.mode, self.guess))
        return found

    def _weights(self, net: int, steps: int) -> list[float]:
        """A step counts if it lies wholly between start and end (as diffusers' pipelines have it)."""
        start, end = self.starts[net], self.ends[net]
        inside = [i / steps >= start and (i + 1) / steps <= end for i in range(steps)]
        return [self.scales[net] if within else 0.0 for within in inside]


def _pictures(given: Any, nets: int, needed: bool) -> list[Any]:
    if nets == 0:
        if given is not None:
            raise ParameterError(
                "control_images were given, and the model was loaded without a control network;"
                " give sdengine.load(..., controlnets=[...])"
            )
        return []
    if given is None:
        if needed:
            raise ParameterError(
                f"the model was loaded with {nets} control network{'s' * (nets > 1)}: give"
                " control_images=, or control_scales=0 to do without"
            )
        return [None] * nets
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if len(listed) != nets:
        raise ParameterError(
            f"{len(listed)} control_images were given for {nets} control network{'s' * (nets > 1)};"
            " give one for each (a list of pictures for a batch, None for none)"
        )
    if any(isinstance(entry, list | tuple) and not entry for entry in listed):
        raise ParameterError("an empty list of control pictures was given")
    return listed


def _numbers(name: str, given: Any, usual: float, nets: int, high: float) -> list[float]:
    """One number for each network; one stands for all."""
    if given is None:
        return [usual] * nets
    listed = list(given) if isinstance(given, Sequence) else [given] * nets
    if len(listed) != nets:
        raise ParameterError(f"{name} has {len(listed)} entries for {nets} control networks")
    for value in listed:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0.0 <= value <= high:
            raise ParameterError(
                f"{name} must be numbers between 0 and {high:g}, one or one per control network,"
                f" not {value!r}"
            )
    return [float(value) for value in listed]
