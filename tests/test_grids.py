"""Grids and animations: every picture is where it belongs, and no file is half written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine import Frames, animation, grid, xy_grid
from sdengine.api import demo_pipeline
from sdengine.errors import OutputError, ParameterError
from sdengine.grids import check_animation

COLOURS = [(200, 0, 0), (0, 180, 0), (0, 0, 220), (90, 90, 0), (0, 120, 120)]


def squares(count: int, size: tuple[int, int] = (20, 10)) -> list[Image.Image]:
    return [Image.new("RGB", size, COLOURS[i % len(COLOURS)]) for i in range(count)]


# ------------------------------ grids
def test_pictures_are_in_their_cells() -> None:
    sheet = grid(squares(5), gap=3)  # three columns, two rows
    assert sheet.size == (3 + 3 * 23, 3 + 2 * 13)
    for index, colour in enumerate(COLOURS):
        x, y = 3 + index % 3 * 23, 3 + index // 3 * 13
        cell = np.asarray(sheet)[y : y + 10, x : x + 20]
        assert (cell == colour).all()
    assert sheet.getpixel((0, 0)) == sheet.getpixel((60, 20)) == (255, 255, 255)
    assert grid(squares(5), 5, gap=0).size == (100, 10)
    assert grid(squares(2), 7, gap=0).size == (40, 10)


def test_smaller_and_transparent_pictures(tmp_path: Path) -> None:
    Image.new("RGBA", (10, 10), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    sheet = grid([*squares(1, (30, 20)), tmp_path / "clear.png", np.zeros((4, 4))], 3, gap=0)
    assert sheet.size == (90, 20)
    assert sheet.getpixel((45, 10)) == (255, 255, 255)
    assert np.argwhere(np.asarray(sheet)[:, 60:, 0] == 0).tolist()[0] == [8, 13]


def test_labels_stand_below_their_pictures() -> None:
    size = (120, 60)
    plain, labelled = (
        np.asarray(grid(squares(2, size), 2, labels=labels)) for labels in (None, ["", "seed 12"])
    )
    assert labelled.shape[0] > plain.shape[0]
    text = labelled[4 + 60 : -4]
    assert (text[:, 4:124] == 255).all()
    assert text[:, 128:248].min() < 64
    long = grid(squares(1, size), labels=["word " * 20 + "w" * 60])
    assert long.width == 128  # lines are broken, and nothing is wider than the picture
    assert long.height > 150


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), "list of pictures"),
        (("a.png",), "list of pictures"),
        ((squares(2), 0), "columns must be"),
        ((squares(2), 1.5), "columns must be"),
        ((squares(2), 1, ["a"]), "1 labels do not fit 2 pictures"),
        ((squares(2), 1, None, -1), "gap must be"),
    ],
)
def test_bad_grids(arguments: tuple[Any, ...], words: str) -> None:
    names = ("images", "columns", "labels", "gap")
    with pytest.raises(ParameterError, match=words):
        grid(**dict(zip(names, arguments, strict=False)))


PROMPT = "a red circle on a blue background"
SHORT = {"width": 64, "height": 64, "seed": 3}


def test_an_x_y_grid_is_made_of_its_pictures() -> None:
    pipe = demo_pipeline()
    sheet = xy_grid(
        pipe, PROMPT, x=("steps", [2, 3]), y=("sampler", ["euler", "heun"]), gap=2, **SHORT
    )
    cells = [
        [pipe.generate(PROMPT, steps=n, sampler=s, **SHORT).image for n in (2, 3)]
        for s in ("euler", "heun")
    ]
    found = np.asarray(sheet)
    x0, y0 = sheet.width - 2 * 66, sheet.height - 2 * 66
    assert x0 > 2  # room for the labels
    assert y0 > 2
    for row in range(2):
        for column in range(2):
            x, y = x0 + column * 66, y0 + row * 66
            np.testing.assert_array_equal(found[y : y + 64, x : x + 64], cells[row][column])
    assert max(found[:y0, x0:].min(), found[y0:, :x0].min()) < 64
    assert (found[:y0, :x0] == 255).all()


def test_prompts_as_axes() -> None:
    pipe = demo_pipeline()
    colours = ["red", "green"]
    one = xy_grid(pipe, PROMPT, x=("prompt_sr", colours), steps=2, **SHORT)
    whole = [PROMPT.replace("red", colour) for colour in colours]
    two = xy_grid(pipe, "", x=("prompt", whole), steps=2, **SHORT)
    pictures = [np.asarray(sheet)[-64 - 4 : -4] for sheet in (one, two)]
    np.testing.assert_array_equal(*pictures)
    assert two.height > one.height  # whole prompts take more lines
    rows = xy_grid(pipe, PROMPT, x=("steps", [1]), y=("negative_prompt", ["", "green"]), **SHORT)
    assert rows.height > 2 * 64


def test_all_cells_share_a_random_seed() -> None:
    sheet = xy_grid(demo_pipeline(), PROMPT, x=("steps", [1, 1]), width=64, height=64, gap=0)
    found = np.asarray(sheet)[-64:]
    np.testing.assert_array_equal(found[:, :64], found[:, 64:])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"x": ("stepz", [1])}, "no option 'stepz'"),
        ({"x": "steps"}, "an axis is the name"),
        ({"x": ("steps", [])}, "needs a list of values"),
        ({"x": ("sampler", "euler")}, "needs a list of values"),
        ({"x": ("batch_size", [1])}, "one picture"),
        ({"x": ("steps", [1]), "batch_size": 2}, "one picture"),
        ({"x": ("steps", [1]), "y": ("steps", [2])}, "both axes are 'steps'"),
        ({"x": ("prompt_sr", ["cat", "dog"])}, "looks for 'cat'"),
        ({"x": ("seed", range(1001))}, "more than 1000"),
    ],
)
def test_bad_axes(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        xy_grid(demo_pipeline(), PROMPT, **given)


# ------------------------------ animations
@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "apng", "GIF"])
def test_frames_come_back(tmp_path: Path, suffix: str) -> None:
    frames = [*squares(3, (16, 12)), Image.new("RGB", (32, 24), (250, 250, 250))]
    path = animation(frames, tmp_path / f"run.{suffix}", duration=120, last=900, loop=2)
    assert os.listdir(tmp_path) == [path.name]
    with Image.open(path) as found:
        assert (found.n_frames, found.size) == (4, (32, 24))
        times = []
        for index in range(4):
            found.seek(index)
            found.load()
            times.append(found.info["duration"])
            colour = np.asarray(found.convert("RGB"), np.int16)[5, 5]
            expected = [*COLOURS[:3], (250, 250, 250)][index]
            assert np.abs(colour - expected).max() <= 8  # WebP is lossy
        assert times == [120, 120, 120, 900]


def test_a_run_as_an_animation(tmp_path: Path) -> None:
    frames = Frames(2)
    demo_pipeline().generate(PROMPT, steps=6, callback=frames, **SHORT)
    with Image.open(animation(frames, tmp_path / "run.webp")) as found:
        assert found.n_frames == len(frames.images) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"frames": []}, "list of pictures"),
        ({"frames": squares(1), "duration": 0}, "duration must be"),
        ({"frames": squares(1), "last": 0.5}, "last must be"),
        ({"frames": squares(1), "loop": -1}, "loop must be"),
        ({"frames": squares(1), "path": "a.jpg"}, "must end in .gif, .webp, .png, .apng"),
        ({"frames": Frames()}, "list of pictures"),
    ],
)
def test_bad_animations(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    path = tmp_path / given.pop("path", "a.gif")
    with pytest.raises(ParameterError, match=words):
        animation(given.pop("frames"), path, **given)
    assert os.listdir(tmp_path) == []


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.gif"
    path.write_bytes(b"before")

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OutputError, match="No space left"):
        animation(squares(2), path)
    assert (os.listdir(tmp_path), path.read_bytes()) == (["run.gif"], b"before")
    for place in (tmp_path / "absent" / "run.gif", tmp_path):
        with pytest.raises((OutputError, ParameterError)):
            check_animation(place)
    with pytest.raises(sdengine.ParameterError, match="no suffix"):
        check_animation(tmp_path / "run")
