"""The command line over a pretended library: what it passes on, prints, writes and returns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import sdengine
from sdengine.cli import main
from sdengine.cli.generate_command import numbered
from sdengine.errors import (
    Cancelled,
    FormatError,
    OutOfMemoryError,
    OutputError,
    ParameterError,
    UnsupportedModelError,
)
from sdengine.images import save
from sdengine.metadata import read_parameters


@dataclass
class Library:
    """Stands in for sdengine; remembers every call."""

    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    error: BaseException | None = None

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
                callback(SimpleNamespace(step=step, steps=steps, sigma=1 - step / steps))
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

    def load(self, *args: Any, **options: Any) -> SimpleNamespace:
        self._called("load", *args, **options)
        return SimpleNamespace(generate=self.generate)

    def convert(self, *args: Any, **options: Any) -> SimpleNamespace:
        callback = options.pop("callback")
        self._called("convert", *args, **options)
        callback(SimpleNamespace(index=1, count=2, name="a.weight"))
        return SimpleNamespace(
            path=Path(args[1]),
            nbytes=2_500_000_000,
            histogram={"q4_0": 200, "f32": 3},
            has_tokenizer="bare" not in args[0],
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


def test_every_option_reaches_the_library(run: Run, library: Library) -> None:
    result = run(
        *("generate", "a cat", "-m", "m.gguf", "--vae", "v.safetensors"),
        *("--text-encoder", "text_encoder=a=b", "--text-encoder", "text_encoder_2=c"),
        *("--tokenizer", "tok", "--device", "cpu", "--threads", 3),
        *("-n", "blurry", "-W", 64, "-H", 128, "--steps", 9, "--cfg-scale", 6.5),
        *("--sampler", "euler_a", "--schedule", "karras", "-s", 0, "-b", 2, "--clip-skip", 2),
        *("-o", "cat.webp"),
    )
    assert result.exit_code == 0, result.output
    load, generate = library.calls
    encoders = {"text_encoder": "a=b", "text_encoder_2": "c"}
    assert load == (
        "load",
        ("m.gguf",),
        {
            "vae": "v.safetensors",
            "text_encoders": encoders,
            "tokenizer": "tok",
            "device": "cpu",
            "threads": 3,
        },
    )
    assert generate[1:] == (
        ("a cat",),
        {
            "negative_prompt": "blurry",
            "width": 64,
            "height": 128,
            "steps": 9,
            "guidance_scale": 6.5,
            "sampler": "euler_a",
            "schedule": "karras",
            "seed": 0,
            "batch_size": 2,
            "clip_skip": 2,
        },
    )


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
        (("generate", "a", "-m", "m", "--text-encoder", "x"), 2, "takes NAME=VALUE, not 'x'"),
        (("generate", "a", "--steps", "many"), 2, "not a valid integer"),
        (("generate", "a", "--quality", "0"), 2, "1<=x<=100"),
        (("generate",), 2, "Missing argument"),
        (("generate", "a", "--stpes", "3"), 2, "--steps"),
        (("convert", "a", "b", "--rule", "vae"), 2, "--rule takes NAME=VALUE"),
        (("bench", "--repeat", "0"), 2, "1<=x<=1000"),
        (("paint",), 2, "No such command"),
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
