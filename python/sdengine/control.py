"""Control networks beside a loaded model: pictures that a generation follows (docs/control.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .conditioning import embed_numbers
from .control_options import ControlInput
from .dit_control import FLUX_TYPES, KINDS, SD3_TYPES, DiTControl, centred, check_type
from .errors import ParameterError
from .formats import open_index
from .loading import ComponentPlan, ModelPlan
from .loading.control import is_for_shuffled, plan_control
from .loading.control_lora import plan_over_base, title_of_changes
from .params import SEAMLESS
from .picture_inputs import PictureEncoder
from .stores import make_store

Array = NDArray[np.float32]
AnyPath = str | PathLike[str]

SOFTER = 0.825
"""Each residual takes this part of the next deeper one's weight where the prompt or the control is more important
(lllyasviel/ControlNet, and sd-webui-controlnet)."""
_SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)
"""The same for the features of a T2I adapter (sd-webui-controlnet)."""
_TASK_WIDTH = 256  # of the sinusoid that tells a union whether a task is meant
_BAND, _MARGIN = 1024, 64
"""Rows of a large control picture that are read at once, and those around them that are read with them."""
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
        path: a safetensors, torch or GGUF file, or a diffusers folder; a Control-LoRA too.
        pooled: the mean of each residual over the picture stands for all its pixels, as ControlNets for shuffled
            pictures need; None is what config.json says, or the file's name where it has "shuffle" in it.
        type: what a ControlNet-Union gets to see, one of :data:`sdengine.control.TYPES` (SDXL) or
            :data:`sdengine.dit_control.FLUX_TYPES`. Give the file several times to use several of its types at once.
    """

    path: AnyPath
    pooled: bool | None = None
    type: str | None = None


def parse_control(text: str) -> AnyPath | ControlNet:
    """``FILE`` or ``FILE:TYPE``, as the command line takes it."""
    path, _, name = text.rpartition(":")
    if path and name in (*TYPES, *FLUX_TYPES, *SD3_TYPES):
        return ControlNet(path, type=name)
    return text


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
        index, changes = open_index(given.path), None
        if title_of_changes(index) is None:
            self.plan: ComponentPlan = plan_control(given.path, model)
        else:
            self.plan, changes = plan_over_base(index, model)
        config = self.plan.config
        denoiser = model.components[model.family.denoiser].config
        self.is_adapter = self.plan.kind == "t2i_adapter"
        self._levels = len(denoiser.get("block_out_channels", ()))
        self._dit = self._of_transformer(given, model) if self.plan.kind in KINDS else None
        self._task = self._union_task(given.type)
        named = is_for_shuffled(given.path) or bool(config.get("global_pool"))
        self.pooled = named and self._dit is None if given.pooled is None else given.pooled
        self.network = _core.Network(
            self.plan.kind, dict(config), make_store(self.plan, weight_type), device
        )
        if changes is not None:
            self.network.set_adapters([(changes, 1.0)])

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
        factors = {} if self.is_adapter else self._factors(given)
        if self.is_adapter:
            inputs = self._features(picture, given, circular)
        elif given.latents is not None:
            inputs = {"hint": given.latents, **self._told_task()}
        else:
            inputs = {"hint_features": self._read(picture, circular), **self._told_task()}
        repeated = {
            name: array if len(array) == count else np.repeat(array, count, axis=0)
            for name, array in inputs.items()
        }
        if self._dit is not None:
            repeated |= self._dit.inputs(count)
        return _core.Control(
            None if self.is_adapter else self.network,
            repeated,
            given.weights,
            factors=factors,
            positive_only=given.guess or given.mode == "control" or self.pooled,
            pooled=self.pooled,
            shared=None if self._dit is None else self._dit.shared,
        )

    def encoded(
        self, given: ControlInput, mask: Array | None, encoder: PictureEncoder
    ) -> ControlInput:
        """The same with the picture's latents, where the network reads those; `mask` is the run's.

        Raises:
            ParameterError: the number of the pictures does not fit, a network for inpainting lacks the mask, or the
                network knows no guess mode.
        """
        if self._dit is None:
            return given
        if given.guess:
            raise ParameterError(
                f"guess_mode is for ControlNets of Stable Diffusion 1.x, 2.x and XL, and {self.plan.path} is for a"
                " diffusion transformer: leave it out"
            )
        latents = self._dit.encoded(given.picture, mask, encoder, self.plan.path)
        return replace(given, latents=latents)

    def _of_transformer(self, given: ControlNet, model: ModelPlan) -> DiTControl:
        """What is particular to a ControlNet of a diffusion transformer."""
        config, denoiser = self.plan.config, model.components[model.family.denoiser].config
        if given.pooled:
            raise ParameterError(
                f"{self.plan.path} is for a diffusion transformer, whose residuals have no means: leave pooled out"
            )
        return DiTControl(
            self.plan.kind,
            config,
            model.latents,
            edges=bool(config.get("edges")) if given.type is None else given.type == "canny",
            tells_guidance=bool(config.get("guidance")) and not denoiser.get("guidance"),
        )

    def _read(self, picture: Array, circular: int) -> Array:
        """What a ControlNet makes of its pictures, once for all steps; in pieces, as they are large."""
        features = [self._read_in_bands(one[None], circular) for one in picture]
        self.rest()
        return np.concatenate(features)

    def rest(self) -> None:
        """Leave the memory to others: a picture is read once before the steps, by weights that these do not need."""
        self.network.rest()

    def _read_in_bands(self, picture: Array, circular: int) -> Array:
        """The same for one picture, some rows at a time; a point of the features sees 23 rows around it."""
        options, height = {"hint_only": 1, "circular": circular}, picture.shape[2]
        picture = picture if self._dit is None else centred(picture)
        band = height if circular & SEAMLESS["y"] else _BAND
        found = []
        for top in range(0, height, band):
            first, last = max(0, top - _MARGIN), min(height, top + band + _MARGIN)
            rows = np.ascontiguousarray(picture[:, :, first:last])
            features = self.network.run({"hint": rows}, options)["hint_features"]
            factor = (last - first) // features.shape[2]
            begin, end = top - first, min(height, top + band) - first
            found.append(features[:, :, begin // factor : end // factor])
        return np.concatenate(found, axis=2)

    def _union_task(self, name: str | None) -> int | None:
        """The number of a union's task; None for other networks."""
        path = self.plan.path
        if self._dit is not None:
            return check_type(self.plan.kind, self.plan.config, name, path)
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
        task = {"task": np.full((1, 1), self._task, np.int32)}
        if self._dit is not None:
            return task
        chosen = np.arange(self.plan.config["tasks"]) == self._task
        waves = embed_numbers(chosen.tolist(), _TASK_WIDTH).reshape(1, -1)
        return {**task, "task_embedding": waves}

    def _factors(self, given: ControlInput) -> dict[str, float]:
        """Weights of single residuals, the deepest one's 1; empty if all are."""
        names = self._residuals()
        if given.guess and not self.pooled:
            values = np.logspace(-1, 0, len(names)).tolist()
        elif given.mode != "balanced":
            values = [SOFTER ** (len(names) - 1 - i) for i in range(len(names))]
        else:
            return {}
        return dict(zip(names, values, strict=True))

    def _residuals(self) -> list[str]:
        """Their names, the deepest last."""
        if self._dit is not None:
            return self._dit.residuals
        layers = self.plan.config["layers_per_block"]
        return [*(f"control_{i}" for i in range(sum(layers) + len(layers))), "control_mid"]

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
        self.rest()
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
