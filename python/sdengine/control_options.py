"""What a generation is told about its control networks, checked (docs/control.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import images
from .checks import check_choice, check_flag
from .errors import ParameterError

Array = NDArray[np.float32]
Mode = Literal["balanced", "prompt", "control"]

MODES = ("balanced", "prompt", "control")
MOST_SCALE = 10.0
"""Of a control network or a picture prompt."""


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
    latents: Array | None = None
    """``[N, C, h, w]`` of the picture, for networks that read those."""


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
        check_choice("control_mode", mode, MODES)
        check_flag("guess_mode", guess)
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

    def inputs(
        self,
        size: tuple[int, int],
        resize_mode: str,
        steps: int,
        fitted: Callable[[list[Any]], list[Array]] | None = None,
    ) -> list[ControlInput]:
        """The networks' parts in a run of `steps` steps; `size` is width and height of the result.

        `fitted` brings pictures to that size where resizing would not do.

        Raises:
            ParameterError, FormatError: something is not a picture; see :mod:`sdengine.images`.
        """
        found = []
        for net, given in enumerate(self.pictures):
            weights = self._weights(net, steps)
            if given is None or not any(weights):
                continue
            listed = given if isinstance(given, list | tuple) else [given]
            if fitted is None:
                arrays = [images.to_array(picture, size, resize_mode) for picture in listed]
            else:
                arrays = fitted(list(listed))
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
    given = given.tolist() if isinstance(given, np.ndarray | np.generic) else given
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
