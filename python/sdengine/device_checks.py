"""Does a device compute what the CPU does? Every kind of layer and operator of networks, compared one by one.

`CHECKS` lists them with settings and small, odd shapes; `check_layers` runs them on a device and on the CPU.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import _core
from .errors import DeviceError

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Shape = tuple[int, ...]

SILU, GELU, GELU_TANH, QUICK_GELU, RELU, LEAKY_RELU = range(1, 7)
ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "leaky_relu")


@dataclass(frozen=True)
class Check:
    """One layer: the settings of the native network kind `layer`, and the shapes of its inputs.

    `ids` are whole numbers below their limit. `weights` is the type that matrices are held in.
    """

    title: str
    layer: str
    inputs: Mapping[str, Shape]
    config: Mapping[str, Any] = field(default_factory=dict)
    ids: Mapping[str, tuple[Shape, int]] = field(default_factory=dict)
    circular: int = 0
    weights: str = "f32"


@dataclass(frozen=True)
class CheckResult:
    """What a check found: the relative L2 error against the CPU, or why the device refused."""

    title: str
    error: float
    refusal: str = ""
    limit: float = 2e-3

    @property
    def passed(self) -> bool:
        """Whether the device is right."""
        return not self.refusal and self.error <= self.limit


def limit_of(check: Check) -> float:
    """The largest error that passes.

    Tensor cores take float32 with 10 bits of fraction (TF32), 5e-4 per value; beside quantized weights GPUs round
    activations to 8 bits in blocks of 32.
    """
    return 2e-3 if check.weights in ("f32", "f16", "bf16") else 2e-2


def _convolutions() -> Iterator[Check]:
    x = (2, 5, 7, 6)

    def conv(title: str, kind: str = "f32", circular: int = 0, **config: int) -> Check:
        extra = {
            name: config.pop(name) for name in ("residual", "batch_bias", "gate") if name in config
        }
        settings = {"in": 5, "out": 9, **config}
        shapes: dict[str, Shape] = {"x": (x[0], settings["in"], *x[2:])}
        out = (config.get("height", 7), config.get("width", 6))
        shapes |= {"residual": (2, settings["out"], *out)} if "residual" in extra else {}
        shapes |= {name: (2, settings["out"]) for name in ("batch_bias", "gate") if name in extra}
        return Check(f"convolution, {title}", "conv2d", shapes, settings, {}, circular, kind)

    yield conv("3x3")
    yield conv("1x1", kernel=1)
    yield conv("5x5", kernel=5)
    yield conv("stride 2", stride=2)
    yield conv("stride 2, padded right and below", stride=2, right_bottom=1)
    yield conv("no padding, no bias", pad=0, bias=0)
    yield conv("of patches", kernel=2, stride=2, pad=0)
    yield conv("twice the size", height=14, width=12)
    yield conv("of another size", height=9, width=11)
    for axes, title in ((1, "x"), (2, "y"), (3, "x and y")):
        yield conv(f"circular along {title}", circular=axes)
        yield conv(
            f"circular along {title}, stride 2, padded right and below",
            circular=axes,
            stride=2,
            right_bottom=1,
        )
    yield conv("twice the size, circular", circular=3, height=14, width=12)
    yield conv("all of an epilogue", residual=1, batch_bias=1, gate=1, activation=SILU)
    yield conv("residual before the activation", residual=1, inside=1, activation=RELU)
    for kind in ("f16", "bf16", "q8_0", "q4_0"):
        yield conv(f"3x3 in {kind}", kind, **{"in": 32})
    group = {"in": 12, "out": 7, "groups": 3}
    yield Check("group norm and convolution", "norm_and_conv", {"x": (2, 12, 5, 3)}, group)


def _linear() -> Iterator[Check]:
    tokens, vectors = {"x": (2, 7, 12)}, {"x": (3, 12)}
    size = {"in": 12, "out": 10}
    yield Check("linear, of tokens", "linear", tokens, size)
    yield Check("linear, of vectors, no bias", "linear", vectors, {**size, "bias": 0})
    for i, name in enumerate(ACTIVATIONS):
        yield Check(f"linear, {name}", "linear", tokens, {**size, "activation": i})
    ends = {"residual": (2, 7, 10), "batch_bias": (2, 10), "gate": (2, 10)}
    yield Check(
        "linear, all of an epilogue", "linear", {**tokens, **ends}, {**size, "activation": SILU}
    )
    flat = {"residual": (3, 10), "gate": (3, 10)}
    yield Check("linear, of vectors, gated", "linear", {**vectors, **flat}, size)
    inside = {**size, "activation": RELU, "inside": 1}
    yield Check(
        "linear, residual inside", "linear", {**tokens, "residual": ends["residual"]}, inside
    )
    for kind in ("f16", "bf16", "q8_0", "q4_0", "q5_1"):
        yield Check(
            f"linear in {kind}", "linear", {"x": (2, 5, 64)}, {"in": 64, "out": 9}, weights=kind
        )


def _norms() -> Iterator[Check]:
    picture, tokens = {"x": (2, 12, 5, 3)}, {"x": (2, 7, 12)}
    width = {"in": 12}
    yield Check("group norm", "feature_norm", picture, {**width, "groups": 4})
    yield Check("group norm, silu", "feature_norm", picture, {**width, "groups": 3, "silu": 1})
    yield Check("norm over channels, silu", "feature_norm", picture, {**width, "silu": 1})
    yield Check("layer norm", "layer_norm", tokens, width)
    yield Check("RMS norm", "rms_norm", tokens, width)
    yield Check("RMS norm, weight less one", "rms_norm", tokens, {**width, "plus_one": 1})
    ends = {"factor": (2, 12), "residual": (2, 7, 12)}
    yield Check("RMS norm of tokens", "scaled_rms_norm", {**tokens, **ends}, width)
    yield Check("layer norm, shifted", "shifted_norm", {**tokens, "shift": (2, 12)}, width)
    yield Check("layer norm, modulated", "modulated_norm", {**tokens, "modulation": (2, 24)})
    yield Check("PReLU", "prelu", picture, width)
    yield Check("joined heads", "join_heads", {"a": (2, 3, 24), "b": (2, 4, 24)}, {"head_dim": 12})
    heads = {"head_dim": 8, "turned": 1}
    yield Check("joined heads, turned", "join_heads", {"a": (2, 3, 24), "b": (2, 4, 24)}, heads)
    heads = {**heads, "layer_norm": 1}
    yield Check("joined heads, layer norm", "join_heads", {"a": (1, 3, 16), "b": (1, 1, 16)}, heads)


def _attention() -> Iterator[Check]:
    def attend(title: str, width: int, heads: int = 2, **more: Any) -> Check:
        inputs = dict(more.pop("inputs", {}))
        ids = more.pop("ids", {})
        kv = more.get("kv_heads", heads) * width
        keys = more.pop("keys", 9)
        shapes = {"q": (2, 7, heads * width), "k": (2, keys, kv), "v": (2, keys, kv), **inputs}
        return Check(f"attention, {title}", "attention", shapes, {"heads": heads, **more}, ids)

    for width in (40, 64, 72, 80, 96, 112, 128, 256, 160, 512, 10):
        yield attend(f"{width} values per head", width, 1 if width > 128 else 2)
    for width in (64, 20):
        about = f"{width} values per head"
        yield attend(f"grouped heads, {about}", width, 4, kv_heads=2)
        yield attend(f"causal, {about}", width, keys=7, causal=1)
        yield attend(f"scale, {about}", width, scale=0.3)
        yield attend(f"soft cap, {about}", width, softcap=2.0)
        seen = {"words": ((2, 7), 2)}
        yield attend(f"padding, {about}", width, keys=7, ids=seen)
        yield attend(f"padding and causal, {about}", width, keys=7, ids=seen, hides_ahead=1)
        sees = {"hides_ahead": 1, "padding_sees_all": 1}
        yield attend(f"padding that sees all, {about}", width, keys=7, ids=seen, **sees)
        yield attend(f"by distance, {about}", width, keys=7, inputs={"distances": (8, 2)})
        masks = {"mask": (4, 7, 9)}
        yield attend(f"masks by index, {about}", width, inputs=masks, mask_index=[1, 0])
    window = {"in": 12, "heads": 2, "window": 3, "height": 6, "width": 9}
    for shift in (0, 1):
        settings = {**window, "shift": shift}
        yield Check(
            f"windows, shifted by {shift}", "window_attention", {"x": (2, 54, 12)}, settings
        )
    figures = {"x": (2, 5, 12), "away": (2, 5, 12), "figures": (2, 3)}
    yield Check("normalised guidance", "normalized_guidance", figures)


def _tokens() -> Iterator[Check]:
    tokens = {"x": (2, 7, 12)}
    table = {"in": 20, "out": 32}
    ids = {"ids": ((2, 7), 20)}
    for kind in ("f32", "f16", "bf16", "q8_0", "q4_0"):
        yield Check(f"embedding in {kind}", "embedding", {}, table, ids, weights=kind)
    more = {"ids": ((2, 7), 23)}
    yield Check("embedding, learned", "embedding", {"learned": (3, 32)}, table, more)
    yield Check("first rows", "first_rows", tokens, {"in": 9, "out": 12, "rows": 7})
    yield Check("learned tokens", "learned_tokens", tokens, {"in": 3, "out": 12})
    place = {"side": 6, "out": 12, "height": 3, "width": 4}
    yield Check("table of places", "position_table", {"x": (2, 12, 12)}, place)
    yield Check("sines of places", "sincos", {"x": (2, 12, 12)}, {"height": 3, "width": 4})
    chosen = {**tokens, "mask": (2, 7), "instead": (1, 7, 12)}
    yield Check("tokens by mask", "choose_tokens", chosen)
    yield Check("parts of tokens", "token_parts", {**tokens, "more": (2, 3, 12)})
    yield Check("rows by number", "take_rows", tokens, {}, {"rows": ((5,), 14)})
    for interleaved in (0, 1):
        title = "neighbours" if interleaved else "halves"
        turn = {"head_dim": 12, "interleaved": interleaved}
        x = {"x": (2, 7, 36)}
        one = {"positions_0": ((2, 7), 300)}
        yield Check(f"rotation, {title}", "rotate", x, {**turn, "sections": [6]}, one)
        yield Check(
            f"rotation of a part, {title}",
            "rotate",
            x,
            {**turn, "sections": [4], "divided": 1},
            one,
        )
        three = {f"positions_{i}": ((2, 7), 300) for i in range(3)}
        yield Check(
            f"rotation by three positions, {title}",
            "rotate",
            x,
            {**turn, "sections": [1, 3, 2]},
            three,
        )
    for i, name in enumerate(ACTIVATIONS):
        yield Check(
            f"activation {name}, of a part", "activate", tokens, {"activation": i, "sliced": 1}
        )
    yield Check("arithmetic", "arithmetic", {**tokens, "other": (2, 7, 12)})
    yield Check("GEGLU", "geglu", tokens)
    yield Check("embedding of timesteps", "timestep_embedding", {"timesteps": (3,)}, {"out": 10})


def _pixels() -> Iterator[Check]:
    x = {"x": (2, 5, 7, 6)}
    yield Check("channels joined", "concat_channels", {**x, "other": (2, 3, 7, 6)})
    yield Check("nearest, larger", "resize_nearest", x, {"height": 9, "width": 13})
    yield Check("nearest, smaller", "resize_nearest", x, {"height": 3, "width": 4})
    for r in (2, 3):
        yield Check(f"pixel shuffle by {r}", "pixel_shuffle", {"x": (2, 2 * r * r, 3, 5)}, {"r": r})
        yield Check(
            f"pixel unshuffle by {r}", "pixel_unshuffle", {"x": (2, 5, 2 * r, 3 * r)}, {"r": r}
        )
    yield Check("mirrored", "frame", x, {"height": 17, "width": 9})
    yield Check("cropped", "frame", x, {"height": 4, "width": 5, "crop": 1})
    yield Check("mean of four", "average_pool", x)
    yield Check("mean of four, even", "average_pool", {"x": (1, 3, 4, 6)})
    yield Check("mean of all", "mean_pixels", x)
    yield Check("channel offsets", "add_per_channel", x)
    for planar in (0, 1):
        for patch in (1, 2):
            order = {"patch": patch, "planar": planar}
            title = f"patches of {patch}, {'planar' if planar else 'by point'}"
            yield Check(title, "patchify", {"x": (2, 3, 4, 6)}, order)
            count, values = 24 // patch**2, 3 * patch**2
            back = {**order, "height": 4, "width": 6}
            yield Check(f"{title}, back", "unpatchify", {"x": (2, count, values)}, back)


CHECKS: tuple[Check, ...] = (
    *_convolutions(),
    *_linear(),
    *_norms(),
    *_attention(),
    *_tokens(),
    *_pixels(),
)


def inputs_of(check: Check) -> Arrays:
    """Values to compare with, always the same: normal ones, uniform ids."""
    rng = np.random.default_rng(len(check.title))
    given: Arrays = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in check.inputs.items()
    }
    if check.layer == "choose_tokens":
        given["mask"] = (given["mask"] > 0).astype(np.float32)
    if check.layer == "normalized_guidance":
        given["figures"] = np.array([[5.0, 2.5, 0.25], [3.0, 1.2, 0.5]], np.float32)
    for name, (shape, limit) in check.ids.items():
        given[name] = rng.integers(0, limit, shape).astype(np.int32)
    if "words" in given:
        given["words"][0], given["words"][1] = np.arange(7) < 5, np.arange(7) > 1  # right and left
    return given


def store_of(check: Check, folder: Path) -> _core.WeightStore:
    """Random parameters of the layer, in a file of `folder` that is written once."""
    rng = np.random.default_rng(1)
    store, path, places, data = _core.WeightStore(), folder / "layer.bin", [], b""
    for name, shape in _core.parameters("layer", {"layer": check.layer, **check.config}):
        values = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        array = (values + (len(shape) == 1)).astype(np.float32)
        places.append((name, shape, len(data), array.nbytes))
        data += array.tobytes()
    if not path.exists():
        path.write_bytes(data)
    for name, dims, offset, nbytes in places:
        held = check.weights if len(dims) > 1 and check.weights != "f32" else None
        store.add(name, "f32", dims, str(path), offset, nbytes, convert_to=held)
    return store


def run_check(check: Check, device: _core.Device, store: _core.WeightStore) -> Array:
    """The layer's result on a device. Raises `DeviceError` when the device lacks an operator."""
    config = {"layer": check.layer, **check.config}
    network = _core.Network("layer", config, store, device)
    return network.run(inputs_of(check), {"circular": check.circular})["y"]


def compare(check: Check, device: _core.Device, cpu: _core.Device) -> CheckResult:
    """One check on `device` against `cpu`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = store_of(check, Path(folder))
        expected = run_check(check, cpu, store)
        try:
            found = run_check(check, device, store_of(check, Path(folder)))
        except DeviceError as error:
            return CheckResult(check.title, math.inf, str(error), limit_of(check))
    return CheckResult(check.title, relative_error(found, expected), "", limit_of(check))


def check_layers(device: _core.Device, checks: Iterable[Check] = CHECKS) -> Iterator[CheckResult]:
    """Every check on `device` against the CPU, one after the other."""
    cpu = _core.Device.cpu(1)
    for check in checks:
        yield compare(check, device, cpu)


def relative_error(found: Array, expected: Array) -> float:
    """The L2 norm of the difference as a share of what was expected."""
    difference = np.linalg.norm(found.astype(np.float64) - expected)
    return float(difference / max(float(np.linalg.norm(expected)), 1e-30))
