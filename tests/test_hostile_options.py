"""Every option under values that no one should give: a picture, or a typed error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine.api import demo_pipeline
from sdengine.checks import check_choice, check_flag, check_number, check_path, check_whole
from sdengine.options import DEFAULTS
from sdengine.tiled_diffusion import TiledDiffusion

PICTURE = Image.effect_noise((64, 64), 50).convert("RGB")
MASK = Image.new("L", (64, 64), 255)
TASKS: dict[str, dict[str, Any]] = {
    "text": {"width": 64, "height": 64, "steps": 1},
    "picture": {"image": PICTURE, "strength": 0.5, "steps": 2},
    "mask": {"image": PICTURE, "mask": MASK, "only_masked": True, "steps": 1},
    "hires": {"width": 64, "height": 64, "steps": 2, "hires_scale": 1.5},
    "tiles": {"width": 128, "height": 64, "steps": 1, "tiled_diffusion": 8},
}
VALUES: dict[str, Any] = {
    "NaN": math.nan,
    "infinity": math.inf,
    "negative": -1,
    "zero": 0,
    "too large for a float": 10**400,
    "text": "x",
    "no text": "",
    "zero byte": "\0",
    "half a character": "\ud800",
    "a long name": "a" * 5000,
    "bytes": b"x",
    "an empty list": [],
    "a list of nothing": [None],
    "a mapping": {"a": 1},
    "texts of numpy": np.array(["a", "b"]),
    "numbers of numpy": np.array([64, 0, 64, 0]),
    "no pixels": np.zeros((0, 0, 3), np.uint8),
    "pixels that are none": np.full((8, 8, 3), np.nan),
    "an object": object(),
    "a complex number": 1j,
    "a folder": Path("."),
    "a device": Path("/dev/null"),
    "one pixel": Image.new("CMYK", (1, 1)),
    "an empty picture": Image.new("RGB", (0, 5)),
}


def survives(call: Callable[[], object]) -> None:
    with suppress(sdengine.SDEngineError):
        call()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("task", TASKS)
def test_generate(task: str, value: str) -> None:
    pipe = demo_pipeline()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sdengine.UnwiseWarning)
        for option in (*DEFAULTS, "prompt", "negative_prompt"):
            given = {"prompt": "a red circle", "seed": 1, **TASKS[task], option: VALUES[value]}
            survives(lambda given=given: pipe.generate(**given))


@pytest.mark.parametrize("value", VALUES)
def test_the_rest(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipe, given, latents = demo_pipeline(), VALUES[value], np.zeros((1, 4, 8, 8), np.float32)
    run = pipe.start("a red circle", steps=1, width=64, height=64)
    pictures = [PICTURE, MASK]
    for call in (
        lambda: sdengine.grid(given),
        lambda: sdengine.grid(pictures, given),
        lambda: sdengine.grid(pictures, labels=given),
        lambda: sdengine.grid(pictures, gap=given),
        lambda: sdengine.animation(pictures, given),
        lambda: sdengine.animation(pictures, "a.gif", duration=given),
        lambda: sdengine.animation(pictures, "a.webp", last=given),
        lambda: sdengine.animation(pictures, "a.png", loop=given),
        lambda: sdengine.xy_grid(given, "a", x=("steps", [1])),
        lambda: sdengine.xy_grid(pipe, "a", x=given),
        lambda: sdengine.xy_grid(pipe, "a", x=("width", given)),
        lambda: sdengine.outpaint(given, 8),
        lambda: sdengine.outpaint(PICTURE, given),
        lambda: sdengine.outpaint(PICTURE, aspect_ratio=given),
        lambda: sdengine.outpaint(PICTURE, 8, feather=given),
        lambda: sdengine.outpaint(PICTURE, 8, fill=given),
        lambda: sdengine.Frames(given),
        lambda: sdengine.Frames(method=given),
        lambda: sdengine.Frames(index=given),
        lambda: TiledDiffusion(given),
        lambda: TiledDiffusion(weights=given),
        lambda: pipe.preview(given),
        lambda: pipe.preview(latents, given),
        lambda: pipe.preview(latents, "full", seamless=given),
        lambda: run.preview_of(latents, sigma=given),
        lambda: pipe.decode_latents(latents, output_type=given),
        lambda: pipe.encode_prompt("a", clip_skip=given),
        lambda: pipe.encode_prompt("a", weighting=given),
        lambda: pipe.set_loras(given),
        lambda: pipe.add_embedding("word", given),
    ):
        survives(call)
    pipe.set_loras([])


@pytest.mark.parametrize("value", VALUES)
def test_load(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    demo = demo_pipeline().model.path
    for name in (
        *("vae", "text_encoders", "tokenizer", "family", "prediction", "device", "threads"),
        *("weight_type", "embeddings", "loras", "lora_dir", "controlnets", "ip_adapter"),
        *("preview_vae", "prompt_cache", "arithmetic"),
    ):
        survives(lambda name=name: sdengine.load(demo, **{name: VALUES[value]}))
    survives(lambda: sdengine.load(VALUES[value]))


def test_a_size_is_checked_before_a_picture_is_brought_to_it() -> None:
    """Else it would take gigabytes to say no."""
    for size in ({"width": 65535}, {"height": 10**9}, {"width": 72.5}, {"width": 0}):
        for mask in (None, MASK):
            with pytest.raises(
                sdengine.ParameterError, match="(width|height) must be a whole number"
            ):
                demo_pipeline().generate("a", image=PICTURE, mask=mask, **size)


def test_what_is_said() -> None:
    for call, message in (
        (
            lambda: check_whole("steps", True, 1, 9),
            "steps must be a whole number from 1 to 9, not True",
        ),
        (
            lambda: check_whole("gap", 1.5, 0, 4, "pixels"),
            "gap must be a whole number of pixels from 0",
        ),
        (lambda: check_number("eta", math.nan, 0, 1), "eta must be a number from 0 to 1, not nan"),
        (lambda: check_choice("mode", "c", ("a", "b")), "mode must be one of 'a', 'b', not 'c'"),
        (lambda: check_flag("tiled", 1), "tiled must be True or False, not 1"),
        (lambda: check_path("folder", ""), "folder must be a path, not ''"),
        (lambda: check_choice("mode", "c" * 900, ("a",)), "not 'c{79}$"),
    ):
        with pytest.raises(sdengine.ParameterError, match=message):
            call()
    check_whole("steps", np.int64(3), 1, 9)
    check_number("eta", np.float32(0.5), 0, 1)
    assert check_path("folder", "a") == Path("a")
