"""The command line over a pretended library: what it passes on, prints, writes and returns."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

import sdengine
from sdengine import Lora
from sdengine.cli import main
from sdengine.cli.preview import HalfBlocks, numbered
from sdengine.cli.settings import NOT_ON_A_COMMAND_LINE, SETTINGS, Setting
from sdengine.errors import (
    Cancelled,
    FormatError,
    OutOfMemoryError,
    OutputError,
    ParameterError,
    UnsupportedModelError,
)
from sdengine.guidance import AdaptiveProjection, Guidance, PerturbedAttention
from sdengine.images import save
from sdengine.metadata import read_parameters


@dataclass
class Library:
    """Stands in for sdengine; remembers every call."""

    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    error: BaseException | None = None
    colours: tuple[int, int, int] | None = (255, 0, 128)
    looked: list[tuple[str | None, bool]] = field(default_factory=list)

    def _called(self, name: str, *args: Any, **options: Any) -> None:
        self.calls.append((name, args, options))
        if self.error:
            raise self.error

    def generate(self, *args: Any, **options: Any) -> SimpleNamespace:
        callback = options.pop("callback", None)
        self._called("generate", *args, **options)
        steps = options.get("steps") or 4
        for step in range(1, steps + 1):
            if callback:
                preview = self.preview
                callback(
                    SimpleNamespace(step=step, steps=steps, sigma=1 - step / steps, preview=preview)
                )
        seed = options.get("seed") or 7
        seeds = [seed + i for i in range(options.get("batch_size") or 1)]
        common = {"prompt": args[0], "model": "demo", "width": 8, "height": 8, "sampler": "euler"}
        return SimpleNamespace(
            images=[Image.new("RGB", (8, 8)) for _ in seeds],
            seeds=seeds,
            timings={"encode": 0.1, "denoise": 0.5, "decode": 0.2, "total": 0.8},
            peak_memory=123_000_000,
            metadata=[{**common, "seed": s, "steps": steps} for s in seeds],
        )

    def preview(self, method: str | None = None, *, noisy: bool = False) -> list[Image.Image]:
        self.looked.append((method, noisy))
        if self.colours is None:
            raise ParameterError("there are no preview colours for Model X")
        return [Image.new("RGB", (16, 16), self.colours), Image.new("RGB", (16, 16))]

    def load(self, *args: Any, **options: Any) -> SimpleNamespace:
        self._called("load", *args, **options)
        return SimpleNamespace(generate=self.generate, path=args[0])

    def convert(self, *args: Any, **options: Any) -> SimpleNamespace:
        callback = options.pop("callback")
        self._called("convert", *args, **options)
        callback(SimpleNamespace(index=1, count=2, name="a.weight"))
        return SimpleNamespace(
            path=Path(args[1]),
            nbytes=2_500_000_000,
            histogram={"q4_0": 200, "f32": 3},
            has_tokenizer="bare" not in args[0],
            needs_tokenizer=True,
        )

    def inspect(self, *args: Any) -> Any:
        self._called("inspect", *args)

        class Info:
            def to_dict(self) -> dict[str, Any]:
                return {"family": "sd1", "path": args[0]}

            def __str__(self) -> str:
                return "family: sd1\ntitle: evil \x1b[31m title"

        return Info()

    def devices(self) -> list[Any]:
        self._called("devices")
        return [
            Device("cpu", "cpu", "A Fast Chip", 8, 64_000_000_000),
            Device("x", "cpu", "?", 1, 0),
        ]


@dataclass(frozen=True)
class Device:
    name: str
    kind: str
    description: str
    threads: int
    memory: int


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    for name in ("generate", "load", "convert", "inspect", "devices"):
        monkeypatch.setattr(sdengine, name, getattr(library, name), raising=False)
    monkeypatch.setattr(sdengine, "__version__", "9.8.7", raising=False)
    return library


Run = Callable[..., Result]


@pytest.fixture
def run(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


# ------------------------------ generate
def test_generate_with_the_demo_model(run: Run, library: Library) -> None:
    result = run("generate", "a red circle")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "out.png\n", "")
    assert library.calls == [("generate", ("a red circle",), {})]
    assert read_parameters("out.png")["prompt"] == "a red circle"


def test_model_options_reach_the_library(run: Run, library: Library) -> None:
    result = run(
        *("generate", "a cat", "-m", "m.gguf", "--vae", "v.safetensors"),
        *("--text-encoder", "text_encoder=a=b", "--text-encoder", "text_encoder_2=c"),
        *("--tokenizer", "tok", "--device", "cpu", "--threads", 3),
        *("--family", "sdxl", "--prediction", "v_prediction", "--weight-type", "q8_0"),
        *("-n", "blurry", "--taesd", "tiny.gguf", "--prompt-cache", "kept"),
    )
    assert result.exit_code == 0, result.output
    load, generate = library.calls
    options = {"vae": "v.safetensors", "tokenizer": "tok", "device": "cpu", "threads": 3}
    options |= {"family": "sdxl", "prediction": "v_prediction", "weight_type": "q8_0"}
    options["text_encoders"] = {"text_encoder": "a=b", "text_encoder_2": "c"}
    options |= {"preview_vae": "tiny.gguf", "prompt_cache": "kept"}
    assert load == ("load", ("m.gguf",), options)
    assert generate[1:] == (("a cat",), {"negative_prompt": "blurry"})


def test_several_files_for_a_component(run: Run, library: Library) -> None:
    files = ("--vae", "enc", "--vae", "dec", "--text-encoder", "l", "--text-encoder", "g")
    assert run("generate", "a", "-m", "m", *files).exit_code == 0
    assert library.calls[0][2] == {"vae": ["enc", "dec"], "text_encoders": ["l", "g"]}
    assert run("convert", "a", "b.gguf", *files).exit_code == 0
    assert (
        library.calls[2][2].items() >= {"vae": ["enc", "dec"], "text_encoders": ["l", "g"]}.items()
    )


VALUES: dict[str, tuple[str, Any]] = {
    "prompt_2": ("a dog", "a dog"),
    "negative_prompt_2": ("ugly", "ugly"),
    "weighting": ("compel", "compel"),
    "clip_skip": ("2", 2),
    "width": ("64", 64),
    "height": ("128", 128),
    "aspect_ratio": ("16:9", "16:9"),
    "batch_size": ("2", 2),
    "seamless": ("xy", "xy"),
    "tile": ("0", 0),
    "tiled_diffusion": ("size=64 overlap=16", {"size": 64, "overlap": 16}),
    "sizes": ("crop_top=8", {"crop_top": 8.0}),
    "negative_sizes": ("crop_left=0", {"crop_left": 0.0}),
    "steps": ("9", 9),
    "sampler": ("euler_a", "euler_a"),
    "schedule": ("karras", "karras"),
    "sigmas": ("14.6,2,0", [14.6, 2.0, 0.0]),
    "timesteps": ("999,500", [999, 500]),
    "eta": ("0.5", 0.5),
    "shift": ("1.75", 1.75),
    "s_noise": ("1.01", 1.01),
    "s_churn": ("2", 2.0),
    "s_tmin": ("0.1", 0.1),
    "s_tmax": ("9", 9.0),
    "order": ("3", 3),
    "denoising_start": ("0.2", 0.2),
    "denoising_end": ("0.8", 0.8),
    "compat": ("a1111", "a1111"),
    "guidance_scale": ("6.5", 6.5),
    "true_cfg_scale": ("4,2,1", [4.0, 2.0, 1.0]),
    "image_guidance_scale": ("1.5", 1.5),
    "guidance_rescale": ("0.7", 0.7),
    "guidance": (
        "perturbed_attention scale=2 layers=mid_block/up_blocks.1",
        Guidance(perturbed_attention=PerturbedAttention(("mid_block", "up_blocks.1"), 2)),
    ),
    "seed": ("0", 0),
    "noise": ("torch-cuda", "torch-cuda"),
    "variation_seed": ("7", 7),
    "variation_strength": ("0.25", 0.25),
    "image": ("in.png", "in.png"),
    "mask": ("mask.png", "mask.png"),
    "mask_blur": ("4", 4.0),
    "mask_padding": ("16", 16),
    "mask_fill": ("blur", "blur"),
    "outpaint": ("64,0,64,0", "64,0,64,0"),
    "depth": ("depth.png", "depth.png"),
    "references": ("face.png", ["face.png"]),
    "control_images": ("edges.png", ["edges.png"]),
    "control_scales": ("0.5,1", [0.5, 1.0]),
    "control_start": ("0.1", 0.1),
    "control_end": ("0.8", 0.8),
    "control_mode": ("prompt", "prompt"),
    "ip_images": ("face.png", ["face.png"]),
    "ip_scale": ("0.6", 0.6),
    "strength": ("0.6", 0.6),
    "resize_mode": ("pad", "pad"),
    "hires_scale": ("1.5", 1.5),
    "hires_width": ("1024", 1024),
    "hires_height": ("768", 768),
    "hires_upscaler": ("latent-bicubic", "latent-bicubic"),
    "hires_strength": ("0.5", 0.5),
    "hires_steps": ("12", 12),
    "hires_sampler": ("euler_a", "euler_a"),
    "hires_schedule": ("karras", "karras"),
    "hires_guidance_scale": ("4.5", 4.5),
    "hires_prompt": ("sharp", "sharp"),
    "hires_negative_prompt": ("soft", "soft"),
}
SWITCHES = {
    "brownian": "--brownian",
    "guess_mode": "--guess-mode",
    "resize_references": "--resize-references",
    "invert_mask": "--invert-mask",
    "only_masked": "--only-masked",
    "differential": "--differential",
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_every_option_reaches_the_library(run: Run, library: Library, setting: Setting) -> None:
    for flag in setting.flags:
        library.calls.clear()
        if setting.name in SWITCHES:
            (given, expected), flags = ("", True), [SWITCHES[setting.name]]
        else:
            (given, expected), flags = VALUES[setting.name], [flag, VALUES[setting.name][0]]
        result = run("generate", "a", *flags)
        assert result.exit_code == 0, (given, result.output)
        assert library.calls == [("generate", ("a",), {setting.name: expected})]


def test_the_command_line_has_every_option_of_the_library() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(set(names)) == len(names)
    assert set(names) | NOT_ON_A_COMMAND_LINE == set(sdengine.GenerateOptions.__annotations__)
    assert not set(names) & NOT_ON_A_COMMAND_LINE


def test_options_that_repeat(run: Run, library: Library) -> None:
    run("generate", "a", "--size-conditioning", "crop_top=8", "--size-conditioning", "crop_left=9")
    assert library.calls[0][2] == {"sizes": {"crop_top": 8.0, "crop_left": 9.0}}
    kinds = ("--guidance", "interval=0.2/0.8", "--guidance", "projection")
    run("generate", "a", *kinds, "--guidance", "norms=free", "--no-brownian")
    expected = Guidance(interval=(0.2, 0.8), projection=AdaptiveProjection(), norms="free")
    assert library.calls[1][2] == {"guidance": expected, "brownian": False}


def test_a_refiner_shares_what_is_not_the_models_own(run: Run, library: Library) -> None:
    options = ("-m", "base", "--vae", "v", "--tokenizer", "tok", "--threads", 2)
    assert run("generate", "a", *options, "--refiner", "fine").exit_code == 0
    base, refiner, generate = library.calls
    assert base[2] == {"vae": "v", "tokenizer": "tok", "threads": 2}
    assert refiner == ("load", ("fine",), {"tokenizer": "tok", "threads": 2})
    assert generate[2]["refiner"].path == "fine"


@pytest.mark.parametrize("name", ["--cfg-scale", "--guidance-scale"])
def test_both_names_of_guidance(run: Run, library: Library, name: str) -> None:
    assert run("generate", "a", name, "3").exit_code == 0
    assert library.calls[0][2] == {"guidance_scale": 3.0}


def test_a_batch_is_numbered_and_every_picture_knows_its_seed(run: Run) -> None:
    result = run("generate", "a", "-b", "3", "-s", "5", "-o", "my.pic.png")
    assert result.stdout.split() == ["my.pic.png", "my.pic-2.png", "my.pic-3.png"]
    assert [read_parameters(name)["seed"] for name in result.stdout.split()] == [5, 6, 7]


def test_numbering() -> None:
    assert numbered(Path("a/b.png"), 1) == [Path("a/b.png")]
    assert numbered(Path("a/b.png"), 3) == [Path(f"a/b{n}.png") for n in ("", "-2", "-3")]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("generate", "a", "-o", "a.gif"), 2, "must end in .png"),
        (("generate", "a", "-o", "absent/a.png"), 1, "there is no folder absent"),
        (("generate", "a", "--threads", "3"), 2, "--threads needs --model"),
        (("generate", "a", "--text-encoder", "x=y"), 2, "--text-encoder needs --model"),
        (
            ("generate", "a", "-m", "m", "--text-encoder", "x", "--text-encoder", "y=z"),
            *(2, "takes NAME=PATH each time, or PATH each time"),
        ),
        (("generate", "a", "--refiner", "x"), 2, "--refiner needs --model"),
        (("generate", "a", "--sigmas", "1;2"), 2, "'1;2' is not a list of numbers"),
        (("generate", "a", "--timesteps", "1.5"), 2, "'1.5' is not a list of whole numbers"),
        (("generate", "a", "--size-conditioning", "crop_top"), 2, "'crop_top' is not KEY=NUMBER"),
        (("generate", "a", "--guidance", "projection eta"), 2, "is not KIND, or KIND NAME=VALUE"),
        (
            ("generate", "a", "--guidance", "magic"),
            2,
            "no guidance 'magic'; choose one of interval",
        ),
        (("generate", "a", "--seamless", "z"), 2, "'x', 'y', 'xy'"),
        (("generate", "--from", "absent.png"), 2, "there is no such file"),
        (("generate", "a", "--steps", "many"), 2, "not a valid integer"),
        (("generate", "a", "--quality", "0"), 2, "1<=x<=100"),
        (("generate",), 2, "Missing argument"),
        (("generate", "a", "--stpes", "3"), 2, "--steps"),
        (("convert", "a", "b", "--rule", "vae"), 2, "--rule takes NAME=VALUE"),
        (("bench", "--repeat", "0"), 2, "1<=x<=1000"),
        (("paint",), 2, "No such command"),
        (("generate", "a", "--animate", "a.jpg"), 2, "must end in .gif"),
        (("generate", "a", "--animate", "absent/a.gif"), 1, "there is no folder absent"),
        (("generate", "a", "--grid", "a.gif"), 2, "must end in .png"),
        (("generate", "a", "--preview-method", "x"), 2, "choose one of linear, tiny, full"),
        (("generate", "a", "--preview-every", "0"), 2, "1<=x<=1000"),
        (("generate", "a", "--taesd", "x"), 2, "--taesd needs --model"),
        (("generate", "a", "--prompt-cache", "x"), 2, "--prompt-cache needs --model"),
        (("generate", "a", "--y", "steps=1"), 2, "--y needs --x"),
        (("generate", "a", "--x", "steps"), 2, "is not NAME=VALUE,VALUE"),
        (("generate", "a", "--x", "steps=1,many"), 2, "'many' is not a valid integer"),
        (
            ("generate", "a", "--x", "steps=1", "--grid", "a.png"),
            *(2, "leave --grid, --animate and --refiner out"),
        ),
    ],
)
def test_mistakes_are_told_before_any_work(
    run: Run, library: Library, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert library.calls == []
    assert os.listdir() == []


@pytest.mark.parametrize("command", [("generate", "a"), ("bench",), ("devices",), ("inspect", "m")])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ParameterError("steps must be 1 to 1000, not 0"), 2),
        (FormatError("m.gguf: damaged\nsecond line"), 1),
        (UnsupportedModelError("no family"), 1),
        (OutOfMemoryError("asked for 3 GB"), 1),
        (OutputError("disk full"), 1),
    ],
)
def test_errors_are_one_line(
    run: Run, library: Library, command: tuple[str, ...], error: Exception, code: int
) -> None:
    library.error = error
    result = run(*command)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == f"error: {' '.join(str(error).splitlines())}\n"
    assert os.listdir() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled("stopped")])
def test_interruption(run: Run, library: Library, error: BaseException) -> None:
    library.error = error
    result = run("generate", "a")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert os.listdir() == []


def test_other_exceptions_are_not_swallowed(run: Run, library: Library) -> None:
    library.error = ZeroDivisionError("a bug")
    assert isinstance(run("generate", "a").exception, ZeroDivisionError)


def test_progress_is_shown_on_a_terminal_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("generate", "a").stderr == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    assert "generating" in run("generate", "a").stderr


# ------------------------------ previews
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


# ------------------------------ --from
def picture(name: str, text: str) -> str:
    save(Image.new("RGB", (8, 8)), name, text)
    return name


LAST_LINE = "Steps: 9, Sampler: Euler a, CFG scale: 3, Seed: 4, Size: 64x128"


def test_a_picture_is_made_again(run: Run, library: Library) -> None:
    source = picture("a.png", f"a cat\nNegative prompt: ugly\n{LAST_LINE}, Eta: 0.5, Model: x")
    assert run("generate", "--from", source).exit_code == 0
    options = {"negative_prompt": "ugly", "steps": 9, "sampler": "euler_a", "guidance_scale": 3.0}
    options |= {"seed": 4, "width": 64, "height": 128, "eta": 0.5}
    assert library.calls == [("generate", ("a cat",), options)]
    library.calls.clear()
    assert run("generate", "a dog", "--from", source, "-s", 5, "--ar", "1:1").exit_code == 0
    options = {k: v for k, v in options.items() if k not in ("width", "height")}
    assert library.calls == [
        ("generate", ("a dog",), {**options, "seed": 5, "aspect_ratio": "1:1"})
    ]


def test_what_is_given_overrules_what_belongs_to_it(run: Run, library: Library) -> None:
    source = picture("a.png", f"a cat\n{LAST_LINE}, Sigmas: 3 2 0, Denoising strength: 0.5")
    run("generate", "--from", source, "--steps", 3)
    assert library.calls[0][2].keys().isdisjoint({"sigmas", "strength"})
    run("generate", "--from", source, "-i", "in.png")
    assert library.calls[1][2].items() >= {"sigmas": (3.0, 2.0, 0.0), "strength": 0.5}.items()


def test_how_a_mask_was_used_comes_back_with_a_mask(run: Run, library: Library) -> None:
    source = picture("a.png", f"a cat\n{LAST_LINE}, Mask blur: 4, Inpaint area: Only masked")
    run("generate", "--from", source)
    assert library.calls[0][2].keys().isdisjoint({"mask_blur", "only_masked"})
    run("generate", "--from", source, "-i", "in.png", "--mask", "m.png")
    assert library.calls[1][2].items() >= {"mask_blur": 4.0, "only_masked": True}.items()
    source = picture("b.png", f"a cat\n{LAST_LINE}, Outpaint: 8 0 8 0, Mask blur: 4")
    run("generate", "--from", source, "-i", "in.png")
    assert library.calls[2][2].items() >= {"mask_blur": 4.0, "outpaint": (8.0, 0, 8.0, 0)}.items()
    run("generate", "--from", source, "-i", "in.png", "--mask", "m.png")
    assert "outpaint" not in library.calls[3][2]
    run("generate", "--from", source, "-i", "in.png", "--outpaint", "4:3")
    assert library.calls[4][2]["outpaint"] == "4:3"
    assert library.calls[4][2].keys().isdisjoint({"width", "height"})


def test_an_enlarged_picture_of_a1111(run: Run, library: Library) -> None:
    fields = "Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent (bicubic)"
    source = picture("a.png", f"a cat\n{LAST_LINE}, {fields}")
    run("generate", "--from", source)
    hires = {"hires_scale": 2.0, "hires_upscaler": "latent-bicubic", "hires_strength": 0.5}
    assert library.calls[0][2].items() >= hires.items()
    assert "strength" not in library.calls[0][2]
    run("generate", "--from", source, "--hires-width", 256)
    assert "hires_scale" not in library.calls[1][2]
    assert library.calls[1][2]["hires_width"] == 256


def test_tiles_of_the_denoiser(run: Run, library: Library) -> None:
    for text, expected in (
        ("on", True),
        ("96", 96),
        ("size=96 overlap=48", {"size": 96, "overlap": 48}),
    ):
        run("generate", "a", "--tiled-diffusion", text)
        assert library.calls.pop()[2] == {"tiled_diffusion": expected}
    assert "is not on, SIZE" in run("generate", "a", "--tiled-diffusion", "huge").stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"p\n{LAST_LINE}, Task: outpainting", "from a given image: repeat it with --image"),
        (f"p\n{LAST_LINE}, Task: inpainting", "from a given image: repeat it with --image"),
        (
            f"p\n{LAST_LINE}, Task: editing by reference",
            "from a given reference: repeat it with --reference",
        ),
        (
            f"p\n{LAST_LINE}, Task: control",
            "from a given control image: repeat it with --control-image",
        ),
        (f"p\n{LAST_LINE}, Refiner: fine", "made with the refiner fine: give it with --refiner"),
        (
            f"p\n{LAST_LINE}, Hires upscale: 2, Hires upscaler: 4x-Sharp.pth",
            "made with the upscaler 4x-Sharp.pth: give it with --hires-upscaler",
        ),
        (f"p\n{LAST_LINE}, Control scale: 1 0.5", "repeat it with --controlnet and --control-im"),
        (f"p\n{LAST_LINE}, IP-Adapter scale: 1", "an IP-Adapter: repeat it with --ip-adapter and"),
        (f'p\n{LAST_LINE}, Applied LoRAs: "ink:1"', "LoRAs (ink:1): give --model and --lora-dir"),
    ],
)
def test_pictures_that_need_more(run: Run, library: Library, text: str, words: str) -> None:
    result = run("generate", "--from", picture("a.png", text))
    assert (result.exit_code, library.calls) == (2, [])
    assert words in " ".join(result.stderr.split())


def test_the_loras_of_a_picture_are_found(run: Run, library: Library) -> None:
    Path("loras/more").mkdir(parents=True)
    for name in ("ink.safetensors", "more/wide.v2.safetensors"):
        Path("loras", name).write_text("")
    applied = "ink:0.8:0.3, wide.v2:0.5/0.4 [0.25-1], other:0.123456789"
    source = picture("a.png", f'p\n{LAST_LINE}, Applied LoRAs: "{applied}"')
    given = ("generate", "--from", source, "-m", "m", "--lora-dir", "loras")
    result = run(*given)
    assert (result.exit_code, library.calls) == (2, [])
    assert "LoRAs that are not found in loras: other. Give" in " ".join(result.stderr.split())
    result = run(*given, "--lora", "else/Other.pt", "--lora", "new.pt:2")
    assert result.exit_code == 0, result.output
    assert library.calls[0][2]["loras"] == [
        Lora(Path("loras/ink.safetensors"), 0.8, 0.3),
        Lora(Path("loras/more/wide.v2.safetensors"), [0.5, 0.4], start=0.25),
        Lora("else/Other.pt", 0.123456789),
        Lora("new.pt", 2.0),
    ]
    assert "loras" not in library.calls[1][2]


def test_a_picture_without_parameters(run: Run) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    assert "carries no generation parameters" in run("generate", "--from", "a.png").stderr


def test_end_to_end_with_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", "a red circle", "--steps", "3", "--guidance", "perturbed_attention"]
    arguments += ["--variation-seed", "1", "--variation-strength", "0.2", "--preview-dir", "steps"]
    for run_arguments in (arguments, ["generate", "--from", "out.png", "-o", "again.png"]):
        result = CliRunner().invoke(main, run_arguments)
        assert result.exit_code == 0, result.output
    with Image.open("out.png") as first, Image.open("again.png") as second:
        assert first.tobytes() == second.tobytes()
    assert len(os.listdir("steps")) == 3


@pytest.mark.filterwarnings("always::sdengine.UnwiseWarning")
def test_warnings_are_one_line(run: Run, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: Any, **__: Any) -> list[Any]:
        warnings.warn("use lcm with care", sdengine.UnwiseWarning, stacklevel=1)
        return []

    monkeypatch.setattr(sdengine, "devices", warn)
    assert run("devices").stderr == "warning: use lcm with care\n"


# ------------------------------ inspect
def test_inspect_a_model(run: Run, library: Library) -> None:
    result = run("inspect", "m.gguf")
    assert result.exit_code == 0
    assert result.stdout == "family: sd1\ntitle: evil \\x1b[31m title\n"  # no escape sequences
    assert json.loads(run("inspect", "m.gguf", "--json").stdout) == {
        "family": "sd1",
        "path": "m.gguf",
    }
    assert library.calls[0] == ("inspect", (Path("m.gguf"),), {})


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp"])
def test_inspect_a_picture(run: Run, library: Library, suffix: str) -> None:
    text = "a cat\nNegative prompt: \x1b]0;title\nSteps: 3, Seed: 4, Size: 8x8"
    save(Image.new("RGB", (8, 8)), f"a.{suffix}", text)
    save(Image.new("RGB", (8, 8)), f"b.{suffix}")
    assert run("inspect", f"a.{suffix}").stdout == text.replace("\x1b", "\\x1b") + "\n"
    assert json.loads(run("inspect", f"a.{suffix}", "--json").stdout)["seed"] == 4
    assert run("inspect", f"b.{suffix}").stdout == "no generation parameters\n"
    assert json.loads(run("inspect", f"b.{suffix}", "--json").stdout) == {}
    assert library.calls == []


def test_inspect_a_missing_picture(run: Run) -> None:
    result = run("inspect", "absent.png")
    assert (result.exit_code, result.stderr) == (2, "error: absent.png: there is no such file\n")


# ------------------------------ convert, devices, bench
def test_convert(run: Run, library: Library) -> None:
    arguments = ("--type", "q4_0", "--rule", "vae.*=f16", "--rule", "kind:kernel=q8_0", "-f")
    arguments += ("--default", "guidance=3.5", "--default", "steps=12", "--default", "sampler=heun")
    result = run("convert", "in", "out.gguf", *arguments, "--vae", "v", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout == "out.gguf  2.50 GB  (q4_0 x 200, f32 x 3)\n"
    options = {"weight_type": "q4_0", "vae": "v", "threads": 2, "overwrite": True}
    options["rules"] = ["vae.*=f16", "kind:kernel=q8_0"]
    options["defaults"] = {"guidance": 3.5, "steps": 12, "sampler": "heun"}
    assert library.calls == [("convert", ("in", "out.gguf"), options)]


def test_tokenizers_by_name(run: Run, library: Library) -> None:
    named = ("--tokenizer", "clip_l=a", "--tokenizer", "t5xxl=b")
    assert run("generate", "a", "-m", "m", *named).exit_code == 0
    assert library.calls[0] == ("load", ("m",), {"tokenizer": {"clip_l": "a", "t5xxl": "b"}})
    result = run("generate", "a", "-m", "m", *named, "--tokenizer", "c")
    assert result.exit_code == 2
    assert "NAME=PATH each time" in result.stderr


def test_convert_defaults_and_missing_tokenizer(run: Run, library: Library) -> None:
    result = run("convert", "bare.safetensors", "out.gguf")
    assert library.calls[0][2] == {"rules": None, "defaults": None, "overwrite": False}
    assert "--tokenizer" in result.stderr


def test_convert_does_not_replace_a_file_unasked(run: Run, library: Library) -> None:
    Path("out.gguf").write_text("old")
    result = run("convert", "in", "out.gguf")
    assert (result.exit_code, library.calls) == (2, [])
    assert "--force" in result.stderr


def test_devices(run: Run) -> None:
    assert run("devices").stdout.splitlines() == [
        "cpu  A Fast Chip, 8 threads, 64.00 GB",
        "x  ?, 1 threads",
    ]
    assert json.loads(run("devices", "--json").stdout)[0]["description"] == "A Fast Chip"


def test_bench(run: Run, library: Library) -> None:
    result = run("bench", "-m", "m.gguf", "--repeat", "2", "--steps", "3", "-b", "2")
    assert result.exit_code == 0, result.output
    assert [name for name, _, _ in library.calls] == ["load"] + ["generate"] * 3
    assert "demo, 8x8, 3 steps of euler, batch 2" in result.stdout
    assert "denoise        0.500 s" in result.stdout
    assert "123.0 MB" in result.stdout
    found = json.loads(run("bench", "--json", "--repeat", "1").stdout)
    assert found["seconds"]["total"] == 0.8
    assert len(found["runs"]) == 1


# ------------------------------ the program
def test_help_and_version(run: Run, library: Library) -> None:
    for flag in ("--help", "-h"):
        result = run(flag)
        assert result.exit_code == 0
        for command in ("generate", "inspect", "convert", "devices", "bench"):
            assert command in result.stdout
            assert run(command, flag).exit_code == 0
    assert run("--version").stdout == "sdengine 9.8.7\n"
    assert library.calls == []


SLOW_PROGRAM = """
import time, sdengine
from sdengine.cli import main
def generate(prompt, **options):
    print("started", flush=True)
    time.sleep(60)
sdengine.generate = generate
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_control_c_in_a_real_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_PROGRAM, "generate", "a"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, b"interrupted\n")
    assert os.listdir(tmp_path) == []
