"""What ``sdengine generate`` shows on the way."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

import sdengine
from sdengine.cli.preview import HalfBlocks

from .conftest import Library, Run


def test_previews_as_files(run: Run) -> None:
    result = run("generate", "a", "--steps", "10", "--preview-dir", "new/steps")
    assert (result.exit_code, result.stderr) == (0, "")
    files = sorted(os.listdir("new/steps"))
    assert len(files) == 20
    assert files[:3] == ["step-001-2.png", "step-001.png", "step-002-2.png"]
    with Image.open("new/steps/step-010.png") as image:
        assert image.getpixel((3, 3)) == (255, 0, 128)


def test_previews_of_some_steps(run: Run, library: Library) -> None:
    options = ("--preview-every", 4, "--preview-method", "tae", "--preview-noisy")
    result = run("generate", "a", "--steps", "10", "--preview-dir", "new", *options)
    assert result.exit_code == 0, result.output
    names = [f"step-{step:03}{more}.png" for step in (4, 8, 10) for more in ("-2", "")]
    assert sorted(os.listdir("new")) == names
    assert library.looked == [("tae", True)] * 3


def test_an_animation_of_a_run(run: Run, library: Library) -> None:
    result = run("generate", "a", "--steps", "5", "--preview-every", 2, "--animate", "run.gif")
    assert (result.exit_code, result.stdout) == (0, "out.png\nrun.gif\n")
    with Image.open("run.gif") as found:
        assert found.n_frames == 2  # three equal previews are one frame, then the result
        assert found.size == (44, 24)  # the library's previews are two pictures


def test_a_grid_of_a_batch(run: Run, library: Library) -> None:
    result = run("generate", "a", "-b", 3, "--grid", "all.png")
    assert result.stdout.split() == ["out.png", "out-2.png", "out-3.png", "all.png"]
    with Image.open("all.png") as found:
        assert found.size == (28, 28)


def test_a_grid_of_options(run: Run, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def xy_grid(pipe: Any, prompt: str, **options: Any) -> Image.Image:
        options.pop("callback")
        given.append({"pipe": pipe.path, "prompt": prompt, **options})
        return Image.new("RGB", (9, 9))

    monkeypatch.setattr(sdengine.grids, "xy_grid", xy_grid)
    axes = ("--x", "cfg-scale=1,2.5", "--y", 'prompt_sr=cat, "big, dog"')
    result = run("generate", "a cat", "-m", "m.gguf", "-s", 3, *axes)
    assert (result.exit_code, result.stdout) == (0, "out.png\n")
    assert given == [
        {
            "pipe": "m.gguf",
            "prompt": "a cat",
            "seed": 3,
            "x": ("guidance_scale", [1.0, 2.5]),
            "y": ("prompt_sr", ["cat", "big, dog"]),
        }
    ]


def test_a_preview_folder_that_cannot_be_made(run: Run, library: Library) -> None:
    Path("file").write_text("")
    result = run("generate", "a", "--preview-dir", "file/steps")
    assert (result.exit_code, library.calls) == (1, [])
    assert result.stderr.startswith("error: file/steps could not be made: ")


def test_previews_in_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("generate", "a", "--preview").stderr == ""  # no terminal, nothing drawn
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "20")
    drawn = run("generate", "a", "--preview").stderr
    assert "38;2;255;0;128;48;2;255;0;128m\N{UPPER HALF BLOCK}" in drawn
    assert "\N{UPPER HALF BLOCK}" not in run("generate", "a").stderr


@pytest.mark.parametrize(("size", "columns", "rows"), [((512, 256), 30, 8), ((64, 256), 8, 17)])
def test_the_drawn_picture_fits(size: tuple[int, int], columns: int, rows: int) -> None:
    console = Console(width=30, height=20, file=io.StringIO(), force_terminal=True)
    drawing = HalfBlocks()
    assert not any(console.render_lines(drawing, pad=False))
    drawing.image = Image.new("RGB", size)
    lines = [line for line in console.render_lines(drawing, pad=False) if line]
    assert len(lines) <= rows
    assert {sum(len(segment.text) for segment in line) for line in lines} == {columns}


def test_a_model_without_preview_colours(run: Run, library: Library) -> None:
    library.colours = None
    result = run("generate", "a", "--preview-dir", "steps")
    assert result.exit_code == 0
    assert result.stderr == "no preview: there are no preview colours for Model X\n"
    assert os.listdir("steps") == []
